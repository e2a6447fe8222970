"""The truth behind a simulated shop. For tests and benchmarks only: nothing that trains or serves may import this."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from training.world.decisions import BLOCK, Decisions, draw
from training.world.equations import Risks, risks
from training.world.scenario import RETURN_REASONS, Scenario
from training.world.shop import open_shop

PARCEL_TARGETS: tuple[str, ...] = ("late", "failed_attempt", "damaged", "undelivered")


def truth(parcels: int, seed: int = 0, scenario: Scenario | None = None) -> pd.DataFrame:
    """The true probability of every parcel target, knowing every cause up to the moment of packing.

    Some causes leave no trace in the tables but through history (a customer's habit to be out, how rough a lane is),
    so no model can reach these probabilities entirely.

    Returns:
        One row per parcel, in the order of the `parcels` table: parcel_id, late, failed_attempt, damaged, undelivered.
    """
    parts = []
    for d, r, n in _blocks(parcels, seed, scenario):
        ids = [f"P{k:09d}" for k in range(d.first, d.first + n)]
        parts.append(pd.DataFrame({"parcel_id": ids, **{t: getattr(r, t)[:n] for t in PARCEL_TARGETS}}))
    return pd.concat(parts, ignore_index=True)


def truth_lines(parcels: int, seed: int = 0, scenario: Scenario | None = None) -> pd.DataFrame:
    """The true probability that an order line comes back, given that its parcel is delivered, in all and by reason.

    Returns:
        One row per line, in the order of the `order_lines` table: line_id, parcel_id, returned, and one column per
        return reason; the reasons sum to `returned`.
    """
    parts = []
    for d, r, n in _blocks(parcels, seed, scenario):
        k = int(np.searchsorted(d.parcel_row, n))
        numbers = (d.first + d.parcel_row[:k]).tolist()
        ids = [f"L{p:09d}-{i}" for p, i in zip(numbers, d.number[:k].tolist(), strict=True)]
        parts.append(
            pd.DataFrame(
                {
                    "line_id": ids,
                    "parcel_id": [f"P{p:09d}" for p in numbers],
                    "returned": r.returned[:k],
                    **{reason: r.reasons[:k, j] for j, reason in enumerate(RETURN_REASONS)},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def reachable_auc(probability: np.ndarray) -> float:
    """The AUC to expect of a model that knows the true probabilities: nothing honest can beat it.

    The chance that, of a positive and a negative unit, the positive has the higher probability, when each unit is
    positive with its own probability; ties count half.

    Args:
        probability: true probabilities, shape (n,), not all of them 0 or all 1.
    """
    values, place = np.unique(np.asarray(probability, dtype=np.float64), return_inverse=True)
    positive = np.bincount(place, weights=values[place])
    negative = np.bincount(place, weights=1.0 - values[place])
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2.0)).sum() / (positive.sum() * negative.sum()))


def _blocks(parcels: int, seed: int, scenario: Scenario | None) -> Iterator[tuple[Decisions, Risks, int]]:
    if parcels < 1:
        raise ValueError(f"parcels is {parcels}, must be at least 1: give the number the world was made with")
    shop = open_shop(seed, scenario)
    for block in range(-(-parcels // BLOCK)):
        d = draw(shop, block)
        yield d, risks(shop, d), min(BLOCK, parcels - d.first)
