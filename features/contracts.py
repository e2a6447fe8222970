"""The tables a shop brings, as plain data: columns, keys, kinds, units, bounds and when each is known.

This module is the single source for what a table may hold. The reader (`features.dataset`), the checks
(`training.check`), the HTTP schemas (`serving.service`) and the dataset guide are all derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from features.vocabulary import ARMS, EVENT_KINDS, LABEL_GRADES

KINDS: dict[str, str] = {
    "id": "text that names one thing; compared as it is",
    "code": "text from a small list; the shop's own codes can be mapped in dataset.toml",
    "time": "a moment with a zone (or in the zone dataset.toml names)",
    "number": "a number",
    "flag": "true or false (also 1/0, yes/no)",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: column name.
        kind: a key of `KINDS`.
        help: what it means, for the dataset guide and for error messages.
        required: the table is unusable without it.
        unit: unit of measure, empty if it has none.
        low, high: inclusive bounds of a believable value, None if unbounded.
        codes: the only allowed values; empty where any code is accepted.
    """

    name: str
    kind: str
    help: str
    required: bool = False
    unit: str = ""
    low: float | None = None
    high: float | None = None
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A column whose values must be found in another table's column (empty values are allowed)."""

    column: str
    table: str
    to: str


@dataclass(frozen=True)
class Table:
    """One table: its columns, its key, what it refers to, and when a row of it became known.

    Attributes:
        name: table name, also the file name without its ending.
        help: one sentence.
        columns: all columns with a meaning; others are ignored, and reported.
        key: columns that together name a row once; empty where rows may repeat.
        references: columns that point to other tables.
        known_at: columns to take a row's time of knowledge from, the first that is not empty.
    """

    name: str
    help: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    references: tuple[Reference, ...] = ()
    known_at: tuple[str, ...] = ()

    def __getitem__(self, column: str) -> Column:
        """The column of that name; KeyError if the table has none."""
        for c in self.columns:
            if c.name == column:
                return c
        raise KeyError(f"table {self.name} has no column {column!r}; it has {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(c.name for c in self.columns)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the columns that must be there."""
        return tuple(c.name for c in self.columns if c.required)


def _id(name: str, help: str, required: bool = False) -> Column:
    return Column(name, "id", help, required)


def _code(name: str, help: str, codes: tuple[str, ...] = (), required: bool = False) -> Column:
    return Column(name, "code", help, required, codes=codes)


def _time(name: str, help: str, required: bool = False) -> Column:
    return Column(name, "time", help, required)


def _number(name: str, help: str, unit: str = "", low: float | None = 0.0, high: float | None = None) -> Column:
    return Column(name, "number", help, unit=unit, low=low, high=high)


def _flag(name: str, help: str) -> Column:
    return Column(name, "flag", help)


TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        Table(
            "orders",
            "One row per order a customer placed.",
            (
                _id("order_id", "the order's key", required=True),
                _time("ordered_at", "when it was placed", required=True),
                _id("customer_id", "who ordered; any stable pseudonym, never a name"),
                _code("channel", "where it was sold: web, app, marketplace ..."),
                _code("payment_method", "how it is paid; `cod` is cash on delivery"),
                _flag("is_business", "the customer is a business"),
                _code("destination_country", "country of the address"),
                _code("destination_region", "state, province or region of the address"),
                _code("destination_city", "city of the address"),
                _code("destination_postal", "postal code or delivery zone of the address"),
                _time("promised_from", "start of the delivery window the customer was told"),
                _time("promised_to", "end of the delivery window the customer was told"),
                _number("order_value", "what the order was worth when it was placed", "currency"),
            ),
            key=("order_id",),
            known_at=("ordered_at",),
        ),
        Table(
            "order_lines",
            "One row per product in an order.",
            (
                _id("line_id", "the line's key", required=True),
                _id("order_id", "the order it belongs to", required=True),
                _id("parcel_id", "the parcel it travels in, if known"),
                _id("sku", "the product", required=True),
                _number("quantity", "pieces", "pieces", high=100_000),
                _number("unit_price", "price of one piece before discount", "currency"),
                _number("discount", "discount on the whole line", "currency"),
                _code("variant", "size, colour or other choice"),
            ),
            key=("line_id",),
            references=(Reference("order_id", "orders", "order_id"), Reference("parcel_id", "parcels", "parcel_id")),
        ),
        Table(
            "listings",
            "What the shop said about a product, from a time on; several rows per product where it changed.",
            (
                _id("sku", "the product", required=True),
                _time("known_at", "from when on the listing read so; empty means always"),
                _code("category", "product category"),
                _code("brand", "brand"),
                _number("description_length", "length of the description", "characters", high=1_000_000),
                _number("photo_count", "number of photos", "photos", high=10_000),
                _flag("has_size_guide", "the listing has a size guide"),
                _number("review_count", "number of reviews", "reviews"),
                _number("rating", "average rating", "stars", high=5),
                _number("weight_g", "weight of one piece", "g", high=5_000_000),
                _number("length_mm", "longest side of one piece", "mm", high=30_000),
                _number("width_mm", "middle side of one piece", "mm", high=30_000),
                _number("height_mm", "shortest side of one piece", "mm", high=30_000),
                Column("fragility", "number", "how easily it breaks: 0 cannot break, 4 glass", low=0, high=4),
            ),
            key=("sku", "known_at"),
            known_at=("known_at",),
        ),
        Table(
            "parcels",
            "One row per parcel, as it was known when it was packed.",
            (
                _id("parcel_id", "the parcel's key", required=True),
                _id("order_id", "the order it belongs to", required=True),
                _code("node", "warehouse or station that packed it"),
                _time("packed_at", "when packing was finished; the time of decision"),
                _time("pickup_cutoff_at", "when the carrier collects"),
                _code("carrier", "carrier"),
                _code("service", "the carrier's service"),
                _code("package_type", "which of the shop's packages it was packed in"),
                _number("protection_level", "how well the package protects: 0 bag, 4 the strongest", "level", high=10),
                _number("package_length_mm", "longest outer side", "mm", high=30_000),
                _number("package_width_mm", "middle outer side", "mm", high=30_000),
                _number("package_height_mm", "shortest outer side", "mm", high=30_000),
                _number("weight_g", "weight of the packed parcel", "g", high=5_000_000),
                _number("void_fill_ratio", "share of the empty space that was filled", "share", high=1),
                _code("label_grade", "print quality of the label, A (best) to F", LABEL_GRADES),
                _flag("documents_complete", "all documents are attached"),
                _number(
                    "address_quality", "how complete and checked the address is: 0 unusable, 1 verified", "", high=1
                ),
                _number("distance_km", "distance from the node to the destination", "km", high=25_000),
            ),
            key=("parcel_id",),
            references=(Reference("order_id", "orders", "order_id"),),
            known_at=("packed_at",),
        ),
        Table(
            "events",
            "What happened to a parcel, one row per event.",
            (
                _id("parcel_id", "the parcel", required=True),
                _code("kind", "what happened", tuple(EVENT_KINDS), required=True),
                _time("happened_at", "when it happened", required=True),
                _time("known_at", "when the shop learned of it; empty means at once"),
                _code("reason", "the reason that was given"),
            ),
            key=(),
            references=(Reference("parcel_id", "parcels", "parcel_id"),),
            known_at=("known_at", "happened_at"),
        ),
        Table(
            "returns",
            "What came back, one row per request for a line.",
            (
                _id("line_id", "the order line", required=True),
                _time("requested_at", "when the return was requested", required=True),
                _time("known_at", "when the shop learned of it; empty means at once"),
                _code("reason", "the reason the customer gave"),
                _code("inspected_reason", "the reason found on inspection"),
                _time("inspected_at", "when it was inspected"),
                _number("quantity", "pieces sent back", "pieces", high=100_000),
                _number("refund_value", "what was refunded", "currency"),
            ),
            key=(),
            references=(Reference("line_id", "order_lines", "line_id"),),
            known_at=("known_at", "requested_at"),
        ),
        Table(
            "decisions",
            "What was advised about a parcel and what was done, one row per decision, from the ledger. "
            "It tells who was treated; no feature reads it.",
            (
                _id("decision_id", "the decision's key", required=True),
                _id("parcel_id", "the parcel it was about", required=True),
                _time("decided_at", "the moment of decision", required=True),
                _code("action", "the action with the highest expected net benefit; empty if nothing was worth doing"),
                _code(
                    "arm",
                    "act: it was advised; control: withheld by lot, or (propensity 0) in shadow mode; none: nothing "
                    "was worth doing",
                    ARMS,
                    required=True,
                ),
                _number("propensity", "the chance that the action was advised", "share", high=1),
                _flag("demanded", "a packing rule, the handoff or a protocol asked for it: it was not left to chance"),
                _code("done", "the action really done, as reported; empty if none was or nobody said"),
                _code(
                    "before",
                    "what the action changed, as it was before: package type, share filled, label grade ...",
                ),
                _time("known_at", "when the shop learned what was done"),
                _code("override_reason", "why something else was done than advised"),
                _id("policy", "digest of the policy that decided"),
                _id("bundle", "digest of the bundle whose risks it went by"),
                _number("net_benefit", "expected net benefit of the action", "currency", low=None),
            ),
            key=("decision_id",),
            references=(Reference("parcel_id", "parcels", "parcel_id"),),
            known_at=("decided_at",),
        ),
        Table(
            "changes",
            "What the listing team changed about a product's listing, one row per change; no feature reads it.",
            (
                _id("sku", "the product", required=True),
                _time("changed_at", "when it was changed", required=True),
                _code("what", "what was changed"),
                _time("known_at", "when the shop learned of it; empty means at once"),
            ),
            key=(),
            known_at=("known_at", "changed_at"),
        ),
    )
}

ORDERED_TIMES: tuple[tuple[str, str, str, str], ...] = (
    ("orders", "promised_from", "orders", "promised_to"),
    ("orders", "ordered_at", "orders", "promised_to"),
    ("orders", "ordered_at", "parcels", "packed_at"),
    ("orders", "ordered_at", "events", "happened_at"),
    ("orders", "ordered_at", "returns", "requested_at"),
    ("events", "happened_at", "events", "known_at"),
    ("returns", "requested_at", "returns", "known_at"),
    ("returns", "requested_at", "returns", "inspected_at"),
    ("decisions", "decided_at", "decisions", "known_at"),
    ("changes", "changed_at", "changes", "known_at"),
)
"""(table, column) that may not be after (table, column) of the row it belongs to."""
