"""Chance: what happens to packed parcels, given the true probabilities, and when the shop comes to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.vocabulary import EVENT_KINDS
from training.world.decisions import Decisions
from training.world.equations import Risks, effective
from training.world.scenario import RETURN_REASONS
from training.world.shop import DAY, Flags, Floats, Ints, Shop, pick, stream

KINDS: tuple[str, ...] = tuple(EVENT_KINDS)
EVENT_REASONS: tuple[str, ...] = ("absent", "address_not_found", "no_cash", "no_longer_wanted", "damaged")
HOUR = 3600


@dataclass(frozen=True)
class Outcomes:
    """What happens to one block, all of it, whether or not it is known when the extract is taken.

    Parcels have length n, lines l, events e, returns r. Times are UTC seconds; -1 is no reason, `NEVER` no time.
    """

    late: Flags
    failed_attempt: Flags
    damaged: Flags
    undelivered: Flags
    skipped: Flags
    """A failed attempt was none: the driver passed by."""
    returned: Flags
    """Per line; false where the parcel was not delivered."""

    event_row: Ints
    event_kind: Ints
    event_at: Ints
    event_known: Ints
    event_reason: Ints

    return_row: Ints
    return_at: Ints
    return_known: Ints
    return_true_reason: Ints
    return_reason: Ints
    inspected_reason: Ints
    inspected_at: Ints
    """Meant only where `inspected_reason` is not -1."""
    return_quantity: Ints
    refund: Floats


class _Events:
    """Collects groups of events and gives each the time it becomes known."""

    def __init__(self, rng: np.random.Generator, shop: Shop, d: Decisions) -> None:
        self.rng, self.shop, self.carrier = rng, shop, d.carrier
        self.late_scans = np.array([c.scans_late for c in shop.scenario.carriers.carriers])
        self.groups: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []

    def add(self, kind: str, row: Ints, at: Ints, reason: Ints | None = None, told: bool = False) -> None:
        """Add one event per parcel of `row`: a carrier's scan, or what a person told the shop."""
        k, n = self.shop.scenario.knowledge, len(row)
        delay = self.rng.exponential(k.report_hours if told else k.scan_hours, n) * HOUR
        slow = self.rng.random(n) < (0.0 if told else self.late_scans[self.carrier[row]])
        delay = delay + np.where(slow, self.rng.uniform(0.5, k.late_scan_days, n) * DAY, 0.0)
        nothing = np.full(n, -1, dtype=np.int64)
        kinds = np.full(n, KINDS.index(kind), dtype=np.int64)
        self.groups.append((row, kinds, at, at + delay.astype(np.int64), nothing if reason is None else reason))

    def sorted(self) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Everything added, by parcel and time."""
        row, kind, at, known, reason = (np.concatenate(column) for column in zip(*self.groups, strict=True))
        order = np.lexsort((kind, at, row))
        return row[order], kind[order], at[order], known[order], reason[order]


def happen(shop: Shop, d: Decisions, r: Risks, block: int) -> Outcomes:
    """Let chance decide about one block, in agreement with `risks`."""
    s, clock, o = shop.scenario, shop.clock, shop.scenario.outcomes
    rng = stream(shop.seed, "outcomes", block)
    n = len(d.packed)
    everyone = np.arange(n)

    missed = rng.random(n) < r.missed_pickup
    lost = rng.random(n) < r.lost
    damaged = ~lost & (rng.random(n) < r.damaged_if_not_lost)
    network = np.exp(r.transit_median + r.transit_sigma * rng.standard_normal(n))
    network = np.clip(np.ceil(network), 1, s.carriers.longest_days).astype(np.int64)
    notified = ~lost & (rng.random(n) < r.notifies)
    found_at = pick(rng.random(n), np.where(notified[:, None], r.attempts[1], r.attempts[0]))
    """Attempt that finds somebody: 0, 1, 2; 3 is none."""
    sent_back = ~lost & (found_at == 3)
    refused = ~lost & ~sent_back & (rng.random(n) < r.refused[everyone, damaged.astype(np.int64)])
    delivered = ~lost & ~sent_back & ~refused
    failures = np.where(lost, 0, found_at)
    handed_day = d.handover_day + missed
    first_try = handed_day + network
    last_try = first_try + np.minimum(failures, 2)

    def local(working_day: Ints, seconds: Floats) -> Ints:
        return clock.at(clock.day_of_working[working_day], seconds)

    # A parcel is scanned while the truck is loaded, in the last 40 minutes before the collection.
    loading = np.minimum(40.0, np.where(missed, 40.0, d.slack_minutes)) * 60 * rng.random(n)
    handed = clock.utc(local(handed_day, d.cutoff % DAY - loading))
    events = _Events(stream(shop.seed, "knowledge", block), shop, d)
    events.add("handed_over", everyone, handed)
    scanned = handed + (rng.uniform(3.0, 9.0, n) * HOUR).astype(np.int64)
    events.add("in_transit", everyone, scanned)

    leaves, visit = rng.uniform(6.5, 8.5, n) * HOUR, rng.uniform(9.0, 20.0, (n, 3)) * HOUR
    at_door = np.zeros(n, dtype=np.int64)
    skipped = np.zeros(n, dtype=bool)
    for attempt in range(3):
        row = np.flatnonzero(~lost & (np.minimum(failures, 2) >= attempt))
        out = clock.utc(local(first_try[row] + attempt, leaves[row]))
        events.add("out_for_delivery", row, out)
        told = notified[row]
        if attempt == 0:
            events.add("customer_notified", row[told], out[told] + 600)
        door = clock.utc(local(first_try[row] + attempt, visit[row, attempt]))
        failed = failures[row] > attempt
        for_nothing = rng.random(len(row)) < r.skipped[told.astype(np.int64), row, attempt]
        skipped[row] |= failed & for_nothing
        why = _why_failed(rng, shop, d, row, for_nothing)
        events.add("attempt_failed", row[failed], door[failed], why[failed])
        at_door[row] = door

    row = np.flatnonzero(delivered)
    events.add("delivered", row, at_door[row])
    row = np.flatnonzero(refused)
    why = np.where(damaged[row] & (rng.random(len(row)) < 0.7), 4, 3).astype(np.int64)
    events.add("refused", row, at_door[row], why)
    row = np.flatnonzero(sent_back | refused)
    back_at = local(last_try[row] + rng.integers(2, 6, len(row)), rng.uniform(9.0, 17.0, len(row)) * HOUR)
    back = np.zeros(n, dtype=np.int64)
    back[row] = clock.utc(back_at)
    events.add("returned_to_sender", row, back[row])
    row = np.flatnonzero(lost & (rng.random(n) >= o.stuck_share))
    declared = local(handed_day[row] + rng.integers(7, 14, len(row)), rng.uniform(9.0, 17.0, len(row)) * HOUR)
    events.add("lost", row, clock.utc(declared))

    seen = damaged & (rng.random(n) < o.carrier_sees_damage)
    row = np.flatnonzero(seen)
    events.add("damaged", row, scanned[row] + 1800)
    found = np.where(sent_back, back, at_door) + (rng.gamma(1.2, 20.0, n) * HOUR).astype(np.int64)
    row = np.flatnonzero(damaged & ~seen)
    events.add("damaged", row, found[row], told=True)

    late = ~delivered | (last_try > d.promised_day[d.order_row])
    event_row, event_kind, event_at, event_known, event_reason = events.sorted()
    returns = _returns(shop, d, r, block, delivered, damaged, late, at_door)
    return Outcomes(
        late=late,
        failed_attempt=failures > 0,
        damaged=damaged,
        undelivered=~delivered,
        skipped=skipped,
        event_row=event_row,
        event_kind=event_kind,
        event_at=event_at,
        event_known=event_known,
        event_reason=event_reason,
        **returns,
    )


def _why_failed(rng: np.random.Generator, shop: Shop, d: Decisions, row: Ints, skipped: Flags) -> Ints:
    """The reason the driver gives for a failed attempt, in the loose relation to its cause that such codes have: who
    did not try says that nobody was in."""
    payments = [name for name, _ in shop.scenario.customers.payments]
    cash = d.payment[d.order_row[row]] == (payments.index("cod") if "cod" in payments else -1)
    weights = np.column_stack([np.ones(len(row)), 3.0 * (1.0 - d.address[row]), 0.35 * cash])
    return np.where(skipped, EVENT_REASONS.index("absent"), pick(rng.random(len(row)), weights))


def _returns(
    shop: Shop, d: Decisions, r: Risks, block: int, delivered: Flags, damaged: Flags, late: Flags, door: Ints
) -> dict[str, np.ndarray]:
    """What comes back, why, what is said about it, and when."""
    s, o, k = shop.scenario, shop.scenario.outcomes, shop.scenario.knowledge
    rng = stream(shop.seed, "returns", block)
    parcel = d.parcel_row
    now = effective(r.intensities, damaged[parcel], late[parcel])
    draws = rng.random((4, len(parcel)))
    returned = delivered[parcel] & (draws[0] < -np.expm1(-now.sum(axis=1)))
    row = np.flatnonzero(returned)
    m = len(row)
    true = pick(draws[1, row], now[row])

    window = float(s.return_window_days)
    days = rng.gamma(2.0, 0.5, m) * np.array(o.delay_days)[true] + 0.1
    days = np.where(days >= window, rng.uniform(0.6 * window, window, m), days)
    tail = rng.random(m) < o.tail_share
    days = np.where(tail, window + rng.uniform(0.1, o.tail_days, m), days)
    requested = door[parcel[row]] + (days * DAY).astype(np.int64)

    stated = np.where(rng.random(m) < o.stated_truly, true, pick(rng.random(m), np.array(o.free_reasons)))
    stated = np.where(rng.random(m) < o.stated_nothing, -1, stated)
    known = requested + (rng.exponential(k.return_hours, m) * HOUR).astype(np.int64)
    inspected_at = requested + ((2.0 + rng.gamma(2.0, (k.inspection_days - 2.0) / 2.0, m)) * DAY).astype(np.int64)
    found = np.where(rng.random(m) < o.inspected_truly, true, rng.integers(0, len(RETURN_REASONS), m))
    found = np.where(rng.random(m) < o.inspected_share, found, -1)
    pieces = np.where(rng.random(m) < 0.5, d.quantity[row], 1)
    value = (d.price[row] - d.discount[row] / d.quantity[row]) * pieces
    return {
        "returned": returned,
        "return_row": row,
        "return_at": requested,
        "return_known": known,
        "return_true_reason": true,
        "return_reason": stated,
        "inspected_reason": found,
        "inspected_at": inspected_at,
        "return_quantity": pieces,
        "refund": np.round(value, 2),
    }
