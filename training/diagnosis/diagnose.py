"""Diagnosis of a dataset as tables in a folder: corridors, the legs of late parcels, products."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from features.dataset import Dataset
from features.files import ArtefactError
from features.snapshot import Facts, on_clock
from training.check import require
from training.diagnosis.corridors import COLUMNS, cases, corridors
from training.diagnosis.legs import LEGS, legs
from training.diagnosis.products import products
from training.labels import labels
from training.pipeline import matrices_of, moment_in

PARCELS = ("late", "failed_attempt", "damaged", "undelivered")
SUMMARY = "diagnosis.json"

LEAST = 30
"""Failures, of parcels that can be judged and have a carrier, from which corridors are compared."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        tables: by name: `corridors`, `legs` (a row per late parcel), `products`.
        document: the summary, plain data.
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
    units = {name: labels(facts, name) for name in (*PARCELS, "returned")}
    matrices = matrices_of(facts, units, progress)
    document: dict[str, Any] = {
        "dataset": dataset.settings.name,
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.settings.simulated,
        "as_of": f"{end}Z",
        "since": None if start is None else f"{start}Z",
        "corridors": {},
    }
    found: list[pd.DataFrame] = []
    for target in PARCELS:
        told, words = cases(facts, units[target], matrices, end, start)
        failures = int(told.label.sum())
        said: dict[str, Any] = {"parcels": len(told), "failures": failures, "why": ""}
        if not len(told):
            said["why"] = "no parcel with a carrier can be judged"
        elif len(words["carrier"]) < 2:
            said["why"] = "one carrier only: there is nobody to compare it with"
        elif min(failures, len(told) - failures) < LEAST:
            said["why"] = f"{failures} of {len(told):,} parcels failed: at least {LEAST} of either are needed"
        else:
            table = corridors(told, words, seed=seed, say=progress)
            found.append(table)
            said["verdicts"] = {str(k): int(v) for k, v in table["verdict"].value_counts().sort_index().items()}
        document["corridors"][target] = said
    late = legs(facts, units["late"], end, start)
    counts = late["leg"].value_counts()
    document["late"] = {
        "parcels": len(late),
        "legs": {leg: int(counts.get(leg, 0)) for leg in LEGS},
        "whose": {w: int((late["whose"] == w).sum()) for w in ("ours", "carrier", "cannot tell")},
    }
    every: dict[str, pd.DataFrame] = {
        "corridors": pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS)),
        "legs": late,
    }
    if units["returned"].known(end)[0].sum() >= LEAST:
        every["products"] = products(facts, units["returned"], matrices, end, since=start, seed=seed, say=progress)
        named = every["products"]
        document["products"] = {
            "products": len(named),
            "returns": int(named["returns"].sum()),
            "aside": int(named["aside"].sum()),
            "named": int(named["named"].sum()),
            "why": "",
        }
    else:
        document["products"] = {"why": f"fewer than {LEAST} returns can be judged"}
    return Diagnosis(every, document)


def write(found: Diagnosis, out: Path) -> None:
    """Write the tables as CSV and the summary as JSON, whole or not at all; an earlier diagnosis there is replaced.

    Raises:
        features.files.ArtefactError: the folder holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / SUMMARY).is_file():
        raise ArtefactError(f"{out}: is there already and holds no diagnosis: name another folder")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, table in found.tables.items():
        table.to_csv(part / f"{name}.csv", index=False, date_format="%Y-%m-%dT%H:%M:%S", float_format="%.6g")
    (part / SUMMARY).write_text(json.dumps(found.document, indent=2, allow_nan=False) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def text(found: Diagnosis, most: int = 5) -> str:
    """The diagnosis for the terminal: the worst corridors and products, and whose late parcels were."""
    d = found.document
    lines = [f"{d['dataset']}{', SIMULATED' if d['simulated'] else ''}, as of {d['as_of'][:10]}"]
    late = d["late"]
    if late["parcels"]:
        share = ", ".join(f"{100 * n / late['parcels']:.0f} % {w}" for w, n in late["whose"].items())
        lines += ["", f"Late parcels: {late['parcels']:,}, of these {share}"]
        lines += [f"  {leg}: {n:,}" for leg, n in late["legs"].items() if n]
    corridor = found.tables["corridors"]
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
