"""The structural equations: from the state of a parcel when it is packed to the chance of everything that can happen.

`causes` reads a block's state as the terms of the equations, each owned by the team through whose features it can be
seen; `risks` puts the equations together and gives the exact probabilities. Both are pure functions, no random number
is drawn here, so what a model says can be held against the truth. Log-odds unless said otherwise.

    pickup   -> misses the truck (slack) -> one working day lost
    transit  -> ceil(log-normal) working days: distance, carrier, lane, week, label grade, papers, bad corridors
    attempts -> absence of person and area, address, cash, notification; a failure makes the next one likelier;
                a driver may pass by without trying
    loss, damage, refusal -> compete: what is lost is neither damaged nor delivered, what is refused never returned
    late     -> not delivered by the promised day, by any of the ways above
    returns  -> one intensity per reason and delivered line, P = 1 - exp(-sum); damage and lateness add theirs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_type_hints

import numpy as np
from scipy.special import expit, ndtr

from training.world.decisions import PLANNED_PICKUP, Decisions, strength
from training.world.scenario import RETURN_REASONS, SERVICES, Outcomes, Scenario
from training.world.shop import REGIONS, Flags, Floats, Ints, Shop


@dataclass(frozen=True)
class Causes:
    """What the equations read of n parcels, each (n,), by the team that owns it."""

    promise_days: Annotated[Ints, "order"]
    """Working days from the planned pickup to the promised one."""
    cod: Annotated[Flags, "order"]
    invoice: Annotated[Flags, "order"]
    business: Annotated[Flags, "order"]
    log_value: Annotated[Floats, "order"]
    """Of the parcel's goods, over 50."""

    protection: Annotated[Floats, "packing"]
    void_fill: Annotated[Floats, "packing"]
    grade: Annotated[Ints, "packing"]
    documents: Annotated[Flags, "packing"]
    log_weight: Annotated[Floats, "packing"]
    """Over 1.5 kg."""
    thickness_mm: Annotated[Floats, "packing"]

    handover_days: Annotated[Ints, "fulfilment"]
    """Working days from the planned pickup to the first collection after packing."""
    missed_pickup: Annotated[Floats, "fulfilment"]
    """Chance to miss that one all the same."""
    picking: Annotated[Floats, "fulfilment"]
    """Intensity of a wrong article in the parcel."""

    service_days: Annotated[Floats, "carrier"]
    """Log of the service's median working days at 300 km."""
    service_sigma: Annotated[Floats, "carrier"]
    abroad: Annotated[Flags, "carrier"]
    log_distance: Annotated[Floats, "carrier"]
    """Over 300 km."""
    lane_days: Annotated[Floats, "carrier"]
    """What carrier, lane, week and season add to `service_days`."""
    corridor: Annotated[Floats, "carrier"]
    """Strength of the bad corridors it goes through."""
    roughness: Annotated[Floats, "carrier"]
    loss: Annotated[Floats, "carrier"]
    attempts: Annotated[Floats, "carrier"]
    notifies: Annotated[Floats, "carrier"]
    """Chance that the customer is told in advance."""
    skips: Annotated[Floats, "carrier"]
    """Chance per attempt that there is none."""
    area_absence: Annotated[Floats, "carrier"]

    absence: Annotated[Floats, "customer"]
    address: Annotated[Floats, "customer"]
    """Quality, 0 to 1."""
    habit: Annotated[Floats, "customer"]
    """Multiple of the readiness to send back."""

    fragility: Annotated[Floats, "listing"]
    """Of the most fragile thing inside."""


@dataclass(frozen=True)
class LineCauses:
    """What the equations read of l delivered lines besides the causes of their parcel, each (l,)."""

    parcel: Ints
    """Row of the line's parcel."""
    size: Annotated[Floats, "listing"]
    mismatch: Annotated[Floats, "listing"]
    defect: Annotated[Floats, "listing"]
    mind: Annotated[Floats, "listing"]
    """Intensities of an average customer's return."""
    line_fragility: Annotated[Floats, "listing"]
    log_price: Annotated[Floats, "order"]
    """Over the category's usual price."""
    bracketed: Annotated[Flags, "customer"]


OWNERS: dict[str, str] = {
    name: hint.__metadata__[0]
    for kind in (Causes, LineCauses)
    for name, hint in get_type_hints(kind, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""Team of each cause: the owner of the features through which it can be seen."""


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
    skipped: Floats
    """Chance that a failed attempt was none, shape (2, n, 3): not notified and notified; attempt 1, 2, 3."""
    intensities: Floats
    """Of returns by reason, shape (l, 7); those of damage and lateness hold only where they have happened."""


def causes(shop: Shop, d: Decisions) -> tuple[Causes, LineCauses]:
    """The terms of the equations for a block of packed parcels and their lines."""
    s, clock, lanes, customers, products = shop.scenario, shop.clock, shop.lanes, shop.customers, shop.products
    p, order = s.carriers, d.order_row
    zone, service, customer, payment = d.zone[order], d.service[order], d.customer[order], d.payment[order]
    region = lanes.zone_region[zone]
    abroad = np.array([r[1] != "DE" for r in REGIONS])[region]
    service_days = np.log(np.array(p.transit_days))[service] + p.abroad * abroad
    # Both sides of lateness count from the same day, one that neither team moves.
    planned_day = clock.next_cutoff(d.planned, np.full(len(d.planned), PLANNED_PICKUP))
    calendar_day = clock.day_of_working[d.handover_day]
    even, spread = s.nodes.staging_minutes
    payments = [name for name, _ in s.customers.payments]

    def paid(method: str) -> Flags:
        return np.asarray(payment == (payments.index(method) if method in payments else -1))

    def of_carrier(name: str) -> Floats:
        return np.array([getattr(c, name) for c in p.carriers], dtype=np.float64)[d.carrier]

    def met(kind: str) -> Floats:
        return strength(
            s.faults_of(kind),
            clock,
            d.packed,
            carrier=(d.carrier, [c.name for c in p.carriers]),
            destination_region=(region, [r[0] for r in REGIONS]),
            service=(service, SERVICES),
        )

    parcels = Causes(
        promise_days=d.promised_day[order] - planned_day,
        service_days=service_days,
        service_sigma=np.array(p.transit_sigma)[service],
        abroad=abroad,
        cod=paid("cod"),
        invoice=paid("invoice"),
        business=customers.business[customer],
        log_value=np.log(np.maximum(d.parcel_value, 1.0) / 50.0),
        protection=d.level.astype(np.float64),
        void_fill=d.void_fill,
        grade=d.grade,
        documents=d.documents,
        log_weight=np.log(d.weight_g / 1500.0),
        thickness_mm=d.sides_mm[:, 2],
        handover_days=d.handover_day - planned_day,
        missed_pickup=expit(-(d.slack_minutes - even) / spread),
        picking=np.array([k.wrong_item for k in s.nodes.nodes])[d.node],
        log_distance=np.log(d.distance_km / 300.0),
        lane_days=lanes.transit[d.carrier, service, region]
        - service_days
        + lanes.carrier_week[d.carrier, calendar_day // 7]
        + p.peak_transit * (clock.peak[calendar_day] > 1.0),
        corridor=met("corridor"),
        roughness=lanes.roughness[d.carrier, region],
        loss=of_carrier("loss"),
        attempts=of_carrier("attempts"),
        notifies=of_carrier("notifies"),
        skips=np.minimum(of_carrier("skips") + met("skips"), 0.95),
        area_absence=lanes.zone_absence[zone],
        absence=customers.absence[customer],
        address=d.address,
        habit=customers.habit[customer],
        fragility=d.fragility,
    )

    o, category = s.outcomes, products.category[d.sku]
    listed = d.ordered[order[d.parcel_row]]

    def of_category(name: str) -> Floats:
        return np.array([getattr(c, name) for c in s.products.categories], dtype=np.float64)[category]

    def misread(kind: str) -> Floats:
        return strength(
            s.faults_of(kind),
            clock,
            listed,
            brand=(products.brand[d.sku], s.products.brands),
            category=(category, [c.name for c in s.products.categories]),
        )

    accuracy = products.accuracy[d.sku, d.version] - misread("misleads")
    guide = np.where(products.guide[d.sku, d.version], o.return_guide, 1.0)
    lines = LineCauses(
        parcel=d.parcel_row,
        size=of_category("size") * products.size_error[d.sku] * guide + misread("runs_small"),
        mismatch=of_category("mismatch") * np.exp(o.return_mismatch * (0.7 - accuracy)),
        defect=of_category("defect") * products.defect[d.sku],
        mind=of_category("mind"),
        line_fragility=products.fragility[d.sku],
        log_price=np.log(d.price / of_category("price")),
        bracketed=d.bracketed,
    )
    return parcels, lines


def risks(scenario: Scenario, c: Causes, lines: LineCauses, point: Flags | None = None) -> Risks:
    """The true probabilities of packed parcels and their lines; those of `point` go to a pickup point."""
    o, longest = scenario.outcomes, scenario.carriers.longest_days
    median, sigma = transit(scenario, c), c.service_sigma
    lost, broken, refused = loss(o, c), damage(o, c), refusal(o, c)
    tries, skipped = (np.stack(x) for x in zip(*(attempts(o, c, told, point) for told in (False, True)), strict=True))
    tried = tries[0] * (1.0 - c.notifies)[:, None] + tries[1] * c.notifies[:, None]

    accepted = (1.0 - broken) * (1.0 - refused[:, 0]) + broken * (1.0 - refused[:, 1])
    reached = tried[:, :3].sum(axis=1)
    left = (c.promise_days - c.handover_days).astype(np.float64)
    in_time = np.zeros(len(lost))
    for day, chance in ((0, 1.0 - c.missed_pickup), (1, c.missed_pickup)):
        for failed in range(3):
            in_time += chance * tried[:, failed] * arrives_within(left - day - failed, median, sigma, longest)

    intensities = return_intensities(o, c, lines)
    broken_if_delivered = broken * (1.0 - refused[:, 1]) / accepted
    late_if_delivered = 1.0 - in_time / reached
    reasons = np.zeros_like(intensities)
    for damaged in (False, True):
        for late in (False, True):
            weight = (broken_if_delivered if damaged else 1.0 - broken_if_delivered) * (
                late_if_delivered if late else 1.0 - late_if_delivered
            )
            now = effective(intensities, np.full(len(intensities), damaged), np.full(len(intensities), late))
            total = now.sum(axis=1)
            reasons += (weight[lines.parcel] * -np.expm1(-total) / np.maximum(total, 1e-300))[:, None] * now
    return Risks(
        late=1.0 - (1.0 - lost) * accepted * in_time,
        failed_attempt=(1.0 - lost) * (1.0 - tried[:, 0]),
        damaged=(1.0 - lost) * broken,
        undelivered=1.0 - (1.0 - lost) * accepted * reached,
        returned=reasons.sum(axis=1),
        reasons=reasons,
        missed_pickup=c.missed_pickup,
        transit_median=median,
        transit_sigma=sigma,
        lost=lost,
        damaged_if_not_lost=broken,
        refused=refused,
        notifies=c.notifies,
        attempts=tries,
        skipped=skipped,
        intensities=intensities,
    )


def transit(scenario: Scenario, c: Causes) -> Floats:
    """Median (log of working days) of the log-normal time in the carrier's network."""
    p = scenario.carriers
    return (
        c.service_days
        + c.lane_days
        + c.corridor
        + p.per_log_distance * c.log_distance
        + np.array(p.grade_transit)[c.grade]
        + p.documents_transit * (c.abroad & ~c.documents)
    )


def arrives_within(days: Floats, median: Floats, sigma: Floats, longest: int) -> Floats:
    """P(time in the network, in whole working days, <= days): at least one day, at most `longest`."""
    chance = ndtr((np.log(np.maximum(days, 1.0)) - median) / sigma)
    return np.where(days < 1.0, 0.0, np.where(days >= longest, 1.0, chance))


POINT_ABSENT = -3.0
"""Log-odds that a pickup point adds to nobody being there: its counter is staffed."""

POINT_UNCOLLECTED = 0.012
"""Chance that nobody collects what arrived at a pickup point: it goes back."""


def attempts(o: Outcomes, c: Causes, notified: bool, point: Flags | None = None) -> tuple[Floats, Floats]:
    """P(delivered at attempt 1, 2, 3, or never), (n, 4), for parcels that come to the door, and P(the driver did not
    try | the attempt failed), (n, 3)."""
    x = (
        o.absent_zero
        + c.absence
        + c.area_absence
        + c.attempts
        + o.absent_address * (1.0 - c.address)
        + o.absent_cod * c.cod
        + o.absent_business * c.business
        + o.absent_bulky * (c.thickness_mm > 120.0)
        + o.absent_notified * notified
    )
    if point is not None:
        x = x + POINT_ABSENT * point
    again, once_more = o.absent_again
    one, two, three = (1.0 - (1.0 - c.skips) * (1.0 - expit(x + more)) for more in (0.0, again, once_more))
    found = np.column_stack([1.0 - one, one * (1.0 - two), one * two * (1.0 - three), one * two * three])
    if point is not None:
        left = POINT_UNCOLLECTED * point * found[:, :3].sum(axis=1)
        found[:, :3] *= (1.0 - POINT_UNCOLLECTED * point)[:, None]
        found[:, 3] += left
    return found, c.skips[:, None] / np.column_stack([one, two, three])


def loss(o: Outcomes, c: Causes) -> Floats:
    """Chance to be lost: small and dear parcels, labels that do not scan, borders, the carrier."""
    return expit(
        o.loss_zero
        + c.loss
        + o.loss_log_value * c.log_value
        + np.array(o.loss_grade)[c.grade]
        + o.loss_small * (c.thickness_mm < 40.0)
        + o.loss_abroad * c.abroad
    )


def damage(o: Outcomes, c: Causes) -> Floats:
    """Chance to arrive broken: fragility against protection, shaken by lane, distance, weight and empty space."""
    return expit(
        o.damage_zero
        + o.damage_fragility * c.fragility
        + (o.damage_protection + o.damage_protection_fragility * c.fragility) * c.protection
        + (o.damage_void + o.damage_void_fragility * c.fragility) * (1.0 - c.void_fill)
        + o.damage_log_distance * c.log_distance
        + o.damage_log_weight * c.log_weight
        + o.damage_roughness * c.roughness
        + o.damage_corridor * c.corridor
    )


def refusal(o: Outcomes, c: Causes) -> Floats:
    """Chance to be refused at the door, shape (n, 2): undamaged, damaged. Mostly a matter of cash on delivery."""
    sound = expit(
        np.where(c.cod, o.refuse_cod, o.refuse_prepaid)
        + o.refuse_log_value * c.log_value
        + o.refuse_habit * np.log(c.habit)
    )
    return np.column_stack([sound, 1.0 - (1.0 - sound) * (1.0 - o.refuse_damaged)])


def return_intensities(o: Outcomes, c: Causes, lines: LineCauses) -> Floats:
    """Intensity of a return by reason, shape (l, 7), for a delivered line; `effective` says which are in force."""
    willing = (c.habit * np.where(c.invoice, o.return_invoice, 1.0) * np.where(c.business, o.return_business, 1.0))[
        lines.parcel
    ]
    by_reason = {
        "wrong_size": (lines.size + o.return_bracketed * lines.bracketed) * np.sqrt(willing),
        "not_as_described": lines.mismatch * np.sqrt(willing),
        "defect": lines.defect,
        "damaged": o.return_damaged * lines.line_fragility / 2.0,
        "late": o.return_late * willing,
        "changed_mind": lines.mind * np.exp(o.return_log_price * lines.log_price) * willing,
        "wrong_item": c.picking[lines.parcel],
    }
    return np.column_stack([by_reason[r] for r in RETURN_REASONS])


def effective(intensities: Floats, damaged: Flags, late: Flags) -> Floats:
    """The intensities in force, given per line whether its parcel came damaged and whether it came late."""
    now = intensities.copy()
    now[:, RETURN_REASONS.index("damaged")] *= damaged
    now[:, RETURN_REASONS.index("late")] *= late
    return now
