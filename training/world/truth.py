"""The truth of a world as files, in a folder of their own that nothing which trains or serves may read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.world.decisions import Decisions
from training.world.equations import Risks
from training.world.outcomes import Outcomes
from training.world.scenario import RETURN_REASONS
from training.world.scenarios import to_toml
from training.world.shop import Shop

TRUTH = "truth"
"""Name of the folder, inside the world's."""
WORLD, SCENARIO, FAULTS = "world.json", "scenario.toml", "faults.json"
FILES = ("parcels.parquet", "lines.parquet", "returns.parquet", WORLD, SCENARIO, FAULTS)


def parcel_ids(d: Decisions, n: int) -> list[str]:
    """Ids of a block's first n parcels."""
    return [f"P{k:09d}" for k in range(d.first, d.first + n)]


def line_ids(d: Decisions, n: int) -> list[str]:
    """Ids of the lines of a block's first n parcels."""
    k = int(np.searchsorted(d.parcel_row, n))
    parcel, number = (d.first + d.parcel_row[:k]).tolist(), d.number[:k].tolist()
    return [f"L{p:09d}-{i}" for p, i in zip(parcel, number, strict=True)]


def parcel_truth(d: Decisions, r: Risks, n: int) -> pd.DataFrame:
    """The true probabilities of a block's first n parcels."""
    targets = ("late", "failed_attempt", "damaged", "undelivered")
    return pd.DataFrame({"parcel_id": parcel_ids(d, n), **{t: getattr(r, t)[:n] for t in targets}})


def line_truth(d: Decisions, r: Risks, n: int) -> pd.DataFrame:
    """The true probabilities of the lines of a block's first n parcels, in all and by reason."""
    ids = line_ids(d, n)
    k = len(ids)
    return pd.DataFrame(
        {
            "line_id": ids,
            "parcel_id": [f"P{p:09d}" for p in (d.first + d.parcel_row[:k]).tolist()],
            "returned": r.returned[:k],
            **{reason: r.reasons[:k, j] for j, reason in enumerate(RETURN_REASONS)},
        }
    )


def return_truth(d: Decisions, o: Outcomes, n: int) -> pd.DataFrame:
    """The true reasons of what comes back of a block's first n parcels."""
    ids = np.array(line_ids(d, n), dtype=object)
    keep = o.return_row < len(ids)
    reasons = np.array(RETURN_REASONS, dtype=object)[o.return_true_reason[keep]]
    return pd.DataFrame({"line_id": ids[o.return_row[keep]], "true_reason": reasons})


def write_words(folder: Path, shop: Shop, parcels: int) -> None:
    """Write what the world was made from, and what is wrong in it."""
    s = shop.scenario
    made = {"parcels": parcels, "seed": shop.seed, "scenario": s.name}
    (folder / WORLD).write_text(_json(made), encoding="utf-8")
    (folder / SCENARIO).write_text(to_toml(s), encoding="utf-8")
    faults = [
        {
            "name": f.name,
            "kind": f.kind,
            "team": f.team,
            "words": f.words,
            "where": f.where,
            "since": str(f.since),
            "targets": f.targets,
            "effect": f.effect,
        }
        for f in s.faults
    ]
    (folder / FAULTS).write_text(_json(faults), encoding="utf-8")


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
