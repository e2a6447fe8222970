"""The parts of the world that stand before any parcel: calendar, range, warehouses, lanes, customers.

All of it is drawn from the seed alone, never from the number of parcels, so that a longer world is the same shop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from training.world.scenario import SERVICES, Calendar, Scenario

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

DAY = 86_400
NEVER = np.iinfo(np.int64).max // 4
"""A time, in seconds, that never comes."""

REGIONS: tuple[tuple[str, str, float, float, float, int], ...] = (
    ("DE-BW", "DE", 48.7, 9.2, 0.115, 6),
    ("DE-BY", "DE", 48.8, 11.5, 0.130, 7),
    ("DE-BE", "DE", 52.5, 13.4, 0.055, 3),
    ("DE-BB", "DE", 52.3, 13.2, 0.028, 3),
    ("DE-HB", "DE", 53.1, 8.8, 0.010, 2),
    ("DE-HH", "DE", 53.6, 10.0, 0.030, 2),
    ("DE-HE", "DE", 50.5, 9.0, 0.073, 5),
    ("DE-MV", "DE", 53.7, 12.5, 0.019, 3),
    ("DE-NI", "DE", 52.8, 9.3, 0.090, 5),
    ("DE-NW", "DE", 51.4, 7.5, 0.190, 9),
    ("DE-RP", "DE", 49.9, 7.4, 0.045, 4),
    ("DE-SL", "DE", 49.4, 7.0, 0.012, 2),
    ("DE-SN", "DE", 51.0, 13.3, 0.060, 4),
    ("DE-ST", "DE", 52.0, 11.7, 0.027, 3),
    ("DE-SH", "DE", 54.2, 9.8, 0.035, 3),
    ("DE-TH", "DE", 50.9, 11.0, 0.026, 3),
    ("AT", "AT", 47.6, 14.0, 0.035, 4),
    ("CH", "CH", 46.9, 8.2, 0.020, 3),
)
"""Destination regions: code, country, latitude, longitude, share of customers, cities."""

ZONES_PER_CITY = 4

_STREAMS = (
    "products",
    "nodes",
    "lanes",
    "customers",
    "orders",
    "lines",
    "packing",
    "outcomes",
    "returns",
    "knowledge",
    "gaps",
)
"""Purposes of random numbers. The position is the key: append, never reorder."""


def stream(seed: int, purpose: str, block: int = 0) -> np.random.Generator:
    """The random numbers of one purpose in one block of parcels: a counter-based generator (Philox) of its own.

    Purposes draw from separate streams so that a change in one (a stronger package, say) leaves the chance in all
    the others as it was.
    """
    key = np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(purpose), block))
    return np.random.Generator(np.random.Philox(key))


def pick(u: Floats, weights: Floats) -> Ints:
    """For each u in [0, 1), shape (n,), the index it falls on by its row of `weights`, shape (n, k) or (k,)."""
    edges = np.cumsum(weights, axis=-1)
    edges = edges / edges[..., -1:]
    return (u[:, None] >= edges[..., :-1]).sum(axis=1).astype(np.int64)


class Clock:
    """Local seconds, UTC seconds, and working time of a calendar.

    Local times are seconds since 1970 on the shop's wall clock. Working time counts only the seconds in which the
    warehouses are open, so that a night or a Sunday is no delay.
    """

    def __init__(self, calendar: Calendar) -> None:
        self.first = (calendar.first_day - date(1970, 1, 1)).days
        self.extracted = (calendar.extracted_on - date(1970, 1, 1)).days
        self.days = self.extracted - self.first
        self.opens, self.span = calendar.opens * 3600, (calendar.closes - calendar.opens) * 3600
        # Beyond the extract, parcels must still have somewhere to arrive.
        reach = self.days + 120
        dates = [calendar.first_day + timedelta(days=k) for k in range(reach)]
        self.weekday: Ints = np.array([d.weekday() for d in dates])
        self.works: Flags = np.array([d.weekday() != 6 and d not in calendar.holidays for d in dates])
        zone = ZoneInfo(calendar.timezone)
        noons = [datetime(d.year, d.month, d.day, 12, tzinfo=zone) for d in dates]
        self._offset: Ints = np.array([round(n.utcoffset().total_seconds()) for n in noons])  # type: ignore[union-attr]
        self.day_of_working: Ints = np.flatnonzero(self.works)
        self.working_from: Ints = np.cumsum(self.works) - self.works
        """Index of the first working day on or after each day."""
        self.peak: Floats = np.ones(reach)
        for start, end, multiple in calendar.peaks:
            self.peak[(start - calendar.first_day).days : (end - calendar.first_day).days + 1] = multiple
        trend = np.linspace(1.0, calendar.growth, self.days)
        self.demand: Floats = trend * np.array(calendar.weekdays)[self.weekday[: self.days]] * self.peak[: self.days]
        """Expected orders by day, relative."""

    def day(self, local: Ints) -> Ints:
        """Days since the first day."""
        return local // DAY - self.first

    def since(self, day: date) -> int:
        """Local second at which a date begins."""
        return (day - date(1970, 1, 1)).days * DAY

    def at(self, day: Ints, seconds: Ints | Floats | int) -> Ints:
        """Local time of a second of a day, counted from the first day."""
        return (day + self.first) * DAY + np.asarray(seconds, dtype=np.int64)

    def utc(self, local: Ints) -> Ints:
        """UTC seconds. The zone's offset is that of the day's noon; the change of the clocks is a matter of an hour."""
        return local - self._offset[np.clip(self.day(local), 0, len(self._offset) - 1)]

    @property
    def extracted_utc(self) -> int:
        """UTC second at which the extract was taken."""
        return int(self.utc(np.array([self.extracted * DAY]))[0])

    def work(self, local: Ints) -> Ints:
        """Working seconds before a local time."""
        day = self.day(local)
        within = np.clip(local % DAY - self.opens, 0, self.span)
        return self.working_from[day] * self.span + np.where(self.works[day], within, 0)

    def unwork(self, work: Ints) -> Ints:
        """The local time at which so many working seconds have passed."""
        return self.at(self.day_of_working[work // self.span], self.opens + work % self.span)

    def next_cutoff(self, local: Ints, cutoff: Ints) -> Ints:
        """Working day of the first collection at `cutoff` (second of the day) that is not before a local time."""
        day = self.day(local)
        too_late = self.works[day] & (local % DAY > cutoff)
        return self.working_from[day] + too_late


@dataclass(frozen=True)
class Products:
    """The range, sorted by the time each product came into it; arrays of length n, listing versions of shape (n, 3)."""

    category: Ints
    brand: Ints
    price: Floats
    weight_g: Floats
    sides_mm: Floats
    fragility: Floats
    popularity: Floats
    """Cumulative, in the order of launch: the products on sale at a time are a prefix."""
    size_error: Floats
    defect: Floats
    launched: Ints
    version_at: Ints
    accuracy: Floats
    guide: Flags
    description: Ints
    photos: Ints
    reviews: Ints
    rating: Floats
    shown_fragility: Floats
    shows_measures: Flags


@dataclass(frozen=True)
class Nodes:
    """Warehouses: queue in days of work by (node, working day), collections by (node, carrier) as second of the day,
    and each carrier's multiple of its usual share by (node, carrier)."""

    backlog: Floats
    cutoff: Ints
    lean: Floats


@dataclass(frozen=True)
class Lanes:
    """Where parcels go and how: zones of length z, distances (node, zone), lanes by (carrier, service, region)."""

    zone_region: Ints
    zone_city: Ints
    zone_absence: Floats
    distance_km: Floats
    transit: Floats
    roughness: Floats
    carrier_week: Floats
    preference: Floats
    promised_days: Ints


@dataclass(frozen=True)
class Customers:
    """The customers, arrays of length n; activity is cumulative."""

    activity: Floats
    zone: Ints
    business: Flags
    absence: Floats
    address: Floats
    habit: Floats
    payment: Ints
    channel: Ints


@dataclass(frozen=True)
class Shop:
    """Everything that stands before the first parcel."""

    seed: int
    scenario: Scenario
    clock: Clock
    products: Products
    nodes: Nodes
    lanes: Lanes
    customers: Customers


@lru_cache(maxsize=4)
def _default_shop(seed: int) -> Shop:
    return _open(seed, Scenario())


def open_shop(seed: int, scenario: Scenario | None = None) -> Shop:
    """The shop of a seed. Shops of the default scenario are kept, since tests and the oracle open them again."""
    return _default_shop(seed) if scenario is None else _open(seed, scenario)


def _open(seed: int, scenario: Scenario) -> Shop:
    clock = Clock(scenario.calendar)
    lanes = _lanes(stream(seed, "lanes"), scenario, clock)
    return Shop(
        seed,
        scenario,
        clock,
        _products(stream(seed, "products"), scenario, clock),
        _nodes(stream(seed, "nodes"), scenario, clock),
        lanes,
        _customers(stream(seed, "customers"), scenario, lanes),
    )


def _products(rng: np.random.Generator, scenario: Scenario, clock: Clock) -> Products:
    p = scenario.products
    n, cats = p.count, p.categories
    opening, closing = clock.first * DAY, clock.extracted * DAY

    new = rng.random(n) < p.new_share
    launched = np.where(new, rng.uniform(opening, closing, n), opening - rng.uniform(60, 700, n) * DAY)
    launched = np.sort(launched.astype(np.int64) // 3600 * 3600)
    new = launched >= opening

    # Categories go round in a fixed rhythm rather than by chance, so that every seed has every category.
    share = np.array([c.share for c in cats])
    category = pick((rng.permutation(n) + 0.5) / n, share)
    leading = np.array([p.brands.index(c.leading_brand) for c in cats])[category]
    brand = np.where(rng.random(n) < p.leading_share, leading, rng.integers(len(p.brands), size=n))
    popularity = rng.lognormal(0.0, p.popularity_sigma, n)
    # The few best sellers of a small category must not make it the shop's largest.
    for k in range(len(cats)):
        own = category == k
        popularity[own] *= share[k] / popularity[own].sum()

    def of(name: str) -> Floats:
        return np.array([getattr(c, name) for c in cats], dtype=np.float64)[category]

    price = np.round(of("price") * rng.lognormal(0.0, 0.5, n), 0) - 0.05
    weight = np.round(of("weight_g") * rng.lognormal(0.0, 0.45, n))
    litres = of("litres") * rng.lognormal(0.0, 0.4, n)
    ratios = np.sort(rng.lognormal(0.0, 0.45, (n, 3)), axis=1)[:, ::-1]
    sides = np.round(ratios * np.cbrt(litres * 1e6 / ratios.prod(axis=1))[:, None])
    fragility = np.clip(of("fragility") + np.where(of("fragility") > 0, rng.normal(0.0, 0.6, n), 0.0), 0.0, 4.0)

    # Listings: what is written (photos, words, guide) follows how true it is, loosely; it is read in versions.
    accuracy = np.repeat(rng.beta(7.0, 3.0, n)[:, None], 3, axis=1)
    sized = np.array([c.size > 0 for c in cats])[category]
    guide = np.repeat((sized & (rng.random(n) < p.size_guide_share))[:, None], 3, axis=1)
    revised_in = np.where(rng.random(n) < p.revised_share, rng.integers(1, 3, n), 3)
    later = np.arange(3)[None, :] >= revised_in[:, None]
    accuracy = np.where(later, np.clip(accuracy + 0.2, 0.0, 0.98), accuracy)
    guide = guide | (later & sized[:, None])
    start = np.maximum(launched, opening)
    gaps = np.cumsum(rng.uniform(45, 150, (n, 2)), axis=1) * DAY
    version_at = np.column_stack([launched, start[:, None] + gaps.astype(np.int64)]) // 60 * 60

    size_error = rng.lognormal(-0.5 * p.size_spread**2, p.size_spread, n)
    defect = rng.lognormal(-0.5 * p.defect_spread**2, p.defect_spread, n)
    words = rng.normal(0.0, 0.5, n)[:, None] + 5.2 + 1.9 * accuracy
    photos = 1 + rng.poisson(0.5 + 1.5 * np.exp(1.2 * accuracy))
    photos = np.maximum.accumulate(np.where(later, photos, photos[:, :1]), axis=1)
    # Reviews gather in the order of how much is sold; good ratings need true words and sound goods.
    reviews = popularity[:, None] * n * (version_at - launched[:, None]) / DAY * rng.uniform(0.05, 0.2, n)[:, None]
    reviews = np.where(new[:, None], reviews, reviews + popularity[:, None] * n * 30).astype(np.int64)
    quality = 4.75 - 1.6 * (1.0 - accuracy) - 0.25 * defect[:, None] - 0.1 * (size_error * sized)[:, None]
    rating = quality + rng.normal(0.0, 1.0, (n, 3)) * 0.9 / np.sqrt(1.0 + reviews)
    rating = np.where(reviews > 0, np.round(np.clip(rating, 1.0, 5.0), 1), np.nan)
    return Products(
        category=category,
        brand=brand,
        price=price,
        weight_g=weight,
        sides_mm=sides,
        fragility=fragility,
        popularity=np.cumsum(popularity),
        size_error=size_error,
        defect=defect,
        launched=launched,
        version_at=version_at,
        accuracy=accuracy,
        guide=guide,
        description=np.round(np.exp(words)).astype(np.int64),
        photos=photos,
        reviews=reviews,
        rating=rating,
        shown_fragility=np.clip(np.round(fragility + rng.normal(0.0, 0.25, n)), 0.0, 4.0),
        shows_measures=rng.random(n) > 0.03,
    )


def _nodes(rng: np.random.Generator, scenario: Scenario, clock: Clock) -> Nodes:
    p = scenario.nodes
    working = clock.working_from[: clock.days]
    last = len(clock.day_of_working)
    arrivals = np.bincount(working, weights=clock.demand, minlength=last)
    normal = arrivals[arrivals > 0].mean()
    peak = clock.peak[clock.day_of_working]
    backlog = np.zeros((len(p.nodes), last))
    for k, node in enumerate(p.nodes):
        load = arrivals / normal * rng.lognormal(0.0, 0.10, last)
        capacity = node.capacity * np.where(peak > 1, peak * p.peak_staff, 1.0)
        queue = 0.0
        for w in range(last):
            queue = min(max(queue + load[w] - capacity[w], 0.0), p.longest_queue_days * capacity[w])
            backlog[k, w] = queue / capacity[w]
    early, late = p.cutoff_hours
    halves = rng.integers(int(early * 2), int(late * 2) + 1, (len(p.nodes), len(scenario.carriers.carriers)))
    lean = np.array([[k.lean if c.name == k.leans_to else 1.0 for c in scenario.carriers.carriers] for k in p.nodes])
    return Nodes(backlog=backlog, cutoff=halves * 1800, lean=lean)


def _lanes(rng: np.random.Generator, scenario: Scenario, clock: Clock) -> Lanes:
    p = scenario.carriers
    regions, carriers, services = len(REGIONS), len(p.carriers), len(SERVICES)
    cities = np.array([r[5] for r in REGIONS])
    city_region = np.repeat(np.arange(regions), cities)
    city_number = np.concatenate([np.arange(1, c + 1) for c in cities])
    zone_region = np.repeat(city_region, ZONES_PER_CITY)
    zone_city = np.repeat(city_number, ZONES_PER_CITY)
    zones = len(zone_region)
    latitude = np.array([r[2] for r in REGIONS])[zone_region] + rng.normal(0.0, 0.35, zones)
    longitude = np.array([r[3] for r in REGIONS])[zone_region] + rng.normal(0.0, 0.45, zones)
    distance = np.stack([_road_km(n.latitude, n.longitude, latitude, longitude) for n in scenario.nodes.nodes])

    weights = np.array([c.share for c in p.carriers]) * rng.lognormal(0.0, 0.45, (services, regions, carriers))
    for k, carrier in enumerate(p.carriers):
        for s, service in enumerate(SERVICES):
            if service not in carrier.services:
                weights[s, :, k] = 0.0
    codes = [r[0] for r in REGIONS]
    for region, sole in p.sole.items():
        only = np.array([c.name == sole for c in p.carriers])
        weights[:, codes.index(region), :] = np.where(only, 1.0, 0.0)

    abroad = np.array([0.0 if r[1] == "DE" else p.abroad for r in REGIONS])
    transit = (
        np.log(np.array(p.transit_days))[None, :, None]
        + np.array([c.transit for c in p.carriers])[:, None, None]
        + abroad[None, None, :]
        + rng.normal(0.0, p.lane_sigma, (carriers, services, regions))
    )
    roughness = np.array([c.roughness for c in p.carriers])[:, None] + rng.normal(
        0.0, p.lane_roughness, (carriers, regions)
    )
    weeks = len(clock.weekday) // 7 + 1
    # What the shop promises rests on the usual transit of a service to a region, from its nearest node.
    nearest = np.array([distance[:, zone_region == r].min(axis=0).mean() for r in range(regions)])
    usual = np.log(np.array(p.transit_days))[:, None] + abroad + p.per_log_distance * np.log(nearest / 300.0)
    promised = np.ceil(np.exp(usual + p.promise_z * np.array(p.transit_sigma)[:, None])).astype(np.int64)
    return Lanes(
        zone_region=zone_region,
        zone_city=zone_city,
        zone_absence=rng.normal(0.0, scenario.customers.zone_absence_sigma, zones),
        distance_km=distance,
        transit=transit,
        roughness=roughness,
        carrier_week=rng.normal(0.0, p.week_sigma, (carriers, weeks)),
        preference=weights,
        promised_days=promised,
    )


def _road_km(latitude: float, longitude: float, to_latitude: Floats, to_longitude: Floats) -> Floats:
    """Distance by road: the great circle (haversine) and a quarter more, at least 5 km."""
    a, b = np.radians(latitude), np.radians(to_latitude)
    half = np.sin((b - a) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin(np.radians(to_longitude - longitude) / 2) ** 2
    return np.maximum(1.25 * 2 * 6371.0 * np.arcsin(np.sqrt(half)), 5.0)


def _customers(rng: np.random.Generator, scenario: Scenario, lanes: Lanes) -> Customers:
    p = scenario.customers
    n = p.count
    share = np.array([r[4] for r in REGIONS])
    per_zone = share[lanes.zone_region] / np.bincount(lanes.zone_region)[lanes.zone_region]
    per_zone *= rng.lognormal(0.0, 0.5, len(per_zone))
    cumulative = np.cumsum(per_zone) / per_zone.sum()
    zone = np.minimum(np.searchsorted(cumulative, rng.random(n), side="right"), len(per_zone) - 1)
    return Customers(
        activity=np.cumsum(rng.lognormal(0.0, p.activity_sigma, n)),
        zone=zone.astype(np.int64),
        business=rng.random(n) < p.business_share,
        absence=rng.normal(0.0, p.absence_sigma, n),
        address=rng.beta(5.0, 0.9, n),
        habit=rng.lognormal(-0.5 * p.habit_sigma**2, p.habit_sigma, n)
        * np.where(rng.random(n) < p.habitual_share, p.habitual, 1.0),
        payment=pick(rng.random(n), np.array([w for _, w in p.payments])),
        channel=pick(rng.random(n), np.array([w for _, w in p.channels])),
    )
