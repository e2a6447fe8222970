"""The structural equations: from the state of a parcel when it is packed to the chance of everything that can happen.

Pure functions of the state and the scenario; no random number is drawn here. `risks` puts them together and gives the
exact probabilities, so what a model says can be held against the truth. Log-odds unless said otherwise.

    pickup   -> misses the truck (slack) -> one working day lost
    transit  -> ceil(log-normal) working days: distance, carrier, lane, week, label grade, papers, faults
    attempts -> absence of person and zone, address, cash, notification; a failure makes the next one likelier
    loss, damage, refusal -> compete: what is lost is neither damaged nor delivered, what is refused never returned
    late     -> not delivered by the promised day, by any of the ways above
    returns  -> one intensity per reason and delivered line, P = 1 - exp(-sum); damage and lateness add theirs
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from training.world.decisions import Decisions, meets
from training.world.scenario import RETURN_REASONS, SERVICES
from training.world.shop import REGIONS, Flags, Floats, Ints, Shop, sigmoid


@dataclass(frozen=True)
class Risks:
    """True probabilities of one block: parcels of length n, lines of length l.

    The first group is what can be predicted; the second what `training.world.outcomes` needs to let it happen.
    """

    late: Floats
    failed_attempt: Floats
    damaged: Floats
    undelivered: Floats
    returned: Floats
    """Per line, given that its parcel is delivered; at any time, also after the window."""
    reasons: Floats
    """Probability of a return for each reason, shape (l, 7); the rows sum to `returned`."""

    missed_pickup: Floats
    transit_median: Floats
    """Log of working days."""
    transit_sigma: Floats
    lost: Floats
    damaged_if_not_lost: Floats
    refused: Floats
    """Given an attempt that finds somebody, shape (n, 2): undamaged, damaged."""
    notifies: Floats
    attempts: Floats
    """Shape (2, n, 4): not notified and notified; delivered at attempt 1, 2, 3, or never."""
    intensities: Floats
    """Of returns by reason, shape (l, 7); those of damage and lateness hold only where they have happened."""


def risks(shop: Shop, d: Decisions) -> Risks:
    """The true probabilities for a block of packed parcels."""
    missed = missed_pickup(shop, d)
    median, sigma = transit(shop, d)
    lost = loss(shop, d)
    broken = damage(shop, d)
    refused = refusal(shop, d)
    notifies = np.array([c.notifies for c in shop.scenario.carriers.carriers])[d.carrier]
    tries = np.stack([attempts(shop, d, np.full(len(lost), told)) for told in (False, True)])
    tried = tries[0] * (1.0 - notifies)[:, None] + tries[1] * notifies[:, None]

    accepted = (1.0 - broken) * (1.0 - refused[:, 0]) + broken * (1.0 - refused[:, 1])
    reached = tried[:, :3].sum(axis=1)
    left = (d.promised_day[d.order_row] - d.handover_day).astype(np.float64)
    in_time = np.zeros(len(lost))
    for day, chance in ((0, 1.0 - missed), (1, missed)):
        for failed in range(3):
            in_time += chance * tried[:, failed] * arrives_within(shop, left - day - failed, median, sigma)

    intensities = return_intensities(shop, d)
    broken_if_delivered = broken * (1.0 - refused[:, 1]) / accepted
    late_if_delivered = 1.0 - in_time / reached
    reasons = np.zeros_like(intensities)
    for damaged in (False, True):
        for late in (False, True):
            weight = (broken_if_delivered if damaged else 1.0 - broken_if_delivered) * (
                late_if_delivered if late else 1.0 - late_if_delivered
            )
            now = effective(intensities, np.full(len(d.sku), damaged), np.full(len(d.sku), late))
            total = now.sum(axis=1)
            reasons += (weight[d.parcel_row] * -np.expm1(-total) / total)[:, None] * now
    return Risks(
        late=1.0 - (1.0 - lost) * accepted * in_time,
        failed_attempt=(1.0 - lost) * (1.0 - tried[:, 0]),
        damaged=(1.0 - lost) * broken,
        undelivered=1.0 - (1.0 - lost) * accepted * reached,
        returned=reasons.sum(axis=1),
        reasons=reasons,
        missed_pickup=missed,
        transit_median=median,
        transit_sigma=sigma,
        lost=lost,
        damaged_if_not_lost=broken,
        refused=refused,
        notifies=notifies,
        attempts=tries,
        intensities=intensities,
    )


def missed_pickup(shop: Shop, d: Decisions) -> Floats:
    """Chance that a parcel, though packed before the collection, does not reach the truck."""
    even, spread = shop.scenario.nodes.staging_minutes
    return sigmoid(-(d.slack_minutes - even) / spread)


def transit(shop: Shop, d: Decisions) -> tuple[Floats, Floats]:
    """Median (log of working days) and sigma of the log-normal time in the carrier's network."""
    p, lanes = shop.scenario.carriers, shop.lanes
    service, region = d.service[d.order_row], lanes.zone_region[d.zone[d.order_row]]
    calendar_day = shop.clock.day_of_working[d.handover_day]
    abroad = np.array([r[1] != "DE" for r in REGIONS])[region]
    fault = shop.scenario.fault("bad_corridor")
    median = (
        lanes.transit[d.carrier, service, region]
        + p.per_log_distance * np.log(d.distance_km / 300.0)
        + lanes.carrier_week[d.carrier, calendar_day // 7]
        + p.peak_transit * (shop.clock.peak[calendar_day] > 1.0)
        + np.array(p.grade_transit)[d.grade]
        + p.documents_transit * (abroad & ~d.documents)
        + (fault.effect if fault else 0.0) * _on_bad_corridor(shop, d)
    )
    return median, np.array(p.transit_sigma)[service]


def arrives_within(shop: Shop, days: Floats, median: Floats, sigma: Floats) -> Floats:
    """P(time in the network, in whole working days, <= days): at least one day, at most `longest_days`."""
    chance = ndtr((np.log(np.maximum(days, 1.0)) - median) / sigma)
    return np.where(days < 1.0, 0.0, np.where(days >= shop.scenario.carriers.longest_days, 1.0, chance))


def attempts(shop: Shop, d: Decisions, notified: Flags) -> Floats:
    """P(delivered at attempt 1, 2, 3, or never), shape (n, 4), for parcels that come to the door."""
    o, customers = shop.scenario.outcomes, shop.customers
    customer, zone = d.customer[d.order_row], d.zone[d.order_row]
    x = (
        o.absent_zero
        + customers.absence[customer]
        + shop.lanes.zone_absence[zone]
        + np.array([c.attempts for c in shop.scenario.carriers.carriers])[d.carrier]
        + o.absent_address * (1.0 - d.address)
        + o.absent_cod * _is_cod(shop, d)
        + o.absent_business * customers.business[customer]
        + o.absent_bulky * (d.sides_mm[:, 2] > 120.0)
        + o.absent_notified * notified
    )
    again, once_more = o.absent_again
    one, two, three = sigmoid(x), sigmoid(x + again), sigmoid(x + once_more)
    return np.column_stack([1.0 - one, one * (1.0 - two), one * two * (1.0 - three), one * two * three])


def loss(shop: Shop, d: Decisions) -> Floats:
    """Chance to be lost: small and dear parcels, labels that do not scan, borders, the carrier."""
    o = shop.scenario.outcomes
    region = shop.lanes.zone_region[d.zone[d.order_row]]
    return sigmoid(
        o.loss_zero
        + np.array([c.loss for c in shop.scenario.carriers.carriers])[d.carrier]
        + o.loss_log_value * np.log(np.maximum(d.parcel_value, 1.0) / 50.0)
        + np.array(o.loss_grade)[d.grade]
        + o.loss_small * (d.sides_mm[:, 2] < 40.0)
        + o.loss_abroad * np.array([r[1] != "DE" for r in REGIONS])[region]
    )


def damage(shop: Shop, d: Decisions) -> Floats:
    """Chance to arrive broken: fragility against protection, shaken by lane, distance, weight and empty space."""
    o = shop.scenario.outcomes
    region = shop.lanes.zone_region[d.zone[d.order_row]]
    level = d.level.astype(np.float64)
    return sigmoid(
        o.damage_zero
        + o.damage_fragility * d.fragility
        + (o.damage_protection + o.damage_protection_fragility * d.fragility) * level
        + (o.damage_void + o.damage_void_fragility * d.fragility) * (1.0 - d.void_fill)
        + o.damage_log_distance * np.log(d.distance_km / 300.0)
        + o.damage_log_weight * np.log(d.weight_g / 1500.0)
        + o.damage_roughness * shop.lanes.roughness[d.carrier, region]
        + o.damage_corridor * _on_bad_corridor(shop, d)
    )


def refusal(shop: Shop, d: Decisions) -> Floats:
    """Chance to be refused at the door, shape (n, 2): undamaged, damaged. Mostly a matter of cash on delivery."""
    o = shop.scenario.outcomes
    sound = sigmoid(
        np.where(_is_cod(shop, d), o.refuse_cod, o.refuse_prepaid)
        + o.refuse_log_value * np.log(np.maximum(d.parcel_value, 1.0) / 50.0)
        + o.refuse_habit * np.log(shop.customers.habit[d.customer[d.order_row]])
    )
    return np.column_stack([sound, 1.0 - (1.0 - sound) * (1.0 - o.refuse_damaged)])


def return_intensities(shop: Shop, d: Decisions) -> Floats:
    """Intensity of a return by reason, shape (l, 7), for a delivered line; `effective` says which are in force."""
    s, o, products = shop.scenario, shop.scenario.outcomes, shop.products
    order = d.order_row[d.parcel_row]
    category = products.category[d.sku]

    def of(name: str) -> Floats:
        return np.array([getattr(c, name) for c in s.products.categories], dtype=np.float64)[category]

    customer = d.customer[order]
    habit = shop.customers.habit[customer]
    payments = [name for name, _ in s.customers.payments]
    on_invoice = d.payment[order] == (payments.index("invoice") if "invoice" in payments else -1)
    willing = (
        habit * np.where(on_invoice, o.return_invoice, 1.0) * np.where(shop.customers.business[customer], 0.5, 1.0)
    )
    accuracy, guide = products.accuracy[d.sku, d.version], products.guide[d.sku, d.version]
    fault = s.fault("small_last")
    names = [c.name for c in s.products.categories]
    small = meets(
        fault,
        shop.clock,
        d.ordered[order],
        brand=(products.brand[d.sku], s.products.brands),
        category=(category, names),
    )
    runs_small = (fault.effect if fault else 0.0) * small

    size = of("size") * products.size_error[d.sku] * np.where(guide, o.return_guide, 1.0) + runs_small
    size = size + o.return_bracketed * d.bracketed
    mismatch = of("mismatch") * np.exp(o.return_mismatch * (0.7 - accuracy))
    mind = of("mind") * np.exp(o.return_log_price * np.log(d.price / of("price")))
    picking = np.array([k.wrong_item for k in s.nodes.nodes])[d.node[d.parcel_row]]
    by_reason = {
        "wrong_size": size * np.sqrt(willing),
        "not_as_described": mismatch * np.sqrt(willing),
        "defect": of("defect") * products.defect[d.sku],
        "damaged": o.return_damaged * products.fragility[d.sku] / 2.0,
        "late": o.return_late * willing,
        "changed_mind": mind * willing,
        "wrong_item": picking,
    }
    return np.column_stack([by_reason[r] for r in RETURN_REASONS])


def effective(intensities: Floats, damaged: Flags, late: Flags) -> Floats:
    """The intensities in force, given per line whether its parcel came damaged and whether it came late."""
    now = intensities.copy()
    now[:, RETURN_REASONS.index("damaged")] *= damaged
    now[:, RETURN_REASONS.index("late")] *= late
    return now


def _is_cod(shop: Shop, d: Decisions) -> Flags:
    payments = [name for name, _ in shop.scenario.customers.payments]
    return np.asarray(d.payment[d.order_row] == (payments.index("cod") if "cod" in payments else -1))


def _on_bad_corridor(shop: Shop, d: Decisions) -> Flags:
    region: Ints = shop.lanes.zone_region[d.zone[d.order_row]]
    return meets(
        shop.scenario.fault("bad_corridor"),
        shop.clock,
        d.packed,
        carrier=(d.carrier, [c.name for c in shop.scenario.carriers.carriers]),
        destination_region=(region, [r[0] for r in REGIONS]),
        service=(d.service[d.order_row], SERVICES),
    )
