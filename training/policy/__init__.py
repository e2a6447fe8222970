"""A first policy for a shop, from what its dataset has; and whether a policy knows what a dataset has.

What things cost, no dataset says: the draft has guesses, marked as such, of an order of magnitude that the value of
the shop's parcels suggests.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from features.contracts import TABLES
from features.dataset import Dataset
from features.settings import Settings
from serving.policy import ANY, Policy

RARE = 20
"""Parcels a package, or a carrier's service on a corridor, must have had to be drafted."""

_HEAD = """\
# What failures cost, what can be done about a parcel and at what price, and the shop's rules of packing.
# Drafted by `doorstep policy init`. Packages, carriers, services, corridors and pickups are as the dataset has them.
# NO DATASET SAYS WHAT THINGS COST: every amount marked "guess" is one, to be replaced. `doorstep policy check` says
# what is wrong, docs/policy.md what each key means. Amounts are in {currency}, without VAT.
"""

_FAILURES = {
    "late": (0.06, 0.0, "goodwill, calls of customers"),
    "failed_attempt": (0.07, 0.0, "another attempt, calls of customers"),
    "damaged": (0.15, 0.9, "reverse leg, handling, goodwill; replacement of the goods"),
    "undelivered": (0.18, 0.3, "reverse leg, handling, sending it again; goods lost for good"),
    "returned": (0.12, 0.1, "of a line: reverse leg, inspection, back to stock; what it lost in value"),
}
"""Target -> cost in median parcel values, share of value, what it is made of."""

NO_VALUE = 50.0
"""What an order is taken to be worth where nothing tells."""

_PACKAGE = 0.004
"""Material of a package in median parcel values, and as much again for each level of protection."""


def draft(dataset: Dataset, order_value: float | None = None) -> str:
    """The text of a first policy.

    Args:
        dataset: any; what it does not have is left out, with a comment.
        order_value: what a usual order is worth, in the shop's currency; the dataset's if absent.

    Returns:
        TOML that `Policy.parse` reads, a comment beside each amount.
    """
    return "\n".join(_lines(dataset, order_value or usual_value(dataset))) + "\n"


def lacking(policy: Policy, dataset: Dataset) -> list[str]:
    """What a dataset has and a policy does not know, in words: such parcels get no advice about it."""
    settings, out = dataset.settings, []
    if settings.currency and settings.currency != policy.currency:
        out.append(f"currency: the policy is in {policy.currency}, the dataset in {settings.currency}")
    parcels = _joined(dataset)
    for name, n in _counts(parcels, "package_type"):
        if name not in policy.packages:
            out.append(f"packages.{name}: {n:,} parcels were packed in it, and the policy does not have it")
    for carrier, service, mine in _services(parcels):
        n = len(mine)
        if (carrier, service or ANY) not in policy.carriers:
            name = f"carriers.{carrier}.{_key(service or ANY)}"
            out.append(f"{name}: {n:,} parcels went with it, and the policy does not have it")
    return out


def unsaid(policy: Policy) -> list[str]:
    """Protocols of which nobody says whether they ask for what a lot withholds, in words."""
    drawn = ", ".join(sorted(a.name for a in policy.actions.values() if a.randomize))
    return [
        f"exceptions.{target}.actions: is missing, and {drawn} is withheld by lot: if a step asks for that, the "
        "control arm gets it all the same; say what the steps ask for, such as "
        'actions = ["notify_customer"], or actions = [] for nothing'
        for target, protocol in policy.exceptions.items()
        if drawn and protocol.actions is None
    ]


def never_offered(policy: Policy) -> list[str]:
    """Actions that no parcel can ever be advised, in words: no two carriers have a service of the same name."""
    carrier, services = policy.actions.get("carrier"), Counter(service for _, service in policy.carriers)
    if carrier is None or carrier.change_service or len(services) < 2 or max(services.values()) > 1:
        return []
    return [
        "actions.carrier: is never offered, as no two carriers have a service of the same name: say change_service = "
        "true to have other services offered too"
    ]


def _lines(dataset: Dataset, value: float | None) -> Iterator[str]:
    settings, parcels = dataset.settings, _joined(dataset)
    currency = settings.currency or "XXX"  # ISO 4217 for no currency
    unit = value or NO_VALUE

    def money(share: float) -> str:
        return _short(share * unit)

    yield _HEAD.format(currency=currency)
    if value is None:
        yield f"# THE DATASET HAS NO VALUES OF ORDERS: amounts are as if one were worth {NO_VALUE:g} {currency}."
        yield "# Draft it again with `doorstep policy init --order-value AMOUNT`.\n"
    yield f"name = {_key(settings.name, bare=False)}"
    named = "" if settings.currency else "             # the dataset names none: replace it"
    yield f"currency = {_key(currency, bare=False)}{named}"
    yield 'salt = "1"                   # another one draws the control arms anew'
    home = _counts(parcels, "destination_country")[:1]
    yield f"home_countries = {json.dumps([c for c, _ in home], ensure_ascii=False)}"
    yield f"least_benefit = {money(0.002):<12} # {currency}: nothing is recommended for less (guess)"
    yield "business_factor = 1.5        # a failure with a business customer costs so many times as much (guess)"
    yield ""
    yield "[weights]                    # 1 counts money as money"
    yield "cost = 1.0"
    yield "speed = 1.0                  # of what fewer late parcels save"
    yield "reliability = 1.0            # of what fewer other failures save"
    yield f"co2e = 0.0                   # {currency} per kg of CO2e"
    yield "\n[station]                    # the packing station's page"
    yield f"least_benefit = {money(0.03):<12} # {currency}: it asks for nothing that is worth less (guess)"
    yield "# shadow_until = 2026-03-01   # until this day it shows nothing and records what it would have said"
    for target, (cost, share, words) in _FAILURES.items():
        yield f"\n[failures.{target}]"
        yield f"cost = {money(cost):<21} # {currency} per event (guess): {words.split(';')[0]}"
        tail = words.split(";")[1].strip() if ";" in words else "nothing of it"
        yield f"share_of_value = {share:<11} # share of the value of the goods (guess): {tail}"
    yield "\n[[tiers]]"
    yield 'name = "standard"'
    yield "from = 0.0"
    yield "\n[[tiers]]"
    yield 'name = "high value"'
    yield f"from = {money(8):<21} # {currency} of goods (guess)"
    yield "factor = 1.2                 # failures cost so many times as much (guess)"
    yield 'handling = "Photograph the closed parcel before it leaves."'
    yield from _packages(dataset, parcels, money, currency)
    yield from _carriers(parcels, settings, money, currency)
    yield from _actions(parcels, money, currency)
    yield from _rules(dataset, parcels)


def _packages(dataset: Dataset, parcels: pd.DataFrame, money: Callable[[float], str], currency: str) -> Iterator[str]:
    if "protection_level" not in parcels or not len(_counts(parcels, "package_type")):
        yield "\n# No packages: the dataset has no package_type with a protection_level."
        return
    goods = _goods(dataset, parcels)
    found = []
    for name, n in _counts(parcels, "package_type"):
        mine = parcels["package_type"] == name
        level = parcels.loc[mine, "protection_level"].median()
        if n < RARE or not np.isfinite(level):
            continue
        found.append((float(level), name, n, mine))
    for level, name, n, mine in sorted(found, key=lambda f: (f[0], f[1])):
        yield f"\n[packages.{_key(name)}]" + f"  # {n:,} parcels"
        yield f"material_cost = {money(_PACKAGE * (1 + level)):<12} # {currency} (guess)"
        yield f"protection_level = {level:<9g} # 0 bag, 4 the strongest"
        yield f"co2e_g = {round(40 * (1 + level)):<19} # g of CO2e (guess)"
        outer = parcels[[f"package_{s}_mm" for s in ("length", "width", "height")]].prod(axis=1, min_count=3)
        factor = (outer / goods["volume"])[mine].median()
        own = (parcels["weight_g"] - goods["weight"])[mine].median()
        if np.isfinite(own) and own > 0:
            yield f"weight_g = {round(own):<17} # g, as parcels weigh more than their goods"
        if np.isfinite(factor) and 1 <= factor <= 100:
            yield f"volume_factor = {factor:<12.3g} # outer volume by the volume of the goods"


def _carriers(parcels: pd.DataFrame, settings: Settings, money: Callable[[float], str], currency: str) -> Iterator[str]:
    if not len(_counts(parcels, "carrier")):
        yield "\n# No carriers: the dataset names none."
        return
    regions: dict[str, set[str]] = {}
    for country, region in set(zip(parcels["destination_country"], parcels["destination_region"], strict=True)):
        regions.setdefault(country, set()).update({region} - {""})
    for carrier, service, mine in _services(parcels):
        if len(mine) < RARE:
            continue
        name = f"carriers.{_key(carrier)}.{_key(service or ANY)}"
        yield f"\n[{name}]  # {len(mine):,} parcels"
        yield f"base_price = {money(0.08):<15} # {currency} per parcel (guess, the same for all)"
        yield f"price_per_kg = {money(0.01):<13} # {currency} per kg of billable weight (guess)"
        yield "dimensional_divisor = 5000   # cm³ billed as a kilogram (guess)"
        yield f"destinations = {json.dumps(sorted(_destinations(mine, regions)), ensure_ascii=False)}"
        pickups = ", ".join(f'{_key(node)} = "{clock}"' for node, clock in _pickups(mine, settings))
        if pickups:
            yield f"pickups = {{ {pickups} }}  # on the clock of {settings.timezone}"


def _services(parcels: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Each carrier and service (empty where there is none), and its parcels."""
    keys = zip(parcels["carrier"], parcels["service"], strict=True)
    for carrier, service in sorted({k for k in keys if k[0]}):
        yield carrier, service, parcels[(parcels["carrier"] == carrier) & (parcels["service"] == service)]


def _destinations(mine: pd.DataFrame, regions: Mapping[str, set[str]]) -> set[str]:
    """Where a carrier's service has gone: whole countries if it has gone to each of their regions."""
    out = set()
    for country in set(mine["destination_country"]):
        there = mine[mine["destination_country"] == country]
        own = {r for r in there["destination_region"] if r}
        if not country:
            out |= {f"{ANY}/{r}" for r in own} or {ANY}
        elif own >= regions[country]:
            out.add(str(country))
        else:
            out |= {f"{country}/{r}" for r in own}
    return out


def _pickups(mine: pd.DataFrame, settings: Settings) -> Iterator[tuple[str, str]]:
    """The usual cut-off at each node, on the shop's clock: that of most parcels."""
    known = mine[mine["pickup_cutoff_at"].notna() & (mine["node"] != "")]
    clock = known["pickup_cutoff_at"].dt.tz_convert(settings.timezone).dt.strftime("%H:%M")
    for node, times in clock.groupby(known["node"], sort=True):
        yield str(node), str(times.value_counts().sort_index(kind="stable").idxmax())


def _actions(parcels: pd.DataFrame, money: Callable[[float], str], currency: str) -> Iterator[str]:
    yield f"\n# What can be done. Costs are {currency} of doing it once, work included, material and freight not."
    yield "# Effects are assumed until a randomized share has measured them."

    known = _known(parcels)

    def action(name: str, cost: float, owner: str, *more: str, **odds: float) -> Iterator[str]:
        yield f"\n[actions.{name}]"
        yield f"cost = {money(cost):<21} # {currency} (guess)"
        yield f'owner = "{owner}"'
        yield "randomize = 0.0              # share withheld at random, to measure the effect"
        yield from more
        for target, ratio in odds.items():
            yield f"[actions.{name}.effects.{target}]"
            yield f"odds_ratio = {ratio:<15} # odds after by odds before (assumed)"
            yield 'source = "assumed"'

    if "protection_level" in known:
        yield from action("package", 0.006, "packing")
    if len(_counts(parcels, "carrier")):
        yield from action(
            "carrier", 0.006, "carrier", "change_service = false       # other carriers' same service only"
        )
    if "void_fill_ratio" in known:
        yield from action(
            "add_fill", 0.004, "packing", "to = 0.9                     # share of empty space filled after it"
        )
    if "label_grade" in known:
        yield from action("fix_label", 0.006, "packing")
    if "documents_complete" in known:
        yield from action("complete_documents", 0.02, "packing")
    if "address_quality" in known:
        yield from action(
            "confirm_address", 0.02, "customer", "to_quality = 0.95            # address quality after it"
        )
    yield from action("notify_customer", 0.004, "customer", failed_attempt=0.75)
    yield from action("pickup_point", 0.02, "customer", failed_attempt=0.4)
    yield from action("hold_next_pickup", 0.03, "fulfilment", late=1.5, failed_attempt=0.9)


def _rules(dataset: Dataset, parcels: pd.DataFrame) -> Iterator[str]:
    yield "\n# The packing specification: a parcel that breaks a rule is told so, whatever its risk."

    def rule(words: str, when: str, require: str) -> Iterator[str]:
        yield "\n[[specification]]"
        yield f'rule = "{words}"'
        if when:
            yield f"when = [{when}]"
        yield f"require = [{require}]"

    known = _known(parcels)
    fragile = "fragility" in dataset.tables.get("listings", ())
    if fragile and "protection_level" in known:
        yield from rule(
            "fragile goods in protection 2 or better",
            '{ field = "fragility", at_least = 3 }',
            '{ field = "protection_level", at_least = 2 }',
        )
    if fragile and "void_fill_ratio" in known:
        yield from rule(
            "fragile goods do not rattle",
            '{ field = "fragility", at_least = 2 }',
            '{ field = "void_fill_ratio", at_least = 0.4 }',
        )
    if "label_grade" in known:
        yield from rule("labels that scan", "", '{ field = "label_grade", at_least = "C" }')
    if "documents_complete" in known and "destination_country" in known:
        yield from rule(
            "documents for abroad", '{ field = "abroad", is = true }', '{ field = "documents_complete", is = true }'
        )
    wanted = {
        "parcels": ("carrier", "service", "weight_g", "label_grade", "documents_complete", "address_quality"),
        "orders": ("destination_country", "destination_region", "destination_postal", "promised_to"),
    }
    columns = [f"{table}.{c}" for table, names in wanted.items() for c in names if c in known]
    yield "\n[handoff]                    # what must be known when the carrier takes over"
    yield f"columns = {json.dumps(columns)}"
    if "address_quality" in known:
        yield "least_address_quality = 0.5"
    for target, at_least, owner, steps, asked in (
        (
            "late",
            0.3,
            "customer",
            ["Tell the customer before the promised day.", "Offer another day or a pickup point."],
            ["notify_customer", "pickup_point"],
        ),
        (
            "failed_attempt",
            0.25,
            "customer",
            ["Ask the customer for a time or a safe place.", "Check the address."],
            ["confirm_address"],
        ),
        (
            "undelivered",
            0.15,
            "order",
            ["Call the customer before it leaves.", "With cash on delivery ask for payment first."],
            [],
        ),
        ("returned", 0.6, "listing", ["Check size and variant against the order.", "Add the care and size card."], []),
    ):
        yield f"\n[exceptions.{target}]"
        yield f"at_least = {at_least:<17} # from this risk on (guess)"
        yield f'owner = "{owner}"'
        yield f"steps = {json.dumps(steps, ensure_ascii=False)}"
        yield f"actions = {json.dumps(asked):<18} # what the steps ask for is not withheld by lot"


def _joined(dataset: Dataset) -> pd.DataFrame:
    """Parcels with their order's columns; every column of both tables, empty where the shop does not have it."""
    tables = dataset.tables
    parcels = tables.get("parcels", pd.DataFrame({"parcel_id": [], "order_id": []}, dtype=object))
    joined = parcels.merge(tables["orders"], on="order_id", how="left")
    for table in ("parcels", "orders"):
        for column in TABLES[table].columns:
            if column.kind in ("code", "id"):
                given = joined.get(column.name, pd.Series(index=joined.index, dtype=object))
                joined[column.name] = given.astype(object).where(given.notna(), "")
            elif column.name not in joined:
                empty = "datetime64[us, UTC]" if column.kind == "time" else np.float64
                joined[column.name] = pd.Series(index=joined.index, dtype=empty)
    return joined


def _known(parcels: pd.DataFrame) -> set[str]:
    """Columns that some parcel has a value of."""
    return {str(c) for c in parcels if (parcels[c].notna() & (parcels[c] != "")).any()}


def _goods(dataset: Dataset, parcels: pd.DataFrame) -> pd.DataFrame:
    """Volume (mm³) and weight (g) of each parcel's goods by the latest listings, NaN where not known."""
    lines, listings = dataset.tables.get("order_lines"), dataset.tables.get("listings")
    needed = {"length_mm", "width_mm", "height_mm", "weight_g"}
    if lines is None or listings is None or "parcel_id" not in lines or not needed <= set(listings):
        return pd.DataFrame({"volume": np.nan, "weight": np.nan}, index=parcels.index)
    by = listings.sort_values("known_at") if "known_at" in listings else listings
    latest = by.drop_duplicates("sku", keep="last").set_index("sku")
    at = latest.reindex(lines["sku"])
    pieces = lines["quantity"].fillna(1.0).to_numpy() if "quantity" in lines else np.ones(len(lines))
    each = pd.DataFrame(
        {
            "volume": at[["length_mm", "width_mm", "height_mm"]].prod(axis=1, skipna=False).to_numpy() * pieces,
            "weight": at["weight_g"].to_numpy() * pieces,
        }
    )
    each[each.isna().any(axis=1)] = np.nan
    known = each.groupby(lines["parcel_id"].to_numpy())
    total = known.sum().where(known.count() == known.size().to_numpy()[:, None])
    return total.reindex(parcels["parcel_id"]).set_axis(parcels.index)


def _counts(parcels: pd.DataFrame, column: str) -> list[tuple[str, int]]:
    """The codes of a column and how many parcels have each, most first."""
    found = parcels[column][parcels[column] != ""].value_counts()
    return sorted(((str(k), int(n)) for k, n in found.items()), key=lambda c: (-c[1], c[0]))


def usual_value(dataset: Dataset) -> float | None:
    """Middle value of an order, what guesses of costs are made from: as given, else by its lines; None if unknown."""
    orders, lines = dataset.tables["orders"], dataset.tables.get("order_lines")
    middle = float(orders["order_value"].median()) if "order_value" in orders else math.nan
    if not middle > 0 and lines is not None and "unit_price" in lines:
        pieces = lines["quantity"].fillna(1.0) if "quantity" in lines else 1.0
        off = lines["discount"].fillna(0.0) if "discount" in lines else 0.0
        middle = float((lines["unit_price"] * pieces - off).groupby(lines["order_id"]).sum(min_count=1).median())
    return middle if middle > 0 else None


def _short(value: float) -> str:
    """A guess: two significant digits, never more than two after the point unless it is small."""
    if value <= 0:
        return "0.0"
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return f"{rounded:.{max(digits, 2 if rounded < 100 else 0, 1)}f}"


def _key(name: str, bare: bool = True) -> str:
    """A TOML key or text: bare where it may be, else quoted."""
    plain = bare and name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain else json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
