"""Every number of the simulated shop, in one place: who works there, how strong each cause is, what has gone wrong.

The equations that use them are in `training.world.equations`, the things they describe are drawn in
`training.world.shop` and `training.world.decisions`. Nothing here computes anything. A scenario is a file that says
only what differs from these numbers, see `training.world.scenarios`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

RETURN_REASONS: tuple[str, ...] = (
    "wrong_size",
    "not_as_described",
    "defect",
    "damaged",
    "late",
    "changed_mind",
    "wrong_item",
)
"""True reasons of a return, in the order of every array that has one entry per reason."""

PACKAGE_TYPES: tuple[str, ...] = ("bag", "padded_mailer", "light_carton", "double_wall_carton", "foam_box")
"""The shop's packages; the position is the protection level, 0 the weakest."""

SERVICES: tuple[str, ...] = ("economy", "standard", "express")
SHIFTS: tuple[str, ...] = ("early", "late")


@dataclass(frozen=True)
class FaultKind:
    """A way in which a shop can go wrong.

    Attributes:
        team: the owner team that could mend it.
        targets: what it makes worse.
        unit: what `Fault.effect` is measured in.
        columns: columns of the tables by which a place may be named; at least one of them must be.
        most: the largest effect that makes sense.
    """

    team: str
    targets: tuple[str, ...]
    unit: str
    columns: tuple[str, ...]
    most: float


FAULT_KINDS: dict[str, FaultKind] = {
    "corridor": FaultKind(
        "carrier",
        ("late", "damaged"),
        "log of the transit time; twice that in log-odds of damage",
        ("carrier", "destination_region", "service"),
        1.5,
    ),
    "skips": FaultKind(
        "carrier",
        ("failed_attempt", "undelivered"),
        "chance that the driver passes by and reports that nobody was in",
        ("carrier", "destination_region", "service"),
        0.9,
    ),
    "printer": FaultKind("packing", ("late", "undelivered"), "latent print quality lost", ("node", "shift"), 5.0),
    "pickup": FaultKind(
        "fulfilment", ("late",), "hours by which the carrier collects earlier", ("node", "carrier"), 10.0
    ),
    "fill": FaultKind("packing", ("damaged", "returned"), "log-odds of the void fill lost", ("node",), 5.0),
    "runs_small": FaultKind("listing", ("returned",), "intensity of returns for size", ("brand", "category"), 3.0),
    "misleads": FaultKind("listing", ("returned",), "accuracy of the listing lost, of 1", ("brand", "category"), 1.0),
}
"""What can be planted. Each is read by one equation, or by one step of `training.world.decisions`."""


@dataclass(frozen=True)
class Fault:
    """Something that has gone wrong in the shop, at a known place, from a known day on.

    Attributes:
        name: short name.
        kind: one of `FAULT_KINDS`.
        words: what happened, for a person.
        where: column of the tables -> the value that meets the fault (all of them together).
        since: local day from which on it holds.
        effect: its strength, in the unit of its kind.
    """

    name: str
    kind: str
    words: str
    where: dict[str, str]
    since: date
    effect: float

    @property
    def team(self) -> str:
        """The owner team that could mend it."""
        return FAULT_KINDS[self.kind].team

    @property
    def targets(self) -> tuple[str, ...]:
        """What it makes worse; the first is what shows it best."""
        return FAULT_KINDS[self.kind].targets


PLANTED_FAULTS: tuple[Fault, ...] = (
    Fault(
        "bad_corridor",
        "corridor",
        "corvus closed its hub on the way to Saxony: parcels take longer and are thrown about",
        {"carrier": "corvus", "destination_region": "DE-SN"},
        date(2025, 5, 12),
        0.55,
    ),
    Fault(
        "worn_printer",
        "printer",
        "the label printer of the late shift in Leipzig is worn: codes do not scan and are sorted by hand",
        {"node": "leipzig", "shift": "late"},
        date(2025, 4, 7),
        2.2,
    ),
    Fault(
        "early_pickup",
        "pickup",
        "borea collects at noon in Munich, picking still works to the evening: parcels miss the truck",
        {"node": "munich", "carrier": "borea"},
        date(2025, 6, 2),
        5.5,
    ),
    Fault(
        "short_fill",
        "fill",
        "Dortmund saves on void fill: goods knock about in the box",
        {"node": "dortmund"},
        date(2025, 7, 1),
        1.5,
    ),
    Fault(
        "small_last",
        "runs_small",
        "kestrel shoes come from a new last and run small, the listing does not say so",
        {"brand": "kestrel", "category": "shoes"},
        date(2025, 5, 5),
        0.35,
    ),
)
"""What is wrong in the default shop: the answers that its diagnosis should find. `since` is compared with the local day
of `packed_at` (`ordered_at` for a listing), `shift` is read off its hour: early until 14:00, late after."""


@dataclass(frozen=True)
class Calendar:
    """The shop's year. It does not depend on how many parcels are drawn.

    Attributes:
        first_day, extracted_on: orders from the first day on; what was not known when `extracted_on` began (local
            midnight) is not in the tables.
        timezone: the shop's zone.
        holidays: days on which nobody packs, collects or delivers; nor does anybody on Sundays.
        opens, closes: working hours of the warehouses.
        peaks: (first day, last day, orders as a multiple of a normal day).
        weekdays: orders by day of the week from Monday on, as a multiple.
        growth: orders at the end of the year over orders at its start.
    """

    first_day: date = date(2025, 1, 1)
    extracted_on: date = date(2026, 1, 1)
    timezone: str = "Europe/Berlin"
    holidays: tuple[date, ...] = (
        date(2025, 1, 1),
        date(2025, 4, 18),
        date(2025, 4, 21),
        date(2025, 5, 1),
        date(2025, 5, 29),
        date(2025, 6, 9),
        date(2025, 10, 3),
        date(2025, 12, 25),
        date(2025, 12, 26),
        date(2026, 1, 1),
    )
    opens: int = 6
    closes: int = 22
    peaks: tuple[tuple[date, date, float], ...] = (
        (date(2025, 3, 24), date(2025, 4, 5), 1.5),
        (date(2025, 7, 7), date(2025, 7, 13), 1.8),
        (date(2025, 11, 20), date(2025, 12, 20), 1.9),
    )
    weekdays: tuple[float, ...] = (1.12, 1.02, 0.98, 0.96, 0.92, 0.9, 1.1)
    growth: float = 1.25


@dataclass(frozen=True)
class Category:
    """A product category: its share of sales, its goods, and how readily they come back for each cause.

    `size`, `mismatch`, `defect` and `mind` are intensities of a return per delivered line of an average product:
    the chance is 1 - exp(-their sum).
    """

    name: str
    share: float
    price: float
    weight_g: float
    litres: float
    fragility: float
    size: float
    mismatch: float
    defect: float
    mind: float
    variants: tuple[str, ...] = ()
    leading_brand: str = "aurel"


_LETTERS = ("XS", "S", "M", "L", "XL")
_EU_SHOES = tuple(str(n) for n in range(37, 46))
_COLOURS = ("black", "white", "grey", "blue", "green")


@dataclass(frozen=True)
class Products:
    """The range: how many products, how unequal, how well described.

    Attributes:
        count: products over the whole year; `new_share` of them come into the range during it.
        popularity_sigma: sigma of the log-normal share of sales; 1.7 gives the top tenth about 70 %.
        revised_share: share of listings that are rewritten once during the year, which makes them better.
        size_spread, defect_spread: sigma of the log-normal with which products run off their size and break down.
    """

    count: int = 1200
    new_share: float = 0.3
    popularity_sigma: float = 1.7
    revised_share: float = 0.2
    size_spread: float = 0.7
    defect_spread: float = 0.8
    size_guide_share: float = 0.6
    leading_share: float = 0.3
    """Share of a category's products that are of its leading brand."""
    brands: tuple[str, ...] = ("kestrel", "nordhem", "aurel", "pinewood", "solano", "tarn", "velia", "wexford")
    categories: tuple[Category, ...] = (
        Category("apparel", 0.22, 38, 420, 3, 0.0, 0.15, 0.055, 0.012, 0.09, _LETTERS),
        Category("shoes", 0.12, 75, 950, 9, 0.3, 0.11, 0.045, 0.012, 0.07, _EU_SHOES, "kestrel"),
        Category("electronics", 0.12, 110, 900, 4, 2.4, 0.0, 0.03, 0.035, 0.035, _COLOURS[:3]),
        Category("kitchen", 0.11, 34, 1600, 6, 2.9, 0.0, 0.02, 0.014, 0.025),
        Category("decor", 0.09, 29, 1300, 8, 2.7, 0.0, 0.05, 0.010, 0.045, _COLOURS),
        Category("beauty", 0.10, 22, 260, 0.6, 1.6, 0.0, 0.015, 0.008, 0.020),
        Category("books", 0.09, 17, 480, 1.2, 0.2, 0.0, 0.010, 0.007, 0.025),
        Category("toys", 0.08, 30, 850, 6, 1.1, 0.0, 0.025, 0.018, 0.030),
        Category("sports", 0.05, 46, 1500, 9, 0.8, 0.06, 0.03, 0.016, 0.045, _LETTERS[1:]),
        Category("furniture", 0.02, 129, 8500, 48, 1.7, 0.0, 0.06, 0.030, 0.060, _COLOURS[:3]),
    )


@dataclass(frozen=True)
class Node:
    """A warehouse.

    Attributes:
        pick_hours: median working hours from order to packed without a queue.
        capacity: what it can pack in a day over what an average day brings it.
        label_score: mean of the latent print quality; 0 is on the edge of grade B to C.
        documents: share of parcels with all papers attached.
        overpacking: habit of taking a stronger (or weaker) package than usual, in levels.
        void_fill: mean of the latent (log-odds) share of empty space that is filled.
        wrong_item: picking errors, intensity per line.
        leans_to, lean: a carrier that gets `lean` times its usual share here.
    """

    name: str
    latitude: float
    longitude: float
    pick_hours: float
    capacity: float
    label_score: float
    documents: float
    overpacking: float
    void_fill: float
    wrong_item: float
    leans_to: str = ""
    lean: float = 1.0


@dataclass(frozen=True)
class Nodes:
    """The warehouses and how work goes through them."""

    nodes: tuple[Node, ...] = (
        Node("hamburg", 53.55, 10.0, 3.0, 1.26, 2.1, 0.97, 0.0, 1.1, 0.004),
        Node("leipzig", 51.34, 12.37, 3.4, 1.21, 1.6, 0.95, 0.2, 0.8, 0.006),
        Node("dortmund", 51.51, 7.47, 2.7, 1.24, 1.9, 0.97, -0.3, 0.9, 0.005),
        Node("munich", 48.14, 11.58, 3.7, 1.20, 1.7, 0.93, 0.1, 0.7, 0.010),
    )
    peak_staff: float = 0.84
    """Temporary hands: in a peak, capacity grows to this share of the peak's own multiple."""
    longest_queue_days: float = 3.0
    nearest_km: float = 170.0
    """The nearest node packs; one `nearest_km` further away has 1/e of its chance."""
    pick_sigma: float = 0.6
    express_priority: float = 0.55
    planned_hours: float = 8.0
    """Working hours the shop plans from order to packed; the pickup a parcel is meant for follows from it."""
    cutoff_hours: tuple[float, float] = (16.0, 19.0)
    staging_minutes: tuple[float, float] = (10.0, 9.0)
    """A parcel packed this many minutes before the pickup has an even chance to miss the truck, and the spread."""
    late_shift_label: float = -0.35
    backlog_label: float = -0.5
    backlog_fill: float = -0.45


@dataclass(frozen=True)
class Packing:
    """The packers' habit: what makes them take a stronger package. It is why boxes look guilty of breakage."""

    level_zero: float = -0.2
    per_fragility: float = 0.75
    per_log_price: float = 0.22
    per_log_litres: float = 0.25
    noise: float = 0.85
    fill_noise: float = 1.1


@dataclass(frozen=True)
class Carrier:
    """A carrier. Transit and attempts are log and log-odds against an average one; so is roughness.

    Attributes:
        notifies: share of customers who are told in advance.
        scans_late: share of scans that reach the shop days later.
        skips: chance per attempt that the driver passes by, and reports that nobody was in.
    """

    name: str
    services: tuple[str, ...]
    share: float
    transit: float
    roughness: float
    loss: float
    attempts: float
    notifies: float
    scans_late: float
    skips: float = 0.0


@dataclass(frozen=True)
class Carriers:
    """The carriers, their lanes, and what the shop promises on the strength of them."""

    carriers: tuple[Carrier, ...] = (
        Carrier("alba", ("economy", "standard", "express"), 0.36, -0.05, -0.25, -0.2, -0.15, 0.85, 0.02),
        Carrier("borea", ("economy", "standard"), 0.26, 0.0, 0.0, 0.0, 0.0, 0.5, 0.03),
        Carrier("corvus", ("economy", "standard", "express"), 0.26, 0.06, 0.3, 0.35, 0.05, 0.3, 0.05, 0.012),
        Carrier("dorado", ("standard", "express"), 0.12, -0.1, 0.05, -0.1, 0.1, 0.7, 0.02),
    )
    sole: dict[str, str] = field(default_factory=lambda: {"CH": "alba"})
    """Regions that one carrier alone delivers to."""
    service_share: tuple[float, ...] = (0.18, 0.68, 0.14)
    transit_days: tuple[float, ...] = (2.2, 1.5, 0.75)
    """Median working days at 300 km, by service."""
    per_log_distance: float = 0.22
    abroad: float = 0.35
    lane_sigma: float = 0.10
    week_sigma: float = 0.06
    peak_transit: float = 0.12
    transit_sigma: tuple[float, ...] = (0.46, 0.44, 0.48)
    longest_days: int = 11
    """No parcel that arrives takes more working days in the network, so that lost-after is a safe rule."""
    promise_z: float = 1.7
    promise_peak_days: int = 1
    lane_roughness: float = 0.35
    grade_transit: tuple[float, ...] = (0.0, 0.02, 0.10, 0.28, 0.55)
    """Longer transit by label grade A to F: a code that does not scan is sorted by hand."""
    documents_transit: float = 0.6
    """Longer transit abroad when papers are missing."""


@dataclass(frozen=True)
class Customers:
    """Who orders: where they live, how often nobody is there, how they pay, who sends back by habit."""

    count: int = 50_000
    activity_sigma: float = 1.0
    business_share: float = 0.08
    habitual_share: float = 0.06
    habitual: float = 3.0
    """A habitual returner's multiple of the intensity to send back."""
    habit_sigma: float = 0.45
    absence_sigma: float = 0.3
    zone_absence_sigma: float = 0.55
    address_noise: float = 0.05
    payments: tuple[tuple[str, float], ...] = (("card", 0.34), ("wallet", 0.32), ("invoice", 0.22), ("cod", 0.12))
    channels: tuple[tuple[str, float], ...] = (("web", 0.5), ("app", 0.32), ("marketplace", 0.18))
    bracketing: float = 0.35
    """Chance that a second line of a sized product is the same product in another size."""


@dataclass(frozen=True)
class Outcomes:
    """Strength of each cause of an outcome: log-odds, unless said otherwise."""

    damage_zero: float = -5.5
    damage_fragility: float = 0.95
    damage_protection: float = -0.22
    damage_protection_fragility: float = -0.10
    damage_void: float = 0.30
    damage_void_fragility: float = 0.45
    damage_log_distance: float = 0.25
    damage_log_weight: float = 0.18
    damage_roughness: float = 0.9
    damage_corridor: float = 2.0
    """What a bad corridor's handling adds to damage, per unit of its longer transit."""
    carrier_sees_damage: float = 0.2

    absent_zero: float = -3.6
    absent_address: float = 3.2
    """Per unit of address quality that lacks to 1."""
    absent_cod: float = 0.65
    absent_business: float = -0.9
    absent_notified: float = -0.65
    absent_bulky: float = 0.30
    absent_again: tuple[float, float] = (1.2, 1.5)
    """What a first and a second failure add to the next one."""

    loss_zero: float = -6.1
    loss_log_value: float = 0.25
    loss_grade: tuple[float, ...] = (0.0, 0.1, 0.4, 0.9, 1.6)
    loss_small: float = 0.45
    loss_abroad: float = 0.4
    stuck_share: float = 0.25
    """Share of lost parcels that nobody ever declares lost."""

    refuse_prepaid: float = -6.6
    refuse_cod: float = -3.9
    refuse_log_value: float = 0.35
    refuse_habit: float = 0.5
    refuse_damaged: float = 0.12
    """Chance that a parcel damaged on the way is refused for it."""

    return_damaged: float = 1.0
    """Intensity that damage adds on a line of fragility 2."""
    return_late: float = 0.07
    return_guide: float = 0.62
    """A size guide's multiple of the size intensity."""
    return_bracketed: float = 0.75
    return_mismatch: float = 3.2
    """Log of the mismatch intensity per unit of listing accuracy that lacks to 0.7."""
    return_invoice: float = 1.35
    return_business: float = 0.5
    return_log_price: float = 0.15
    delay_days: tuple[float, ...] = (6.0, 7.0, 11.0, 2.5, 3.0, 10.0, 3.0)
    """Mean days from delivery to the request, by reason; all within the window."""
    tail_share: float = 0.02
    tail_days: float = 15.0
    """Share of the requests that come after the window, within so many days."""
    stated_truly: float = 0.74
    stated_nothing: float = 0.04
    free_reasons: tuple[float, ...] = (0.30, 0.34, 0.18, 0.06, 0.02, 0.08, 0.02)
    """What is stated when the true reason is not: mostly what sends back free of charge."""
    inspected_share: float = 0.4
    inspected_truly: float = 0.94


@dataclass(frozen=True)
class Knowledge:
    """When the shop learns of what has happened."""

    scan_hours: float = 2.0
    late_scan_days: float = 4.0
    report_hours: float = 14.0
    return_hours: float = 5.0
    inspection_days: float = 9.0


@dataclass(frozen=True)
class Scenario:
    """A whole simulated shop. Same scenario and seed, same shop.

    Attributes:
        name: short name.
        words: what is special about it, in a sentence.
        return_window_days, lost_after_days: the shop's rules, as in `dataset.toml`.
    """

    name: str = "plain"
    words: str = "an ordinary shop, with one fault of each of five kinds planted in the course of the year"
    calendar: Calendar = field(default_factory=Calendar)
    products: Products = field(default_factory=Products)
    nodes: Nodes = field(default_factory=Nodes)
    packing: Packing = field(default_factory=Packing)
    carriers: Carriers = field(default_factory=Carriers)
    customers: Customers = field(default_factory=Customers)
    outcomes: Outcomes = field(default_factory=Outcomes)
    knowledge: Knowledge = field(default_factory=Knowledge)
    faults: tuple[Fault, ...] = PLANTED_FAULTS
    return_window_days: int = 30
    lost_after_days: int = 21
    currency: str = "EUR"

    def faults_of(self, kind: str) -> tuple[Fault, ...]:
        """The faults of a kind, none or several."""
        return tuple(f for f in self.faults if f.kind == kind)
