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

from features.arrays import Array, Tables, absent, match
from features.vocabulary import LABEL_GRADES

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


COLUMNS: dict[str, str] = {
    "package": "protection_level",
    "add_fill": "void_fill_ratio",
    "fix_label": "label_grade",
    "complete_documents": "documents_complete",
    "confirm_address": "address_quality",
}
"""Actions that change a column of `parcels`, and which; `package` changes `package_type` as well."""


@dataclass(frozen=True)
class Treated:
    """What decisions say of n parcels.

    Attributes:
        left_out_at: per outcome (n,) datetime64[us], from when on the parcel does not count; NaT: it does.
        weight: per outcome (n,) int64, for how many parcels it counts.
        done: (n,) object, the action that was done; None: none, or nobody said.
    """

    left_out_at: Mapping[str, Array]
    weight: Mapping[str, Array]
    done: Array


def treated(decisions: Mapping[str, Array], parcel_id: Array) -> Treated:
    """Read the table `decisions`. Of several decisions about a parcel one counts, see `_counting`.

    Args:
        decisions: its columns; may be empty.
        parcel_id: (n,) the parcels.
    """
    n, none = len(parcel_id), np.datetime64("NaT", "us")
    left_out = {o: np.full(n, none) for o in EVERY}
    weight = {o: np.ones(n, dtype=np.int64) for o in EVERY}
    everything = np.full(n, None, dtype=object)
    parcel, row = _counting(decisions, parcel_id)
    if not len(row):
        return Treated(left_out, weight, everything)
    decided, arm = decisions["decided_at"][row], decisions["arm"][row]
    action, done = (_given(decisions, name, row, None) for name in ("action", "done"))
    propensity, known = _given(decisions, "propensity", row, np.nan), _given(decisions, "known_at", row, none)
    known, drawn = np.where(np.isnat(known), decided, known), propensity < 1
    times = np.clip(np.rint(1 / (1 - np.where(drawn, propensity, 0.0))), 1, MOST).astype(np.int64)
    for outcome in EVERY:
        advised, did = _moves(action, outcome), _moves(done, outcome)
        by_lot = advised & drawn & (arm == "act")
        left_out[outcome][parcel] = np.where(by_lot, decided, np.where(did, known, none))
        weight[outcome][parcel] = np.where(advised & drawn & (arm == "control"), times, 1)
    everything[parcel] = done
    return Treated(left_out, weight, everything)


def restored(tables: Tables) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """The tables with the columns of treated parcels as they were before, where the decision says how that was.

    Returns:
        The tables, and per lever's column (parcels,) float64 what the action added to it, in the units of the feature
        of that name; NaN where nothing was restored.
    """
    out = {n: dict(t) for n, t in tables.items()}
    steps: dict[str, Array] = {}
    decisions, parcels = tables.get("decisions", {}), out.get("parcels", {})
    parcel, row = _counting(decisions, parcels.get("parcel_id", np.empty(0, dtype=object)))
    if not len(row) or "before" not in decisions:
        return out, {}
    kind = np.array([(d or "").partition(":")[0] for d in _given(decisions, "done", row, None).tolist()], dtype=object)
    before = decisions["before"][row]
    for action, column in COLUMNS.items():
        mine = (kind == action) & ~absent(before)
        if column not in parcels or not mine.any():
            continue
        at, texts = parcel[mine], before[mine]
        step = steps.setdefault(column, np.full(len(parcels["parcel_id"]), np.nan))
        if action == "package":
            if "package_type" not in parcels:
                continue
            types, first = np.unique(parcels["package_type"].astype(str), return_index=True)
            level = dict(zip(types.tolist(), parcels[column][first].tolist(), strict=True))
            parcels["package_type"] = parcels["package_type"].copy()
            parcels["package_type"][at] = texts
            was = np.array([level.get(t, np.nan) for t in texts.tolist()])
        elif column == "label_grade":
            was = texts
        else:
            was = np.array([_number(t) for t in texts.tolist()])
        now = parcels[column]
        parcels[column] = now.copy()
        parcels[column][at] = was
        grades = column == "label_grade"
        step[at] = (_grades(now[at]) - _grades(was)) if grades else (now[at].astype(np.float64) - was)
    return out, steps


def _grades(letters: Array) -> Array:
    place = match(letters, np.array(LABEL_GRADES, dtype=object)).astype(np.float64)
    return np.where(place < 0, np.nan, place)


def _number(text: str) -> float:
    try:
        return {"true": 1.0, "false": 0.0}.get(text.lower(), float("nan")) if text.isalpha() else float(text)
    except ValueError:
        return float("nan")


def _counting(decisions: Mapping[str, Array], parcel_id: Array) -> tuple[Array, Array]:
    """Parcels that a decision is about, and the row of the one that counts for each.

    A packer who follows the advice and asks again is told that nothing is worth doing: by the last decision just the
    parcels that were treated would be taken for untreated ones. So one counts of which it is known what was done; else
    the first that had something to advise; else the first.
    """
    counting = np.full(len(parcel_id), -1)
    if "parcel_id" in decisions:
        at = match(decisions["parcel_id"], parcel_id)
        every = np.arange(len(at))
        silent = [absent(_given(decisions, name, every, None)) for name in ("done", "action")]
        order = np.lexsort((decisions["decided_at"], silent[1], silent[0]))[::-1]
        order = order[at[order] >= 0]
        counting[at[order]] = order  # the one that counts is assigned last
    return np.flatnonzero(counting >= 0), counting[counting >= 0]


def _given(decisions: Mapping[str, Array], name: str, row: Array, missing: object) -> Array:
    return decisions[name][row] if name in decisions else np.full(len(row), missing)


def _moves(actions: Array, outcome: str) -> Array:
    """Whether actions, by their keys, move an outcome, (n,) bool."""
    keys, place = np.unique(np.where(absent(actions), "", actions).astype(str), return_inverse=True)
    moved = [key != "" and outcome in MOVES.get(key.partition(":")[0], EVERY) for key in keys.tolist()]
    return np.array(moved, dtype=bool)[place]
