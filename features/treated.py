"""Who was treated, so that what is counted and learned is the risk without the action.

An action that works erases the failures it prevents: counted as they come, they say that there was no risk. So a parcel
that was advised by lot is left out of what its action moves, whatever was then done, and those that the same lot
withheld it from stand for it: one that had the chance 1 - propensity to be withheld counts 1 / (1 - propensity) times
(Horvitz and Thompson 1952). The lot and its chance are on record when the parcel is decided, so a count at t still uses
nothing that was learned later. Where nothing was drawn by lot, what was treated is left out once that is known, and
nobody stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.arrays import Array, absent, match

MOVES: dict[str, tuple[str, ...]] = {
    "package": ("damaged",),
    "add_fill": ("damaged",),
    "fix_label": ("late", "undelivered"),
    "complete_documents": ("late", "undelivered"),
    "confirm_address": ("late", "failed_attempt", "undelivered"),
    "notify_customer": ("late", "failed_attempt", "undelivered"),
    "pickup_point": ("late", "failed_attempt", "undelivered"),
    "hold_next_pickup": ("late",),
    "carrier": (),
}
"""Outcomes of parcels that an action moves enough to hide a risk; one that is not here moves them all.

Another carrier hides nothing: the parcel counts for the carrier that took it."""

EVERY = ("late", "failed_attempt", "damaged", "undelivered")

MOST = 20
"""A withheld parcel counts for so many at most."""


@dataclass(frozen=True)
class Treated:
    """What decisions say of n parcels.

    Attributes:
        left_out_at: per outcome (n,) datetime64[us], from when on the parcel does not count; NaT: it does.
        weight: per outcome (n,) int64, for how many parcels it counts.
    """

    left_out_at: Mapping[str, Array]
    weight: Mapping[str, Array]


def treated(decisions: Mapping[str, Array], parcel_id: Array) -> Treated:
    """Read the table `decisions`. Of several decisions about a parcel, the last one counts.

    Args:
        decisions: its columns; may be empty.
        parcel_id: (n,) the parcels.
    """
    n = len(parcel_id)
    left_out = {o: np.full(n, np.datetime64("NaT", "us")) for o in EVERY}
    weight = {o: np.ones(n, dtype=np.int64) for o in EVERY}
    if "parcel_id" not in decisions:
        return Treated(left_out, weight)
    rows, none = len(decisions["parcel_id"]), np.datetime64("NaT", "us")

    def column(name: str, missing: object) -> Array:
        return decisions[name] if name in decisions else np.full(rows, missing)

    at, decided, arm = match(decisions["parcel_id"], parcel_id), decisions["decided_at"], decisions["arm"]
    action, done = column("action", None).astype(object), column("done", None).astype(object)
    propensity, known = column("propensity", np.nan).astype(np.float64), column("known_at", none)
    known = np.where(np.isnat(known), decided, known)
    drawn = propensity < 1
    order = np.argsort(decided, kind="stable")
    last = np.full(n, -1)
    order = order[at[order] >= 0]
    last[at[order]] = order  # sorted by time: the last assignment stays
    parcel, row = np.flatnonzero(last >= 0), last[last >= 0]
    arm, drawn, decided, known = arm[row], drawn[row], decided[row], known[row]
    times = np.clip(np.rint(1 / (1 - np.where(drawn, propensity[row], 0.0))), 1, MOST).astype(np.int64)
    for outcome in EVERY:
        advised, did = _moves(action[row], outcome), _moves(done[row], outcome)
        by_lot = advised & drawn & (arm == "act")
        left_out[outcome][parcel] = np.where(by_lot, decided, np.where(did, known, none))
        weight[outcome][parcel] = np.where(advised & drawn & (arm == "control"), times, 1)
    return Treated(left_out, weight)


def _moves(actions: Array, outcome: str) -> Array:
    """Whether actions, by their keys, move an outcome, (n,) bool."""
    keys, place = np.unique(np.where(absent(actions), "", actions).astype(str), return_inverse=True)
    moved = [key != "" and outcome in MOVES.get(key.partition(":")[0], EVERY) for key in keys.tolist()]
    return np.array(moved, dtype=bool)[place]
