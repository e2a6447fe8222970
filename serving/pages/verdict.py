"""What the packing station says of a parcel: an answer of `serving.score.decide` cut down to what fits a glance.

One verdict of at most twelve words, one thing to do, at most three reasons of sixty characters. Most parcels have
nothing worth doing, and then it says so and no more. Its words are made of the answer's fields and the catalogue's
texts: what the answer says in words itself is English, and for whoever reads it whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field
from typing_extensions import TypedDict

from features.contracts import Column
from features.definitions import FEATURES
from features.feature import Feature, Show, yes_no
from features.treated import COLUMNS
from serving.actions import mends
from serving.pages.texts import Texts
from serving.policy import Policy
from serving.schemas import Fields, ReportDocs

WORDS, REASONS, CHARACTERS = 12, 3, 60
"""The most a verdict, the reasons and one of them may have."""

SCAN = Fields(
    "Scan",
    "The code of a parcel at the bench",
    (
        Column("code", "id", "the parcel's id, as it was announced", required=True),
        Column(
            "decision_id",
            "id",
            "the id the decision is to have, 1 to 64 letters, digits, _ . : or -, never used before; so that a client "
            "that hears no answer can still say so",
        ),
    ),
)
"""What `POST /v1/parcels/scan` takes."""


class Scanned(TypedDict):
    """What to say of a parcel at the bench."""

    parcel_id: str
    decision_id: Annotated[str | None, Field(description="names the decision; null without a policy")]
    kind: Annotated[
        Literal["usual", "do", "mind", "none"],
        Field(
            description="usual: nothing to do; do: the action; mind: a rule or protocol of the shop no action mends; "
            "none: no advice, or no such parcel waits"
        ),
    ]
    verdict: Annotated[str, Field(description="in at most 12 words")]
    action: Annotated[str, Field(description="the one thing to do, in words; may be empty")]
    key: Annotated[str | None, Field(description="key of the advised action, to report it by")]
    reasons: Annotated[list[str], Field(max_length=REASONS, description="of at most 60 characters each")]
    recorded: Annotated[bool, Field(description="the decision is in the ledger: reports about it are taken")]
    now: Annotated[str, Field(description="the service's clock, UTC")]


SCAN_DOCS: dict[str, ReportDocs] = {
    "/v1/parcels/scan": ReportDocs(
        "Scan",
        "Decide about a parcel that was announced, and say what the packer is to do",
        SCAN,
        {"code": "P-1001"},
        {
            "parcel_id": "P-1001",
            "decision_id": "5f0c2f0d5a4c4f6c9f1f0a7b7c1d2e3f",
            "kind": "do",
            "verdict": "May arrive broken: one change before it leaves",
            "action": "Pack in foam box instead of light carton",
            "key": "package:foam_box",
            "reasons": ["Damage 2.1 % → 1.1 %", "Fragility above protection 2, usual here is 0"],
            "recorded": True,
            "now": "2025-03-01T13:40:02.184321Z",
        },
        Scanned,
    )
}
"""How the endpoint is described."""

OVERRIDES: dict[str, str] = {
    "DS-STOCK": "not in stock",
    "DS-FIT": "does not fit",
    "DS-TIME": "no time",
    "DS-WRONG": "wrong for this parcel",
}
"""Control code -> the reason that is recorded when something else is done than advised."""
DONE = "DS-DONE"
"""The control code for "done as advised"."""

_COLUMN_KINDS = {column: kind for kind, column in COLUMNS.items() if kind != "package"}
"""Columns that one action mends, in words that name nothing else, and that action."""
_PLAIN = Show("{:g}".format)
_DECISION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True)
class Verdict:
    """What the packer reads.

    Attributes:
        kind: `usual` (nothing to do), `do` (one thing to do), `mind` (a rule or a protocol of the shop's own that no
            action answers) or `none` (there is no advice).
        verdict: in at most twelve words.
        action: the one thing to do; empty if there is none.
        key: of the action, to report it by; None if none was advised.
        reasons: at most three.
    """

    kind: str
    verdict: str
    action: str = ""
    key: str | None = None
    reasons: tuple[str, ...] = ()


def read_scan(body: bytes) -> dict[str, Any]:
    """The body of a scan. Raises serving.schemas.Invalid."""
    content = SCAN.read(body)
    if "decision_id" in content and not _DECISION_ID.fullmatch(content["decision_id"]):
        given = content["decision_id"]
        allowed = "1 to 64 letters, digits, _ . : or -"
        raise SCAN.refusal(SCAN.fault("decision_id", "is no id of a decision", given, allowed))
    return content


def shown(policy: Policy | None, zone: str, now: datetime) -> bool:
    """Whether the station shows what it would say: not before the day that the policy names, on the shop's clock."""
    if policy is None or policy.shadow_until is None:
        return True
    return now.astimezone(ZoneInfo(zone)).date() >= policy.shadow_until


def unknown(t: Texts) -> Verdict:
    """What to say of a code that no waiting parcel has."""
    return Verdict("none", t("station.unknown"))


def verdict(
    answer: Mapping[str, Any], t: Texts, *, shown: bool = True, features: Mapping[str, Feature] = FEATURES
) -> Verdict:
    """What to say of an answer. Where nothing is to be shown, that the parcel is packed as usual.

    Args:
        answer: of `serving.score.decide`, with its advice.
        t: the texts.
        shown: False in shadow mode.
        features: by name, those that its drivers are of: a shop may have its own (`features.matrix.catalogue`).
    """
    advice = answer["advice"]
    if not shown:
        return Verdict("usual", t("station.usual"))
    advised = advice is not None and advice["action"] is not None
    option = next((o for o in answer["actions"] if advised and o["recommended"]), None)
    if answer["violations"]:
        return _rule(answer, option, t)
    if option is not None:
        moved = _moved(option)
        target = moved[0] if moved else None
        drivers = (_driver(d, features[d["feature"]], t) for d in _drivers(answer, target, option["owner"]))
        reasons = [*_handling(answer), *_risk(option, moved, t), *drivers]
        if option["owner"] != "packing":
            reasons.insert(0, t("station.owner", team=t.word("team", option["owner"])))
        said = t("station.do" if target is None else f"station.do_{target}")
        return Verdict("do", said, _do(option["action"], answer, t), option["action"], _fit(reasons))
    for protocol in answer["exceptions"]:
        if protocol["owner"] == "packing" and protocol["steps"]:
            first, *rest = protocol["steps"]
            said = t("station.protocol", target=t.word("target", protocol["target"]))
            return Verdict("mind", said, _cut(first, 120), None, _fit([*rest, *_handling(answer)]))
    if any(
        x["column"] == "parcels.documents_complete" for x in (answer["handoff"] or {"incomplete": ()})["incomplete"]
    ):
        return Verdict("mind", t("station.handoff"), t("station.complete_documents"), None, _fit(_handling(answer)))
    if advice is None or answer["degraded"]:
        why = t("station.no_policy") if advice is None else t("station.no_model")
        return Verdict("none", t("station.none"), reasons=_fit([*_handling(answer), why]))
    return Verdict("usual", t("station.usual"), reasons=_fit(_handling(answer)))


def _rule(answer: Mapping[str, Any], option: Mapping[str, Any] | None, t: Texts) -> Verdict:
    """What to say where a packing rule is broken: what mends it, and what is given and required.

    What was advised is said if it mends one of the rules, as `serving.advice.Asking.rules_first` has it. Else nothing
    that is offered does, and the first rule is said with what its column asks for, or in the shop's own words.
    """
    violations = answer["violations"]
    key = None if option is None else option["action"]
    mended = [v for v in violations if key is not None and mends(key, v["field"])]
    first = (mended or violations)[0]
    given = _given(first, t)
    reasons = [given, *(() if option is None or not mended else _risk(option, _moved(option), t))]
    rest = [v for v in violations if v["rule"] != first["rule"] and v not in mended]
    if rest:
        reasons.append(t("station.also", rest="; ".join(dict.fromkeys(_remedy(v, t) for v in rest))))
    reasons += _handling(answer)
    if option is None or not mended:
        action = _remedy(first, t)
        named = [] if action == first["rule"] else [first["rule"]]
        return Verdict("mind", t("station.rule"), _cut(action, 120), None, _fit([*reasons, *named]))
    reasons.append(first["rule"])
    if option["owner"] != "packing":
        reasons.insert(1, t("station.owner", team=t.word("team", option["owner"])))
    return Verdict("do", t("station.rule"), _do(option["action"], answer, t), option["action"], _fit(reasons))


def _remedy(violation: Mapping[str, Any], t: Texts) -> str:
    """What mends a rule, by the column it requires to be better; the rule's own words where only the shop knows."""
    kind = _COLUMN_KINDS.get(violation["field"])
    less = violation["relation"] == "at_most" or violation["required_value"] is False
    return str(violation["rule"]) if kind is None or less else t(f"station.{kind}")


def _given(violation: Mapping[str, Any], t: Texts) -> str:
    """What is given of a parcel and what its rule requires."""
    field, required = violation["field"], violation["required_value"]
    name = t.all.get(f"driver.{field}", field.replace("_", " ").capitalize())
    allowed = required if isinstance(required, list) else [required]
    return t(
        f"station.{violation['relation']}",
        feature=name,
        given=_fact(field, violation["given"], t),
        required=", ".join(_fact(field, value, t) for value in allowed),
    )


def _fact(field: str, value: float | bool | str, t: Texts) -> str:
    """What a rule reads of a parcel, in the language of the texts; said as the feature of its name is."""
    if isinstance(value, str):
        return t.word("package" if field == "package_type" else "value", value)
    if isinstance(value, bool):
        return _value(float(value), yes_no, t)
    return _value(value, FEATURES[field].show if field in FEATURES else _PLAIN, t)


def _moved(option: Mapping[str, Any]) -> list[str]:
    """The risks that an action lowers by a tenth of a point and more, by how much."""
    falls = {t: before - after for t, (before, after) in option["risks"].items() if before - after >= 0.001}
    return sorted(falls, key=lambda t: -falls[t])


def _do(key: str, answer: Mapping[str, Any], t: Texts) -> str:
    kind, _, name = key.partition(":")
    if kind == "package":
        now = next((p["package"] for p in answer["packages"] if p["current"]), None)
        to, now = t.word("package", name), now and t.word("package", now)
        return t("station.package", to=to) if now is None else t("station.package_instead", to=to, now=now)
    if kind == "carrier":
        carrier, _, service = name.rpartition("/")  # a carrier's name may hold a slash
        return t("station.carrier", to=carrier if service == "*" else f"{carrier} {service}")
    return t(f"station.{kind}")


def _risk(option: Mapping[str, Any], moved: list[str], t: Texts) -> list[str]:
    """The risk an action lowers most, without and with it."""
    out = []
    for target in moved[:1]:
        before, after = option["risks"][target]
        out.append(
            t("station.falls", target=t.word("target", target), before=t.percent(before), after=t.percent(after))
        )
    return out


def _drivers(answer: Mapping[str, Any], target: str | None, owner: str) -> list[Mapping[str, Any]]:
    """What raises the risk: what the owner of the action can change first, the most points first."""
    if target is None:
        return []
    risks = answer["returns"] if target == "returned" else [answer["risks"][target]]
    drivers = [d for risk in risks for d in risk["drivers"] if d["points"] > 0 and d["feature"] != "other"]
    return sorted(drivers, key=lambda d: (d["team"] != owner, not d["lever"], -d["points"]))


def _driver(driver: Mapping[str, Any], feature: Feature, t: Texts) -> str:
    """What a driver says in the language of the texts, beside what is usual where there is room for it."""
    named = t.all.get(f"driver.{feature.name}", feature.text)  # a shop's own columns are said in its own words
    value, usual = (_value(driver[which], feature.show, t) for which in ("value", "usual"))
    words = t("station.driver", feature=named, value=value)
    if len(words) > CHARACTERS:  # the figure is the reason: the name gives way, its span of time first
        head, comma, tail = named.rpartition(", ")
        named = f"{head}:" if comma and tail.endswith(":") else named
        named = _cut(named, CHARACTERS - len(t("station.driver", feature="", value=value)))
        words = t("station.driver", feature=named, value=value)
    if driver["usual"] is None or usual == value:
        return words
    both = t("station.driver_usual", driver=words, usual=usual)
    return both if len(both) <= CHARACTERS else words


def _value(value: float | None, show: Show, t: Texts) -> str:
    """A value in the language of the texts: a number with its unit, or a name."""
    if value is None:
        return t("value.not_known")
    figure = show.figure(value + 0.0)  # nobody says minus zero
    if not show.unit:
        return t.all.get(f"value.{figure}", t.written(figure))
    said = t.all.get(f"value.{show.unit}", f"{{n}} {show.unit}")
    return said.format_map({"n": t.written(figure)})


def _handling(answer: Mapping[str, Any]) -> list[str]:
    tier = answer["tier"]
    return [tier["handling"]] if tier is not None and tier["handling"] else []


def _fit(reasons: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (_cut(r, CHARACTERS) for r in reasons))))[:REASONS]


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip(' ,.;:')}…"
