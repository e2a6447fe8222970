"""The holdout as everything needed to judge any bundle on it again: features, labels, slices.

A bundle is judged when it is trained, and once more before it may replace another: then both have to be scored on the
same rows, long after the dataset has changed. So each training leaves, beside its bundle, a folder with a file per
unit:

| column | holds |
|---|---|
| `unit` | a hash of the parcel's or line's id, which is not in it itself |
| `order` | a number per order, the same in both files: rows of one order are not independent |
| `decided_at` | when the unit was decided, UTC |
| `label:TARGET` | 1, 0, or -1 where the label was not mature |
| `slice:NAME` | whether the unit is in the slice (`training.evaluate.slices`) |
| every other | a feature, float32; all that any target may read, not only those that were selected |

Only units with a label are in it, and only so many: of a larger holdout, whole orders chosen by the hash of their id,
which is the same choice every time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array, hash_codes
from features.files import ArtefactError, seal, verify
from features.matrix import FeatureSet
from features.reasons import NOT_STATED
from features.settings import Settings
from features.snapshot import Facts
from training.evaluate.slices import slices
from training.labels import Labels
from training.models.reasons import told
from training.splits import split

__all__ = ["FOLDER", "KIND", "MOST", "REASONS", "EvaluationSet", "Rows", "write"]

KIND = "doorstep-evaluation"
PROTOCOL = 1
FOLDER = "evaluation"
"""Its name beside a training's bundle, and in its run."""

MOST = 100_000
"""Units of a file: an interval of a hundred thousand is narrower than anything a gate should turn on."""

_MAKE = "doorstep train DATASET"
_LABEL, _SLICE = "label:", "slice:"

REASONS = ("reason_stated", "reason_inspected")
"""Labels of returned lines: positions in `features.reasons.owners`, -1 where nothing is said."""


@dataclass(frozen=True)
class Rows:
    """The units of one kind.

    Attributes:
        decided_at: (n,) datetime64[us], UTC.
        order: (n,) int64.
        labels: per target, and of lines per one of `REASONS`, (n,) int8, -1 where it is not known.
        slices: (n, slices) bool.
        features: (n, features) float32.
    """

    decided_at: Array
    order: Array
    labels: Mapping[str, Array]
    slices: pd.DataFrame
    features: pd.DataFrame

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class EvaluationSet:
    """What a training was judged on.

    Attributes:
        settings: the shop's, as the features were computed with.
        holdout_from: nothing decided before is in it, UTC.
        units: `parcel` and `line` -> rows; a kind of unit that has no row is not there.
    """

    settings: Settings
    holdout_from: pd.Timestamp
    units: Mapping[str, Rows]

    @staticmethod
    def load(folder: Path) -> EvaluationSet:
        """Read a folder that `write` made, after verifying its checksums.

        Raises:
            features.files.ArtefactError: it is none, of another protocol, or not what was written.
        """
        folder = Path(folder)
        meta = verify(folder, KIND, PROTOCOL, _MAKE)
        units = {unit: _read(folder / f"{unit}.parquet") for unit in ("parcel", "line")}
        return EvaluationSet(
            Settings.from_json(meta["settings"]),
            pd.Timestamp(meta["holdout_from"]),
            {unit: rows for unit, rows in units.items() if len(rows)},
        )


def write(
    to: Path,
    facts: Facts,
    units: Mapping[str, Labels],
    matrices: Mapping[str, tuple[FeatureSet, Array]],
    start: np.datetime64,
    end: np.datetime64,
    most: int = MOST,
) -> None:
    """Write the evaluation set of a training, whole or not at all.

    Args:
        to: its folder.
        facts: the joined dataset.
        units: labels per target.
        matrices: per unit every feature, and their values for all rows of the level.
        start, end: the holdout, and when its labels are read.
        most: units per file.
    """
    labels = {unit: _labels(units, unit, start, end) for unit in ("parcel", "line")}
    orders = {unit: _orders(facts, unit, np.flatnonzero((t >= 0).any(axis=1))) for unit, t in labels.items()}
    if "returned" in labels["line"]:
        labels["line"] = labels["line"].assign(**_reasons(facts, labels["line"]["returned"].to_numpy(), end))
    taken = _chosen(orders, most)
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    counts = {}
    for unit, (row, code) in orders.items():
        kept = np.isin(code, taken)
        counts[unit] = {"rows": int(kept.sum()), "of": len(row)}
        frame = _frame(facts, unit, row[kept], np.searchsorted(taken, code[kept]), labels[unit], matrices, start)
        frame.to_parquet(part / f"{unit}.parquet", index=False, compression="zstd")
    meta = {"settings": facts.snapshot.settings.to_json(), "holdout_from": f"{start}Z", "as_of": f"{end}Z"}
    seal(part, to, KIND, PROTOCOL, meta | {"units": counts})


def _labels(units: Mapping[str, Labels], unit: str, start: np.datetime64, end: np.datetime64) -> pd.DataFrame:
    """Label of every row of a level per target, -1 outside the holdout and where it is not mature."""
    out = {}
    for name, u in units.items():
        if u.unit == unit:
            fold = split(u, start, end)
            out[name] = column = np.full(len(u.outcome.matures_at), -1, dtype=np.int8)
            column[u.row[fold.test]] = fold.test_label
    return pd.DataFrame(out)


def _reasons(facts: Facts, returned: Array, end: np.datetime64) -> dict[str, Array]:
    """What is said about the mature returns of the holdout, of every row of the lines."""
    said = told(facts, end)
    named = zip(REASONS, (said.stated, said.inspected), strict=True)
    return {name: np.where(returned == 1, reason, NOT_STATED).astype(np.int8) for name, reason in named}


def _orders(facts: Facts, unit: str, row: Array) -> tuple[Array, Array]:
    """Rows of a level and the hash of each one's order, (r,) uint64."""
    parcel = row if unit == "parcel" else facts.rows.line_parcel[row]
    return row, hash_codes(facts.rows.order_id[parcel])


def _chosen(orders: Mapping[str, tuple[Array, Array]], most: int) -> Array:
    """Hashes of the orders whose units are kept: the lowest ones, as many as no file gets too long with."""
    every = np.unique(np.concatenate([code for _, code in orders.values()]))
    kept = len(every)
    for _, code in orders.values():
        units = np.cumsum(np.bincount(np.searchsorted(every, code), minlength=len(every)))
        kept = min(kept, int(np.searchsorted(units, most, side="right")))
    return every[:kept]


def _frame(
    facts: Facts,
    unit: str,
    row: Array,
    order: Array,
    labels: pd.DataFrame,
    matrices: Mapping[str, tuple[FeatureSet, Array]],
    start: np.datetime64,
) -> pd.DataFrame:
    level, ids = (
        (facts.rows.parcels, facts.rows.parcel_id) if unit == "parcel" else (facts.rows.lines, facts.rows.line_id)
    )
    parts: dict[str, Any] = {
        "unit": hash_codes(ids[row]),
        "order": order.astype(np.int32),
        "decided_at": pd.DatetimeIndex(level.decided_at[row]).tz_localize("UTC"),
        **{f"{_LABEL}{name}": labels[name].to_numpy()[row] for name in labels},
        **{f"{_SLICE}{name}": hit.to_numpy() for name, hit in slices(facts, unit, start, row).items()},
    }
    if unit in matrices:
        features, matrix = matrices[unit]
        values = matrix[row]
        parts |= {name: values[:, i] for i, name in enumerate(features.names)}
    return pd.DataFrame(parts)


def _read(path: Path) -> Rows:
    frame = pd.read_parquet(path)
    labels = [str(c) for c in frame if str(c).startswith(_LABEL)]
    inside = [str(c) for c in frame if str(c).startswith(_SLICE)]
    try:
        decided = frame["decided_at"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        return Rows(
            decided,
            frame["order"].to_numpy().astype(np.int64),
            {c.removeprefix(_LABEL): frame[c].to_numpy() for c in labels},
            frame[inside].rename(columns=lambda c: str(c).removeprefix(_SLICE)),
            frame.drop(columns=["unit", "order", "decided_at", *labels, *inside]),
        )
    except KeyError as error:
        raise ArtefactError(f"{path}: has no column {error}: make a new one with `{_MAKE}`") from None
