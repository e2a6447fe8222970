"""Diagnosis of a dataset: every table of `training.diagnosis.artefact`, and a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.dataset import Dataset
from features.snapshot import Facts, on_clock
from serving.diagnosis import FORMAT, TABLES
from training.check import require
from training.diagnosis.corridors import Corridors, cases, corridors
from training.diagnosis.legs import LEGS, legs
from training.diagnosis.parcels import TARGETS, Parcels, judged, parcels_of
from training.diagnosis.parcels import table as parcel_table
from training.diagnosis.products import products, set_aside, traits
from training.labels import labels
from training.pipeline import Matrices, matrices_of, moment_in

CONFIDENCE = 0.9
"""Of every interval."""

LEAST = 30
"""Failures, of parcels that can be judged and have a carrier, from which corridors are compared."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        tables: by name, those of `training.diagnosis.artefact.TABLES` that have rows or could have.
        document: the summary, plain data: `diagnosis.json`.
    """

    tables: Mapping[str, pd.DataFrame]
    document: Mapping[str, Any]


def diagnose(
    dataset: Dataset,
    *,
    as_of: pd.Timestamp | str | None = None,
    since: str | None = None,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda _: None,
) -> Diagnosis:
    """Look for where it broke, over everything old enough to judge.

    Args:
        dataset: the shop's tables.
        as_of: only facts known before are used; default when the extract was taken.
        since: only what was decided from then on.
        seed: of everything random.
        progress: told what is being done.

    Raises:
        features.settings.DatasetError: the dataset is broken, see `doorstep check`.
        ValueError: dates that leave nothing.
    """
    progress("checking the dataset")
    require(dataset)
    progress("joining tables and counting history")
    facts = Facts.of(dataset, moment_in(as_of, dataset.settings))
    end = facts.snapshot.as_of
    start = None if since is None else on_clock(since, dataset.settings.timezone)
    if start is not None and not start < end:
        raise ValueError(
            f"since {start}Z with the data as of {end}Z: nothing was decided in between; give an earlier date"
        )
    units = {name: labels(facts, name) for name in (*TARGETS, "returned")}
    matrices = matrices_of(facts, units, progress)
    settings = dataset.settings
    document: dict[str, Any] = {
        "format": FORMAT,
        "dataset": settings.name,
        "fingerprint": dataset.fingerprint,
        "simulated": settings.simulated,
        "as_of": f"{end}Z",
        "since": None if start is None else f"{start}Z",
        "currency": settings.currency,
        "timezone": settings.timezone,
        "confidence": CONFIDENCE,
    }
    made: dict[str, pd.DataFrame] = {}
    why: dict[str, str] = {}
    parcels = parcels_of(facts, units["late"], end, start)
    failed = {target: judged(parcels, units[target], end) for target in TARGETS}
    late = legs(facts, units["late"], end, start)
    document["corridors"], expected = _corridors(parcels, failed, late, matrices, seed, progress, made, why)
    made["parcels"] = parcel_table(facts, parcels, failed, expected, late, end)
    why["parcels"] = "no parcel is old enough to judge"
    counts = late["leg"].value_counts()
    document["late"] = {
        "parcels": len(late),
        "legs": {leg: int(counts.get(leg, 0)) for leg in LEGS},
        "whose": {w: int((late["whose"] == w).sum()) for w in ("ours", "carrier", "cannot tell")},
    }
    lines = set_aside(facts, units["returned"], end, start)
    document["products"] = {"why": "no order line is old enough to judge"}
    why["lines"] = why["products"] = document["products"]["why"]
    if len(lines):
        progress(f"what {len(lines):,} lines of comparable products have come back for")
        made["products"], lines["expected"] = products(lines, traits(lines, matrices), seed=seed, confidence=CONFIDENCE)
        found = made["products"]
        document["products"] = {
            "products": len(found),
            "returns": int(found["returns"].sum()),
            "aside": int(found["aside"].sum()),
            "named": int(found["named"].sum()),
            "why": "" if "ratio" in found else found["why_not"].iloc[0],
        }
    made["lines"] = lines.drop(columns="row")
    document["tables"] = {
        name: {
            "rows": len(made.get(name, ())),
            "why": "" if len(made.get(name, ())) else why.get(name, "this table is not made yet"),
        }
        for name in TABLES
    }
    return Diagnosis(made, document)


def _corridors(
    parcels: Parcels,
    failed: Mapping[str, Array],
    late: pd.DataFrame,
    matrices: Matrices,
    seed: int,
    say: Callable[[str], Any],
    made: dict[str, pd.DataFrame],
    why: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The corridors and carriers of every target: a summary, and what others would have had with each parcel."""
    found: list[Corridors] = []
    document: dict[str, Any] = {}
    expected = {target: np.full(len(parcels), np.nan) for target in TARGETS}
    for target in TARGETS:
        told, words, at = cases(target, parcels, failed[target], matrices)
        failures = int(told.label.sum())
        said: dict[str, Any] = {"parcels": len(told), "failures": failures, "why": ""}
        if not len(told):
            said["why"] = "no parcel with a carrier can be judged"
        elif len(words["carrier"]) < 2:
            said["why"] = "one carrier only: there is nobody to compare it with"
        elif min(failures, len(told) - failures) < LEAST:
            said["why"] = f"{failures} of {len(told):,} parcels failed: at least {LEAST} of either are needed"
        else:
            found.append(corridors(told, words, seed=seed, confidence=CONFIDENCE, say=say))
            expected[target][at] = found[-1].expected
            counts = found[-1].table["verdict"].value_counts().sort_index()
            said["verdicts"] = {str(k): int(v) for k, v in counts.items()}
        document[target] = said
    if found:
        made["corridors"] = pd.concat([f.table for f in found], ignore_index=True)
        made["carriers"] = _split(pd.concat([f.carriers for f in found], ignore_index=True), parcels, late)
    why["corridors"] = why["carriers"] = "; ".join(sorted({d["why"] for d in document.values()} - {""}))
    return document, expected


def _split(carriers: pd.DataFrame, parcels: Parcels, late: pd.DataFrame) -> pd.DataFrame:
    """Carriers with their late parcels split by whose they were: ours, theirs, untold."""
    at = pd.Index(parcels.parcel_id).get_indexer(pd.Index(late["parcel_id"]))
    of = pd.DataFrame({name: parcels.places[name][at] for name in ("carrier", "service")})
    of["whose"] = late["whose"].map({"ours": "ours", "carrier": "theirs", "cannot tell": "untold"})
    for name in ("ours", "theirs", "untold"):
        of[name] = of["whose"] == name
    counts = of.groupby(["carrier", "service"])[["ours", "theirs", "untold"]].sum().reset_index().assign(target="late")
    out = carriers.merge(counts, on=["target", "carrier", "service"], how="left")
    split = out["target"] == "late"
    out.loc[split, ["ours", "theirs", "untold"]] = out.loc[split, ["ours", "theirs", "untold"]].fillna(0)
    return out


def text(found: Diagnosis, most: int = 5) -> str:
    """The diagnosis for the terminal: the worst corridors and products, and whose late parcels were."""
    d = found.document
    lines = [f"{d['dataset']}{', SIMULATED' if d['simulated'] else ''}, as of {d['as_of'][:10]}"]
    late = d["late"]
    if late["parcels"]:
        share = ", ".join(f"{100 * n / late['parcels']:.0f} % {w}" for w, n in late["whose"].items())
        lines += ["", f"Late parcels: {late['parcels']:,}, of these {share}"]
        lines += [f"  {leg}: {n:,}" for leg, n in late["legs"].items() if n]
    corridor = found.tables.get("corridors", pd.DataFrame())
    for target, said in d["corridors"].items():
        if said["why"]:
            lines += ["", f"{target}: carriers cannot be compared: {said['why']}"]
            continue
        verdicts = ", ".join(f"{n} {v}" for v, n in said["verdicts"].items())
        lines += ["", f"{target} by corridor: {verdicts}"]
        worse = corridor[(corridor["target"] == target) & (corridor["verdict"] == "worse")].head(most)
        for _, row in worse.iterrows():
            where = " ".join(x for x in (row["carrier"], row["service"], "to", row["region"]) if x)
            date = "" if pd.isna(row["since"]) else f", since {row['since']:%Y-%m-%d}"
            lines.append(
                f"  {where}: {row['observed']} of {row['parcels']:,}, expected {row['expected']:.0f}, "
                f"{row['ratio']:.2f} times [{row['low']:.2f}, {row['high']:.2f}]{date}"
            )
    said = d["products"]
    if said["why"]:
        return "\n".join([*lines, "", f"products cannot be compared: {said['why']}"])
    lines += [
        "",
        f"Products: {said['named']} of {said['products']:,} come back for their listing's reasons more than comparable "
        f"ones; {said['aside']:,} of {said['returns']:,} returns are set aside, being of other reasons or of none",
    ]
    for _, row in found.tables["products"].query("named").head(most).iterrows():
        lines.append(
            f"  {row['sku']} ({row['category']}): {row['observed']} of {row['lines']:,}, "
            f"expected {row['expected']:.0f}, {row['ratio']:.2f} times [{row['low']:.2f}, {row['high']:.2f}], "
            f"mostly {row['reason']}"
        )
    return "\n".join(lines)
