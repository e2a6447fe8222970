"""What a policy file may hold: every section and key, with its unit, its bounds and what it means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from features.contracts import TABLES
from features.vocabulary import TEAMS

ACTIONS: dict[str, str] = {
    "package": "pack it in another package; the keys are `package:<package_type>`",
    "carrier": "give it to another carrier or service; the keys are `carrier:<carrier>/<service>`",
    "add_fill": "fill the empty space",
    "fix_label": "print the label again",
    "complete_documents": "attach the missing documents",
    "confirm_address": "have the customer confirm the address",
    "notify_customer": "tell the customer when it comes",
    "pickup_point": "offer a pickup point",
    "hold_next_pickup": "hold it for the next pickup",
}
"""Everything that can be done about a parcel."""

ANY = "*"
"""Stands for a service where the shop has none, and for every country in `destinations`."""

SOURCES = ("assumed", "experiment")

FIELDS: dict[str, str] = {
    "fragility": "of the most fragile product in the parcel, 0 to 4",
    "value": "of the goods in the parcel",
    "abroad": "the destination's country is none of `home_countries`",
    **{
        c.name: c.help
        for table in ("parcels", "orders")
        for c in TABLES[table].columns
        if c.kind in ("number", "flag", "code")
    },
}
"""What a rule of `[[specification]]` may read of a parcel: three quantities made from it, and columns as given."""


@dataclass(frozen=True)
class Key:
    """One key of a policy.

    Attributes:
        kind: `number`, `whole`, `text`, `texts`, `flag`, `date`, `clocks` or `conditions`.
        help: what it means.
        unit: unit of measure; `currency` stands for the policy's.
        low, high: inclusive bounds.
        required: there is no policy without it.
        default: what holds if it is absent, None: nothing.
        only: the actions that may have it; empty: all.
    """

    kind: str
    help: str
    unit: str = ""
    low: float = 0.0
    high: float = math.inf
    required: bool = False
    default: Any = None
    only: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What it may hold, in words."""
        of = f" in {self.unit}" if self.unit else ""
        above = (
            f"from {self.low:,.15g} to {self.high:,.15g}" if self.high < math.inf else f"of {self.low:,.15g} or more"
        )
        return {
            "number": f"a number{of}, {above}",
            "whole": f"a whole number{of}, {above}",
            "text": "text in quotes",
            "texts": 'a list of texts, such as ["DE", "AT"]',
            "flag": "true or false",
            "date": "a day without quotes, such as 2026-03-01",
            "clocks": 'a table of node = "HH:MM" on the shop\'s clock',
            "conditions": 'a list of conditions, such as [{ field = "fragility", at_least = 3 }]; each has a field and '
            f"one of {', '.join(OPERATORS)}",
        }[self.kind]


OPERATORS: dict[str, str] = {
    "at_least": "number",
    "at_most": "number",
    "is": "number, text or flag",
    "one_of": "list of texts",
}
"""How a rule compares. Label grades are compared as grades: `at_least = "B"` is met by A and B."""

_PRICE = "currency"

SECTIONS: dict[str, dict[str, Key]] = {
    "": {
        "name": Key("text", "what the policy is called", default="policy"),
        "currency": Key("text", "the one currency of all amounts, as in dataset.toml", required=True),
        "salt": Key(
            "text",
            "decides with the parcel's id who is in the control arm; another salt draws anew",
            default="doorstep",
        ),
        "home_countries": Key(
            "texts", "destination countries that are not abroad; empty: nothing is abroad", default=()
        ),
        "least_benefit": Key(
            "number", "nothing is recommended for less expected net benefit than this", _PRICE, default=0.0
        ),
        "business_factor": Key("number", "what failures cost with a business customer, as a multiple", default=1.0),
    },
    "weights": {
        "cost": Key("number", "of the cost of an action in its net benefit", default=1.0),
        "speed": Key("number", "of what it saves by fewer late parcels", default=1.0),
        "reliability": Key("number", "of what it saves of all other failures", default=1.0),
        "co2e": Key(
            "number", "price of a kilogram of CO2e that an action adds or saves", "currency per kg", default=0.0
        ),
    },
    "failures.<target>": {
        "cost": Key(
            "number",
            "of one event (of one line for `returned`), whatever the goods are worth: second attempt, reverse leg, "
            "handling, goodwill",
            _PRICE,
            required=True,
        ),
        "share_of_value": Key(
            "number",
            "what it costs besides, as a share of the value of the goods (of the line for `returned`): replacement, "
            "write-off; above 1 where replacing costs more than the price",
            "share",
            high=3.0,
            required=True,
        ),
    },
    "tiers": {
        "name": Key("text", "what answers call the tier", required=True),
        "from": Key("number", "parcels worth so much or more, up to the next tier", _PRICE, required=True),
        "factor": Key("number", "what failures cost here, as a multiple", default=1.0),
        "least_protection": Key("number", "no weaker package is allowed here", "level", high=10.0),
        "handling": Key("text", "what the packer does with such a parcel", default=""),
    },
    "packages.<package_type>": {
        "material_cost": Key("number", "of one package with its closure, without filling", _PRICE, required=True),
        "protection_level": Key("number", "as in the column of `parcels`", "level", high=10.0, required=True),
        "co2e_g": Key("number", "CO2e of making and disposing of it", "g", default=0.0),
        "weight_g": Key("number", "what it weighs empty", "g"),
        "volume_factor": Key(
            "number",
            "for a package of many sizes: its outer volume by the volume of the goods, as is usual; another package's "
            "sides are the parcel's own, scaled by the cube root of the two factors",
            "times",
            low=1.0,
            high=100.0,
        ),
        "length_mm": Key("number", "for a package of one size: its longest outer side", "mm", low=1.0, high=30_000.0),
        "width_mm": Key("number", "its middle outer side", "mm", low=1.0, high=30_000.0),
        "height_mm": Key("number", "its shortest outer side", "mm", low=1.0, high=30_000.0),
        "max_weight_g": Key("number", "it holds a parcel of at most this weight", "g", low=1.0),
    },
    "carriers.<carrier>.<service>": {
        "base_price": Key("number", "of a parcel", _PRICE, required=True),
        "price_per_kg": Key("number", "of a kilogram of billable weight", "currency per kg", required=True),
        "dimensional_divisor": Key(
            "number",
            "cubic centimetres that are billed as a kilogram; billable is the larger of weight and dimensional weight",
            "cm³ per kg",
            low=500.0,
            high=20_000.0,
            required=True,
        ),
        "destinations": Key(
            "texts", 'where it may be used: "DE" a whole country, "AT/Tirol" a region, "*" everywhere', required=True
        ),
        "co2e_g_per_kg_km": Key(
            "number", "CO2e of carriage, by parcel weight and distance", "g per kg and km", high=10.0
        ),
        "pickups": Key("clocks", "when it collects from each node, if another cut-off comes with the carrier"),
        "max_weight_g": Key("number", "it takes a parcel of at most this weight", "g", low=1.0),
        "max_length_mm": Key("number", "it takes a parcel of at most this longest side", "mm", low=1.0),
    },
    "actions.<action>": {
        "cost": Key("number", "of doing it once, besides material and freight", _PRICE, required=True),
        "owner": Key("text", f"the team that does it: {', '.join(TEAMS)}", required=True),
        "capacity_per_day": Key(
            "whole", "how often it can be done in a day; absent: as often as it is worth it", "times"
        ),
        "least_benefit": Key(
            "number",
            "not recommended for less than this; keeps the capacity, `doorstep policy diff` says which is enough; "
            "absent: that of the whole policy",
            _PRICE,
        ),
        "randomize": Key(
            "number",
            "share of the parcels it is worth it for that do not get it, to measure what it does; none of those for "
            "which a packing rule, the handoff or a protocol asks for it, so 0 for `complete_documents`: the handoff "
            "asks for missing documents of every parcel",
            "share",
            high=0.9,
            default=0.0,
        ),
        "primary": Key(
            "text",
            "the target that says whether it works, declared before the first parcel is withheld; "
            "absent: the usual one of its kind",
        ),
        "to": Key("number", "share of empty space that is filled after it", "share", high=1.0, only=("add_fill",)),
        "to_quality": Key("number", "address quality after it", "", high=1.0, only=("confirm_address",)),
        "change_service": Key(
            "flag", "another service is offered too, not only the same one of others", default=False, only=("carrier",)
        ),
    },
    "actions.<action>.effects.<target>": {
        "odds_ratio": Key(
            "number", "odds of the failure after the action by those before", "", low=0.01, high=100.0, required=True
        ),
        "source": Key("text", "`assumed`, or `experiment` where a randomized share has measured it", required=True),
        "low": Key("number", "lower end of the 95 % interval; `assumed`: the least you would believe", "", high=100.0),
        "high": Key(
            "number", "upper end of the 95 % interval; `assumed`: the most you would believe", "", high=10_000.0
        ),
    },
    "specification": {
        "rule": Key("text", "the rule in a person's words", required=True),
        "when": Key("conditions", "it holds where all of these do; absent: always", default=()),
        "require": Key("conditions", "all of these must be met", required=True),
    },
    "handoff": {
        "columns": Key("texts", "what must be known when the parcel is handed over, as `table.column`", default=()),
        "least_address_quality": Key("number", "an address below this counts as incomplete", "", high=1.0, default=0.0),
    },
    "station": {
        "shadow_until": Key(
            "date",
            "until this day, on the shop's clock, the packing station shows nothing and what it would have said is "
            "recorded; from this day on it shows",
        ),
        "least_benefit": Key(
            "number",
            "the station asks for nothing that is expected to be worth less: whoever is interrupted for little stops "
            "reading",
            _PRICE,
            default=0.0,
        ),
    },
    "exceptions.<target>": {
        "at_least": Key("number", "the protocol is called for from this risk on", "share", high=1.0, required=True),
        "owner": Key("text", f"the team that carries it out: {', '.join(TEAMS)}", required=True),
        "steps": Key("texts", "what to do, in order", required=True),
        "actions": Key(
            "texts",
            "the actions that the steps ask for, by their keys or kinds; [] if they ask for none. Where the protocol "
            "is called for, these are not left to chance",
        ),
    },
}
"""Every section and key of a policy. `tiers` and `specification` are lists, written `[[tiers]]`."""
