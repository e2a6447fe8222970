"""From a policy file to a `Policy`, with everything that is wrong in it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from features.contracts import TABLES
from features.settings import Problem, UnusableError, suggestion
from features.vocabulary import LABEL_GRADES, TARGETS, TEAMS
from serving.policy.keys import ACTIONS, FIELDS, OPERATORS, SECTIONS, SOURCES, Key
from serving.policy.parts import (
    Action,
    Condition,
    Effect,
    Failure,
    Package,
    Protocol,
    Rule,
    Tariff,
    Tier,
    Weights,
)

_FLAGS = {"abroad", *(c.name for t in ("parcels", "orders") for c in TABLES[t].columns if c.kind == "flag")}
_CODES = {c.name for t in ("parcels", "orders") for c in TABLES[t].columns if c.kind == "code"}


class PolicyError(UnusableError):
    """A policy cannot be used; problems are in the order of the sections."""

    what = "the policy"


@dataclass(frozen=True, eq=False)
class Policy:
    """A shop's policy, see `SECTIONS` for what each part means. Two are the same if their digests are.

    Attributes:
        tiers: by value, lowest first; may be empty.
        packages: by name, weakest first.
        carriers: by carrier and service.
        shadow_until: the first day on which the packing station shows what it says; None: it does.
        station_least_benefit: the station recommends nothing for less.
        actions: by name; a full key such as `package:foam_box` has what it does not say from its kind, but for effects.
        document: what the file said.
    """

    name: str
    currency: str
    salt: str
    home_countries: tuple[str, ...]
    least_benefit: float
    business_factor: float
    weights: Weights
    failures: Mapping[str, Failure]
    tiers: tuple[Tier, ...]
    packages: Mapping[str, Package]
    carriers: Mapping[tuple[str, str], Tariff]
    actions: Mapping[str, Action]
    specification: tuple[Rule, ...]
    handoff: tuple[str, ...]
    least_address_quality: float
    exceptions: Mapping[str, Protocol]
    shadow_until: date | None
    station_least_benefit: float
    document: Mapping[str, Any]

    @staticmethod
    def load(path: str | Path) -> Policy:
        """Read a policy file.

        Raises:
            PolicyError: with everything that is wrong in it; or that there is no such file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of its encoding
        except OSError as error:
            why, todo = error.strerror, "make one with `doorstep policy init DATASET`"
            raise PolicyError([Problem(path.name, "", f"cannot be read: {why}", todo=todo)], path) from None
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            why, todo = f"line {line} is not UTF-8 (byte {error.object[error.start]:#04x})", "save the file as UTF-8"
            raise PolicyError([Problem(path.name, "", f"cannot be read: {why}", todo=todo)], path) from None
        return Policy.parse(text, path)

    @staticmethod
    def parse(text: str, where: object = "") -> Policy:
        """Read the text of a policy file.

        Raises:
            PolicyError: with everything that is wrong in it.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            named = Path(str(where)).name or "the policy"
            raise PolicyError([Problem(named, "", f"is no TOML: {error}")], where) from None
        reader = _Reader(document)
        policy = reader.policy()
        if reader.problems:
            raise PolicyError(reader.problems, where)
        return policy

    @cached_property
    def digest(self) -> str:
        """First twelve hexadecimal digits of the SHA-256 of what it says; comments and layout do not count."""
        canonical = json.dumps(self.document, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def action(self, key: str) -> Action | None:
        """What holds for an action, by its full key; None if the policy does not have it."""
        return self.actions.get(key) or self.actions.get(key.partition(":")[0])

    def tier(self, value: float) -> Tier | None:
        """The tier of a parcel worth so much; None below the lowest, or where the value is not known."""
        found = [t for t in self.tiers if t.from_value <= value]
        return found[-1] if found else None


class _Reader:
    """Turns a document into a policy, collecting every problem; where something is wrong, anything stands for it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.currency = document.get("currency") if isinstance(document.get("currency"), str) else "currency"

    def wrong(self, place: str, what: str, allowed: str = "", todo: str = "") -> None:
        allowed = allowed.replace("in currency", f"in {self.currency}")
        self.problems.append(Problem("", place, what, allowed=allowed, todo=todo))

    def policy(self) -> Policy:
        d = self.document
        tops = dict.fromkeys(s.partition(".")[0] for s in SECTIONS if s)
        top = self.section("", {k: v for k, v in d.items() if k not in tops}, "", known=(*SECTIONS[""], *tops))
        weights = self.section("weights", d.get("weights", {}), "weights")
        failures = {}
        given = self.table("failures", d.get("failures"))
        for target, section in self.named(given, "failures", TARGETS, "target"):
            s = self.section("failures.<target>", section, f"failures.{target}")
            failures[target] = Failure(s["cost"], s["share_of_value"])
        for target in TARGETS:
            if target not in given:
                self.wrong(
                    f"failures.{target}",
                    "is missing: what does it cost?",
                    todo=f"add [failures.{target}] with cost and share_of_value; 0 if it costs nothing",
                )
        packages = {name: self.package(name, s) for name, s in self.table("packages", d.get("packages", {})).items()}
        carriers = self.carriers()
        actions = self.actions(top["least_benefit"], packages, carriers)
        handoff = self.section("handoff", d.get("handoff", {}), "handoff")
        columns = {f"{t.name}.{c}" for t in TABLES.values() if t.name not in ("events", "returns") for c in t.names}
        for column in handoff["columns"]:
            if column not in columns:
                self.wrong("handoff.columns", f"there is no column {column!r}", todo=suggestion(column, columns))
        station = self.section("station", d.get("station", {}), "station")
        exceptions = {}
        for target, section in self.named(
            self.table("exceptions", d.get("exceptions", {})), "exceptions", TARGETS, "target"
        ):
            s = self.section("exceptions.<target>", section, f"exceptions.{target}")
            self.team(f"exceptions.{target}", s["owner"])
            known = _actions(packages, carriers)
            for key in s["actions"] or ():
                if key not in known:
                    near = suggestion(key, known)
                    self.wrong(f"exceptions.{target}.actions", f"{key!r} is no action", ", ".join(known), near)
            exceptions[target] = Protocol(target, **s)
        return Policy(
            **{k: top[k] for k in SECTIONS[""]},
            weights=Weights(**weights),
            failures=failures,
            tiers=self.tiers(),
            packages=dict(sorted(packages.items(), key=lambda p: (p[1].protection_level, p[1].material_cost))),
            carriers=carriers,
            actions=actions,
            specification=self.specification(),
            handoff=handoff["columns"],
            least_address_quality=handoff["least_address_quality"],
            exceptions=exceptions,
            shadow_until=station["shadow_until"],
            station_least_benefit=station["least_benefit"],
            document=d,
        )

    def tiers(self) -> tuple[Tier, ...]:
        found = []
        for i, section in enumerate(self.listed("tiers"), 1):
            s = self.section("tiers", section, f"tiers {i}")
            found.append(Tier(s["name"], s["from"], s["factor"], s["least_protection"], s["handling"]))
        for column in ("name", "from_value"):
            values = [getattr(t, column) for t in found]
            for twice in sorted({v for v in values if values.count(v) > 1}):
                self.wrong("tiers", f"{twice!r} is there twice", "each tier with a name and a `from` of its own")
        return tuple(sorted(found, key=lambda t: t.from_value))

    def package(self, name: str, section: Any) -> Package:
        place = f"packages.{name}"
        s = self.section("packages.<package_type>", section, place)
        sides = [s.pop(side) for side in ("length_mm", "width_mm", "height_mm")]
        known = [x for x in sides if x is not None]
        if known and len(known) < 3:
            self.wrong(place, "has some of its sides", "all of length_mm, width_mm and height_mm, or none")
        if known and s["volume_factor"] is not None:
            self.wrong(
                place, "has sides and a volume_factor", "sides for one size, volume_factor for many", "remove one"
            )
        longest, middle, shortest = sorted(known, reverse=True) if len(known) == 3 else (0.0, 0.0, 0.0)
        return Package(name, sides_mm=(longest, middle, shortest) if len(known) == 3 else None, **s)

    def carriers(self) -> dict[tuple[str, str], Tariff]:
        found = {}
        for carrier, services in self.table("carriers", self.document.get("carriers", {})).items():
            for service, section in self.table(f"carriers.{carrier}", services).items():
                place = f"carriers.{carrier}.{service}"
                if not isinstance(section, Mapping) and service in SECTIONS["carriers.<carrier>.<service>"]:
                    self.wrong(
                        place,
                        "a tariff belongs to a service of the carrier",
                        todo=f'write [carriers.{carrier}.SERVICE], or [carriers.{carrier}."*"] if there are none',
                    )
                    continue
                s = self.section("carriers.<carrier>.<service>", section, place)
                for node, clock in s["pickups"].items():
                    parts = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", clock) if isinstance(clock, str) else None
                    if parts is None:
                        self.wrong(f"{place}.pickups", f"{node} = {clock!r}", 'a time of day, such as "17:30"')
                    s["pickups"] = s["pickups"] | {node: 60 * int(parts[1]) + int(parts[2]) if parts else 0}
                s["destinations"] = frozenset(s["destinations"])
                found[carrier, service] = Tariff(carrier, service, **s)
        return found

    def actions(
        self, least: float, packages: Mapping[str, Package], carriers: Mapping[tuple[str, str], Tariff]
    ) -> dict[str, Action]:
        given = self.table("actions", self.document.get("actions", {}))
        found: dict[str, Action] = {}
        for name, section in self.named(given, "actions", _actions(packages, carriers), "action"):
            place, kind = f"actions.{name}", name.partition(":")[0]
            usual = given.get(kind) if name != kind else None
            told, taken = len(self.problems), list[str]()
            if name != kind and kind not in given:
                self.wrong(place, f"there is no [actions.{kind}]", todo=f"add it: `{name}` has what differs from it")
            if isinstance(usual, Mapping) and isinstance(section, Mapping):
                taken = [f"{place}.{k}" for k in usual if k not in section]
                section = {**usual, "effects": {}, **section}
            plain = {k: v for k, v in section.items() if k != "effects"} if isinstance(section, Mapping) else section
            known = [k for k, key in SECTIONS["actions.<action>"].items() if not key.only or kind in key.only]
            s = self.section("actions.<action>", plain, place, known=(*known, "effects"))
            self.team(place, s["owner"])
            if s["primary"] is not None and s["primary"] not in TARGETS:
                near = suggestion(s["primary"], TARGETS)
                self.wrong(f"{place}.primary", f"{s['primary']!r} is no target", ", ".join(TARGETS), near)
            if s["randomize"] > 0.0 and kind == "complete_documents":
                given_, why = f"given {s['randomize']:g}", "the handoff asks for missing documents of every parcel"
                todo = f"remove it: {why}, so none is withheld and nothing would be measured"
                self.wrong(f"{place}.randomize", given_, "0", todo)
            to = s["to"] if kind == "add_fill" else s["to_quality"]
            for column in ("to", "to_quality"):
                if to is None and kind in SECTIONS["actions.<action>"][column].only:
                    self.wrong(f"{place}.{column}", "is missing", SECTIONS["actions.<action>"][column].allowed)
            to = {"fix_label": 0.0, "complete_documents": 1.0}.get(kind, to)
            effects = {}
            stated = self.table(f"{place}.effects", section.get("effects", {}) if isinstance(section, Mapping) else {})
            for target, effect in self.named(stated, f"{place}.effects", TARGETS, "target"):
                effects[target] = self.effect(f"{place}.effects.{target}", effect)
            # What is wrong with a kind is said of the kind, and not again of each key that takes it from there.
            mine = [
                p for p in self.problems[told:] if not any(p.column == t or p.column.startswith(f"{t}.") for t in taken)
            ]
            self.problems[told:] = mine
            found[name] = Action(
                name=name,
                cost=s["cost"],
                owner=s["owner"],
                capacity_per_day=s["capacity_per_day"],
                least_benefit=least if s["least_benefit"] is None else s["least_benefit"],
                randomize=s["randomize"],
                primary=s["primary"],
                to=to,
                change_service=s["change_service"],
                effects=effects,
            )
        return found

    def effect(self, place: str, section: Any) -> Effect:
        s = self.section("actions.<action>.effects.<target>", section, place)
        if s["source"] not in (*SOURCES, ""):
            self.wrong(
                f"{place}.source", f"given {s['source']!r}", " or ".join(SOURCES), suggestion(s["source"], SOURCES)
            )
        low, high = s["low"], s["high"]
        if s["source"] == "experiment" and (low is None or high is None):
            self.wrong(
                place, "is said to be measured and has no interval", "low and high, as `doorstep effect` says them"
            )
        elif (low is None) != (high is None):
            self.wrong(place, "has one end of an interval", "low and high, or neither")
        elif low is not None and high is not None and not low <= s["odds_ratio"] <= high:
            self.wrong(
                place, f"{s['odds_ratio']:g} is not in its interval, {low:g} to {high:g}", "low <= odds_ratio <= high"
            )
        return Effect(s["odds_ratio"], s["source"], low, high)

    def specification(self) -> tuple[Rule, ...]:
        found = []
        for i, section in enumerate(self.listed("specification"), 1):
            s = self.section("specification", section, f"specification {i}")
            when, require = (
                tuple(self.conditions(f"specification {i}.{part}", s[part])) for part in ("when", "require")
            )
            found.append(Rule(s["rule"], when, require))
        return tuple(found)

    def conditions(self, place: str, given: Iterable[Any]) -> Iterator[Condition]:
        for c in given:
            operators = [k for k in c if k != "field"] if isinstance(c, Mapping) else []
            if not isinstance(c, Mapping) or "field" not in c or len(operators) != 1 or operators[0] not in OPERATORS:
                self.wrong(place, f"given {dict(c) if isinstance(c, Mapping) else c!r}", Key("conditions", "").allowed)
                continue
            field, operator, value = c["field"], operators[0], c[operators[0]]
            if field not in FIELDS:
                todo = suggestion(str(field), FIELDS)
                self.wrong(place, f"there is no field {field!r}", ", ".join(FIELDS), todo)
                continue
            flag, code = field in _FLAGS, field in _CODES
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if field == "label_grade" and operator != "one_of":
                good, wanted = value in LABEL_GRADES, f"one of {', '.join(LABEL_GRADES)}"
            elif operator == "one_of":
                good, wanted = code and _texts(value), "a list of texts, for a field of codes"
            elif flag:
                good, wanted = operator == "is" and isinstance(value, bool), "is = true or is = false"
            elif code:
                good, wanted = operator == "is" and isinstance(value, str), 'is = "text", or one_of = ["text", ...]'
            else:
                good, wanted = number, "a number"
            if not good:
                self.wrong(place, f"{field} {operator} = {value!r}", wanted)
                continue
            yield Condition(field, operator, tuple(value) if isinstance(value, list) else value)

    # The pieces all sections are read by.

    def team(self, place: str, owner: str) -> None:
        if owner and owner not in TEAMS:
            self.wrong(f"{place}.owner", f"{owner!r} is no team", ", ".join(TEAMS), suggestion(owner, TEAMS))

    def table(self, place: str, given: Any) -> Mapping[str, Any]:
        if isinstance(given, Mapping):
            return given
        if given is not None:
            self.wrong(place, f"given {given!r}", "a section with keys")
        return {}

    def listed(self, name: str) -> list[Any]:
        given = self.document.get(name, [])
        if isinstance(given, list):
            return given
        self.wrong(name, "is one section", "a list of them", f"write it with double brackets: [[{name}]]")
        return []

    def named(
        self, given: Mapping[str, Any], place: str, allowed: Iterable[str], what: str
    ) -> Iterator[tuple[str, Any]]:
        allowed = list(allowed)
        for name, section in given.items():
            if name in allowed:
                yield name, section
            else:
                self.wrong(f"{place}.{name}", f"is no {what}", ", ".join(allowed), suggestion(name, allowed))

    def section(self, schema: str, given: Any, place: str, known: Iterable[str] = ()) -> dict[str, Any]:
        """Every key of a section with its value or default; what is wrong is noted and stands as the least value."""
        keys = SECTIONS[schema]
        known = tuple(known) or tuple(keys)
        if not isinstance(given, Mapping):
            self.wrong(place, f"given {given!r}", f"a section with {', '.join(known)}")
            return {name: _stand_in(key) for name, key in keys.items()}
        dot = f"{place}." if place else ""
        for name in given:
            if name not in known:
                self.wrong(f"{dot}{name}", "unknown key", ", ".join(known), _unit_hint(name, known))
        out = {}
        for name, key in keys.items():
            if name not in given or name not in known:
                if key.required:
                    self.wrong(f"{dot}{name}", "is missing", key.allowed)
                out[name] = _stand_in(key)
            else:
                out[name] = self.value(f"{dot}{name}", key, given[name])
        return out

    def value(self, place: str, key: Key, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        good = {
            "number": number,
            "whole": isinstance(value, int) and number,
            "text": isinstance(value, str) and bool(value.strip()),
            "texts": _texts(value) and (bool(value) or not key.required),
            "flag": isinstance(value, bool),
            "date": isinstance(value, date) and not isinstance(value, datetime),
            "clocks": isinstance(value, Mapping),
            "conditions": isinstance(value, list) and (bool(value) or not key.required),
        }[key.kind]
        todo = ""
        if good and number and not key.low <= value <= key.high:
            good = False
            if key.unit == "share" and 1 < value <= 100:
                todo = f"a share is not a percentage: write {value / 100:g} for {value:g} %"
        elif not good and key.kind in ("number", "whole") and isinstance(value, str):
            todo = f"write the number alone; its unit is {key.unit.replace('currency', self.currency or '') or 'none'}"
        if not good:
            self.wrong(place, f"given {value!r}", key.allowed, todo)
            return _stand_in(key)
        if key.kind == "texts":
            return tuple(value)
        return float(value) if key.kind == "number" else value


def _actions(packages: Iterable[str], carriers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The keys of all that can be done with these packages and services of carriers."""
    return (*ACTIONS, *(f"package:{p}" for p in packages), *(f"carrier:{c}/{s}" for c, s in carriers))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)


def _stand_in(key: Key) -> Any:
    """What a key is when it is absent, or wrong."""
    if key.default is not None or not key.required:
        return {} if key.kind == "clocks" and key.default is None else key.default
    return {"number": max(key.low, 0.0), "text": "", "texts": (), "conditions": ()}[key.kind]


def _unit_hint(name: str, known: Iterable[str]) -> str:
    """A key that is right but for its unit: length_cm for length_mm."""
    stem = name.rpartition("_")[0]
    near = [k for k in known if stem and k.rpartition("_")[0] == stem]
    if near:
        return f"its unit is that of its name: {near[0]}"
    return suggestion(name, known) or "remove it"
