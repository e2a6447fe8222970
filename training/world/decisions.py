"""The state of parcels at the moment they are packed: all causes, seen and unseen, before chance decides.

Parcels are drawn in blocks of a fixed size, each from its own random numbers. Block 3 is the same whether the world
ends with it or goes on to a million parcels. Every block spans the whole year.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from training.world.scenario import PACKAGE_TYPES, SHIFTS, Fault
from training.world.shop import DAY, REGIONS, Clock, Flags, Floats, Ints, Shop, pick, stream

BLOCK = 5_000
"""Parcels per block. Part of the world's identity: another size is another world."""

PLANNED_PICKUP = 17 * 3600
"""Second of the day at which the shop plans every carrier's pickup when it promises."""

GRADE_EDGES = (1.2, 0.0, -1.0, -2.0)
"""Latent print quality above which a label is graded A, B, C, D; below the last it is F."""


@dataclass(frozen=True)
class Decisions:
    """One block of parcels as packed. Orders have length m, parcels n = BLOCK, lines l; `*_row` point to them.

    Times are local seconds, working days are indices of `Clock.day_of_working`; codes are positions in the
    scenario's tuples.
    """

    first: int
    """Number of the block's first parcel."""

    ordered: Ints
    customer: Ints
    zone: Ints
    service: Ints
    channel: Ints
    payment: Ints
    promised_day: Ints
    order_value: Floats

    order_row: Ints
    node: Ints
    carrier: Ints
    packed: Ints
    planned: Ints
    """When the shop plans to have it packed; the pickup it is meant for follows."""
    cutoff: Ints
    """The pickup it is meant for."""
    handover_day: Ints
    """Working day of the first collection after packing."""
    slack_minutes: Floats
    """From packing to that collection."""
    level: Ints
    void_fill: Floats
    grade: Ints
    documents: Flags
    address: Floats
    distance_km: Floats
    weight_g: Floats
    sides_mm: Floats
    fragility: Floats
    parcel_value: Floats

    parcel_row: Ints
    number: Ints
    """1, 2, ... within the parcel."""
    sku: Ints
    version: Ints
    """Of the listing the customer read."""
    quantity: Ints
    price: Floats
    discount: Floats
    variant: Ints
    """Position in the category's variants, -1 without any."""
    bracketed: Flags
    """Ordered in two sizes, to keep one."""


def strength(faults: Iterable[Fault], clock: Clock, when: Ints, **columns: tuple[Ints, Sequence[str]]) -> Floats:
    """What faults do to each row, in the unit of their kind: the effects of those in force there are added.

    Args:
        faults: faults of one kind, none or several.
        clock: the world's clock.
        when: (n,) local second at which the row meets them.
        columns: every column a fault of this kind may name, as (positions, names).

    Returns:
        (n,).
    """
    out = np.zeros(len(when))
    for fault in faults:
        hit = when >= clock.since(fault.since)
        for column, value in fault.where.items():
            positions, names = columns[column]
            hit = hit & (positions == list(names).index(value))
        out += fault.effect * hit
    return out


def shift_of(packed: Ints) -> Ints:
    """0 for the early shift (until 14:00), 1 for the late one."""
    return (packed % DAY >= 14 * 3600).astype(np.int64)


def draw(shop: Shop, block: int) -> Decisions:
    """Draw one block of parcels up to the moment of packing."""
    s, clock, lanes, customers = shop.scenario, shop.clock, shop.lanes, shop.customers

    # Orders: one or two parcels each, drawn until the block is surely full.
    rng = stream(shop.seed, "orders", block)
    m = BLOCK
    day = np.minimum(np.searchsorted(np.cumsum(clock.demand) / clock.demand.sum(), rng.random(m)), clock.days - 1)
    evening = rng.random(m) < 0.6
    hour = np.where(evening, rng.normal(19.5, 2.2, m), rng.normal(12.0, 3.0, m)) % 24.0
    ordered = clock.at(day.astype(np.int64), hour * 3600)
    customer = np.searchsorted(customers.activity, rng.random(m) * customers.activity[-1], side="right")
    customer = np.minimum(customer, len(customers.zone) - 1).astype(np.int64)
    zone = customers.zone[customer]
    abroad = np.array([r[1] != "DE" for r in REGIONS])[lanes.zone_region[zone]]
    service = pick(rng.random(m), np.array(s.carriers.service_share))
    payment = np.where(
        rng.random(m) < 0.85,
        customers.payment[customer],
        pick(rng.random(m), np.array([w for _, w in s.customers.payments])),
    )
    names = [name for name, _ in s.customers.payments]
    if "cod" in names and "card" in names:
        # Nobody collects cash abroad or from a business.
        no_cash = (payment == names.index("cod")) & (abroad | customers.business[customer])
        payment = np.where(no_cash, names.index("card"), payment)
    channel = np.where(
        rng.random(m) < 0.8,
        customers.channel[customer],
        pick(rng.random(m), np.array([w for _, w in s.customers.channels])),
    )
    address = np.clip(customers.address[customer] + rng.normal(0.0, s.customers.address_noise, m), 0.0, 1.0)
    parcels_each = 1 + (rng.random(m) < 0.12)
    planned = clock.unwork(clock.work(ordered) + int(s.nodes.planned_hours * 3600))
    peak_days = s.carriers.promise_peak_days * (clock.peak[day] >= clock.peak.max())
    promised_day = (
        clock.next_cutoff(planned, np.full(m, PLANNED_PICKUP))
        + lanes.promised_days[service, lanes.zone_region[zone]]
        + peak_days.astype(np.int64)
    )

    # Parcels: where they are packed, who takes them, when they are ready.
    rng = stream(shop.seed, "packing", block)
    order_row = np.repeat(np.arange(m), parcels_each)
    n = len(order_row)
    far = lanes.distance_km[:, zone[order_row]].T
    node = pick(rng.random(n), np.exp(-(far - far.min(axis=1, keepdims=True)) / s.nodes.nearest_km))
    region = lanes.zone_region[zone[order_row]]
    carrier = pick(rng.random(n), lanes.preference[service[order_row], region] * shop.nodes.lean[node])
    work = clock.work(ordered[order_row])
    backlog = shop.nodes.backlog[node, work // clock.span]
    hours = np.array([k.pick_hours for k in s.nodes.nodes])[node] * rng.lognormal(0.0, s.nodes.pick_sigma, n)
    hours = hours + backlog * clock.span / 3600
    hours = hours * np.where(service[order_row] == 2, s.nodes.express_priority, 1.0)
    packed = clock.unwork(work + (np.maximum(hours, 0.3) * 3600).astype(np.int64))
    # What is not packed when the extract is taken is no parcel yet; its order is not drawn.
    ready = np.bincount(order_row, weights=clock.day(packed) >= clock.days, minlength=m) == 0
    keep = np.flatnonzero(ready[order_row])[:BLOCK]
    order_row, node, carrier, packed = order_row[keep], node[keep], carrier[keep], packed[keep]
    backlog, region, n = backlog[keep], region[keep], BLOCK
    kept, order_row = np.unique(order_row, return_inverse=True)
    ordered, customer, zone, service = ordered[kept], customer[kept], zone[kept], service[kept]
    payment, channel, promised_day, address = payment[kept], channel[kept], promised_day[kept], address[kept]
    planned = planned[kept]

    node_names = [k.name for k in s.nodes.nodes]
    cutoff, handover_day, slack = collection(shop, node, carrier, packed, planned[order_row])

    lines = _draw_lines(shop, block, ordered[order_row])
    products = shop.products
    row, sku, quantity = lines["parcel_row"], lines["sku"], lines["quantity"]
    line_value = lines["price"] * quantity - lines["discount"]
    parcel_value: Floats = np.bincount(row, weights=line_value, minlength=n).astype(np.float64)
    fragility = np.zeros(n)
    np.maximum.at(fragility, row, products.fragility[sku])
    litres = np.bincount(row, weights=quantity * products.sides_mm[sku].prod(axis=1) / 1e6, minlength=n)
    goods_g = np.bincount(row, weights=quantity * products.weight_g[sku], minlength=n)
    longest = np.zeros(n)
    np.maximum.at(longest, row, products.sides_mm[sku, 0])

    # Packing: the habit looks at the goods, so fragile ones sit in better boxes.
    h, late_shift = s.packing, shift_of(packed)
    wish = (
        h.level_zero
        + h.per_fragility * fragility
        + h.per_log_price * np.log(np.maximum(parcel_value, 1.0) / 40.0)
        + h.per_log_litres * np.log(litres / 3.0)
        + np.array([k.overpacking for k in s.nodes.nodes])[node]
        + rng.normal(0.0, h.noise, n)
    )
    level = np.clip(np.round(wish), 0, len(PACKAGE_TYPES) - 1).astype(np.int64)
    less = strength(s.faults_of("fill"), clock, packed, node=(node, node_names))
    fill = np.array([k.void_fill for k in s.nodes.nodes])[node] + s.nodes.backlog_fill * backlog - less
    void_fill = 1.0 / (1.0 + np.exp(-(fill + rng.normal(0.0, h.fill_noise, n))))
    side = np.maximum(np.cbrt(litres * (1.2 + 0.15 * level + rng.gamma(2.0, 0.2, n)) * 1e6), 60.0)
    length = np.maximum(side * rng.uniform(1.0, 1.6, n), longest + 10.0)
    rest = np.sqrt(side**3 / length)
    flat = rng.uniform(1.0, 1.8, n)
    sides = np.round(np.sort(np.column_stack([length, rest * np.sqrt(flat), rest / np.sqrt(flat)]), axis=1)[:, ::-1])
    weight = np.round(goods_g * rng.normal(1.0, 0.01, n) + (30.0 + 90.0 * level) * np.cbrt(litres / 3.0))

    worn = strength(s.faults_of("printer"), clock, packed, node=(node, node_names), shift=(late_shift, SHIFTS))
    score = (
        np.array([k.label_score for k in s.nodes.nodes])[node]
        + s.nodes.late_shift_label * late_shift
        + s.nodes.backlog_label * backlog
        - worn
        + rng.logistic(0.0, 0.7, n)
    )
    grade = (score[:, None] <= np.array(GRADE_EDGES)).sum(axis=1).astype(np.int64)
    documents = rng.random(n) < np.array([k.documents for k in s.nodes.nodes])[node]

    return Decisions(
        first=block * BLOCK,
        ordered=ordered,
        customer=customer,
        zone=zone,
        service=service,
        channel=channel,
        payment=payment,
        promised_day=promised_day,
        order_value=np.bincount(order_row, weights=parcel_value, minlength=len(kept)).astype(np.float64),
        order_row=order_row,
        node=node,
        carrier=carrier,
        packed=packed,
        planned=planned[order_row],
        cutoff=cutoff,
        handover_day=handover_day,
        slack_minutes=slack,
        level=level,
        void_fill=void_fill,
        grade=grade,
        documents=documents,
        address=address[order_row],
        distance_km=lanes.distance_km[node, zone[order_row]],
        weight_g=weight,
        sides_mm=sides,
        fragility=fragility,
        parcel_value=parcel_value,
        parcel_row=row,
        number=lines["number"],
        sku=sku,
        version=lines["version"],
        quantity=quantity,
        price=lines["price"],
        discount=lines["discount"],
        variant=lines["variant"],
        bracketed=lines["bracketed"].astype(bool),
    )


def collection(shop: Shop, node: Ints, carrier: Ints, packed: Ints, planned: Ints) -> tuple[Ints, Ints, Floats]:
    """When parcels are collected: the pickup each is meant for (local second), the working day of the first
    collection after packing, and the minutes from packing to it; all (n,)."""
    s, clock = shop.scenario, shop.clock
    usual = shop.nodes.cutoff[node, carrier]
    earlier = strength(
        s.faults_of("pickup"),
        clock,
        packed,
        node=(node, [k.name for k in s.nodes.nodes]),
        carrier=(carrier, [k.name for k in s.carriers.carriers]),
    )
    seconds = usual - (earlier * 3600).astype(np.int64)
    # The pickup it is meant for is chosen by the plan, which does not know of a change in the collection.
    meant = clock.next_cutoff(planned, usual)
    day = clock.next_cutoff(packed, seconds)
    slack = (clock.at(clock.day_of_working[day], seconds) - packed) / 60.0
    return clock.at(clock.day_of_working[meant], seconds), day, slack


def _draw_lines(shop: Shop, block: int, ordered: Ints) -> dict[str, np.ndarray]:
    """The contents of parcels ordered at `ordered`: one to four lines each, of what was on sale then."""
    rng = stream(shop.seed, "lines", block)
    products, clock = shop.products, shop.clock
    categories = shop.scenario.products.categories
    n = len(ordered)
    each = 1 + pick(rng.random(n), np.array([0.62, 0.25, 0.09, 0.04]))
    row = np.repeat(np.arange(n), each)
    first_line = np.cumsum(each) - each
    number = np.arange(len(row)) - first_line[row] + 1
    lines = len(row)

    utc = clock.utc(ordered)[row]
    on_sale = np.searchsorted(products.launched, utc, side="right")
    sku = np.searchsorted(products.popularity, rng.random(lines) * products.popularity[on_sale - 1], side="right")
    sku = np.minimum(sku, on_sale - 1).astype(np.int64)

    # Sized goods are sometimes ordered twice, in two sizes, to send one back.
    sized = np.array([c.size > 0 for c in categories])
    above = np.maximum(np.arange(lines) - 1, 0)
    again = (
        (number == 2) & sized[products.category[sku[above]]] & (rng.random(lines) < shop.scenario.customers.bracketing)
    )
    sku = np.where(again, sku[above], sku)
    bracketed = again.copy()
    bracketed[above[again]] = True

    choices = np.array([len(c.variants) for c in categories])[products.category[sku]]
    variant = np.where(choices > 0, np.floor(rng.random(lines) * choices), -1.0).astype(np.int64)
    variant = np.where(again, (variant[above] + 1) % np.maximum(choices, 1), variant)
    quantity = np.where(bracketed, 1, 1 + pick(rng.random(lines), np.array([0.88, 0.09, 0.03])))

    on_offer = rng.random(lines) < np.where(clock.peak[clock.day(ordered)][row] > 1, 0.5, 0.1)
    price = products.price[sku]
    discount = np.where(on_offer, np.round(price * quantity * rng.uniform(0.1, 0.3, lines), 2), 0.0)
    return {
        "parcel_row": row,
        "number": number,
        "sku": sku,
        "version": (products.version_at[sku] <= utc[:, None]).sum(axis=1) - 1,
        "quantity": quantity,
        "price": price,
        "discount": discount,
        "variant": variant,
        "bracketed": bracketed,
    }
