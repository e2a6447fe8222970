"""Where late parcels lost their time: before the carrier had them, on the way, or at the door.

Many late carriers were late before the dock, so times are looked at before any model is: the pickup a parcel was meant
for, the scan at which it was handed over, the first attempt at the door, and the promise.

    not packed in time     packed after the pickup it was meant for; no later than it left late, it was late
    waited for a pickup    packed in time, handed over after that pickup, and no later than it left late, it was late
    on the way             handed over in time, and not at the door in time
    at the door            an attempt before the promise ended, and it failed
    both                   left late, and then took longer than what was lost at the start
    cannot tell            a time is missing that would tell

The first two are the shop's own, the third the carrier's; the others are told of neither.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from features.arrays import Array, match
from features.snapshot import Facts
from training.labels import Labels

LEGS: dict[str, str] = {
    "not packed in time": "ours",
    "waited for a pickup": "ours",
    "on the way": "carrier",
    "at the door": "cannot tell",
    "both": "cannot tell",
    "cannot tell": "cannot tell",
}
"""Where a parcel lost its time, and whose that is."""

NAT = np.datetime64("NaT", "us")


def legs(facts: Facts, units: Labels, as_of: np.datetime64, since: np.datetime64 | None = None) -> pd.DataFrame:
    """The late parcels, each with the leg on which it lost its time.

    Args:
        facts: the dataset, joined.
        units: the labels of `late`.
        as_of: only what was known before is used, and only what could be judged by then.
        since: only parcels decided from then on.

    Returns:
        A row per late parcel: parcel_id, decided_at, node, carrier, service, region, leg, whose, and hours_late (until
        `as_of` for what has not arrived).
    """
    label, mature = units.known(as_of)
    late = mature & (label == 1) & (units.decided_at < as_of)
    if since is not None:
        late &= units.decided_at >= since
    at = np.flatnonzero(late)
    rows, row = facts.rows.parcels, units.row[at]
    ids = units.unit_id[at]
    first = {kind: _first(facts, ids, kind) for kind in ("handed_over", "attempt_failed", "delivered")}
    packed, cutoff = rows["parcels", "packed_at"][row], rows["parcels", "pickup_cutoff_at"][row]
    promised = rows["orders", "promised_to"][row]
    arrived = np.where(np.isnat(first["delivered"]), as_of, first["delivered"])
    over = arrived - promised
    left_late = first["handed_over"] > cutoff
    enough = over <= first["handed_over"] - cutoff
    told = ~np.isnat(first["handed_over"]) & ~np.isnat(cutoff)
    tried = first["attempt_failed"] <= promised
    leg = np.select(
        [
            tried,
            told & left_late & enough & (packed > cutoff),
            told & left_late & enough,
            told & left_late,
            told,
        ],
        ["at the door", "not packed in time", "waited for a pickup", "both", "on the way"],
        "cannot tell",
    )
    return pd.DataFrame(
        {
            "parcel_id": ids,
            "decided_at": units.decided_at[at],
            "node": rows["parcels", "node"][row],
            "carrier": rows["parcels", "carrier"][row],
            "service": rows["parcels", "service"][row],
            "region": rows["orders", "destination_region"][row],
            "leg": leg,
            "whose": [LEGS[name] for name in leg.tolist()],
            "hours_late": over / np.timedelta64(1, "h"),
        }
    )


def _first(facts: Facts, ids: Array, kind: str) -> Array:
    """When something first happened to each parcel, (n,), NaT where it is not known to have."""
    events = facts.tables.get("events", {})
    out = np.full(len(ids), NAT)
    if not events:
        return out
    chosen = np.flatnonzero(events["kind"] == kind)
    place = match(events["parcel_id"][chosen], ids)
    chosen, place = chosen[place >= 0], place[place >= 0]
    order = np.argsort(events["happened_at"][chosen], kind="stable")[::-1]
    out[place[order]] = events["happened_at"][chosen[order]]  # the earliest is assigned last
    return out
