import json
import re
from datetime import UTC, date, datetime
from string import ascii_letters
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import FEATURES
from features.feature import Feature
from features.matrix import catalogue
from features.settings import Extra, Settings
from serving.pages.texts import Texts
from serving.pages.verdict import CHARACTERS, DONE, OVERRIDES, REASONS, WORDS, read_scan, shown, unknown, verdict
from serving.policy import ACTIONS, Policy
from serving.schemas import EXAMPLE, Invalid, Rules
from serving.score import decide

TEXTS = Texts.load()
names = st.text(max_size=200)
shares = st.floats(0, 1)
teams = st.sampled_from(["packing", "carrier", "customer", "cold_chain"])
targets = st.sampled_from(["late", "failed_attempt", "damaged", "undelivered"])
keys = st.one_of(
    st.sampled_from([a for a in ACTIONS if a not in ("package", "carrier")]),
    names.map("package:{}".format),
    names.map("carrier:{}/*".format),
)
drivers = st.fixed_dictionaries(
    {
        "feature": st.sampled_from(["fragility", "other", "label_grade", "late_rate_lane_28d", "packed_weekday"]),
        "team": teams,
        "value": st.floats(0, 1e6) | st.none(),
        "usual": st.floats(0, 1e6) | st.none(),
        "points": st.floats(-1, 1),
        "lever": st.booleans(),
    }
)
options = st.fixed_dictionaries(
    {
        "action": keys,
        "owner": teams,
        "recommended": st.just(True),
        "risks": st.dictionaries(targets, st.tuples(shares, shares).map(list)),
    }
)


broken = st.one_of(
    st.tuples(st.just("label_grade"), st.just("at_least"), st.sampled_from("ABC"), st.sampled_from("DF")),
    st.tuples(st.sampled_from(["void_fill_ratio", "weight_g"]), st.just("at_most"), shares, st.floats(1, 1e6)),
    st.tuples(st.just("documents_complete"), st.just("is"), st.booleans(), st.booleans()),
    st.tuples(st.sampled_from(["package_type", "carrier"]), st.just("one_of"), st.lists(names), names),
    st.tuples(st.sampled_from(["package_type", "carrier"]), st.just("is"), names, names),
)
violations = st.builds(
    lambda rule, x: {"rule": rule, **dict(zip(("field", "relation", "required_value", "given"), x, strict=True))},
    names,
    broken,
)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """What an answer may say, as far as the station reads it."""
    option = draw(st.none() | options)
    risk = st.fixed_dictionaries({"drivers": st.lists(drivers, max_size=5)})
    key = None if option is None else option["action"]
    return {
        "advice": draw(st.none() | st.just({"action": key})),
        "degraded": draw(st.booleans()),
        "actions": [] if option is None else [option],
        "packages": [{"package": draw(names), "current": draw(st.booleans())}],
        "violations": draw(st.lists(violations, max_size=4)),
        "handoff": draw(st.none() | st.just({"incomplete": [{"column": "parcels.documents_complete"}]})),
        "exceptions": draw(
            st.lists(
                st.fixed_dictionaries({"target": targets, "owner": teams, "steps": st.lists(names, max_size=5)}),
                max_size=3,
            )
        ),
        "tier": draw(st.none() | st.fixed_dictionaries({"handling": names})),
        "risks": {t: draw(risk) for t in ("late", "failed_attempt", "damaged", "undelivered")},
        "returns": [draw(risk)],
    }


@settings(deadline=None)
@given(answers(), st.booleans())
def test_a_verdict_fits_a_glance_whatever_the_answer_says(answer: dict[str, Any], visible: bool) -> None:
    said = verdict(answer, TEXTS, shown=visible)
    assert 0 < len(said.verdict.split()) <= WORDS
    assert len(said.reasons) <= REASONS and all(0 < len(r) <= CHARACTERS for r in said.reasons)
    assert len(said.action) <= 120
    advised = answer["advice"] and answer["advice"]["action"]
    # What can be answered is what was advised, and shown; beside a broken rule only what mends one is.
    assert said.key in ((advised, None) if answer["violations"] else (advised,)) if visible else said.key is None
    if visible and answer["violations"]:
        assert said.verdict.startswith("A packing rule is broken")
    assert bool(said.key) == (said.kind == "do")
    if not visible:
        assert (said.kind, said.verdict, said.action, said.reasons) == ("usual", "Pack as usual", "", ())


_NAMES = (
    "given",
    "required",
    "rest",
    "target",
    "team",
    "to",
    "now",
    "before",
    "after",
    "feature",
    "value",
    "driver",
    "usual",
)


FILL: dict[str, Any] = {
    "action": "add_fill", "owner": "packing", "recommended": True, "risks": {"late": (0.3, 0.1)},
}  # fmt: skip


def advised(option: dict[str, Any], *drivers: dict[str, Any]) -> dict[str, Any]:
    """An answer that advises an action, with what raises the risk of being late."""
    told = [{**d, "points": 0.1, "lever": True} for d in drivers]
    return {
        "advice": {"action": option["action"]}, "violations": [], "actions": [option], "tier": None, "returns": [],
        "risks": {"late": {"drivers": told}}, "packages": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "said"),
    [("swift/express", "swift express"), ("swift/*", "swift"), ("<b>A</b>/eco", "<b>A</b> eco"), ("a/b/*", "a/b")],
)
def test_a_carriers_name_is_shown_as_it_is_also_with_a_slash(key: str, said: str) -> None:
    option = {"action": f"carrier:{key}", "owner": "carrier", "recommended": True, "risks": {"late": [0.5, 0.1]}}
    assert verdict(advised(option), TEXTS).action == TEXTS("station.carrier", to=said)


def test_every_verdict_of_the_catalogue_has_at_most_twelve_words() -> None:
    for key, text in TEXTS.all.items():
        if key.startswith("station."):
            filled = text.format_map(dict.fromkeys(_NAMES, "a b"))
            assert len(filled.split()) <= WORDS


_LETTERS = str.maketrans({c: chr(0x400 + ord(c)) for c in ascii_letters})
FOREIGN = Texts({k: re.sub(r"\{\w+\}|\w", lambda m: m[0].translate(_LETTERS) if len(m[0]) == 1 else m[0], v)
                 if not k.startswith("format.") else v for k, v in TEXTS.all.items()})  # fmt: skip
"""Every text in letters that are none of English."""


@settings(deadline=None)
@given(st.sampled_from(list(FEATURES.values())), st.floats(0, 30), st.floats(0, 30) | st.none())
def test_a_reason_says_in_the_catalogues_words_what_the_answer_says(
    feature: Feature, value: float, usual: float | None
) -> None:
    same = usual is None or feature.words(usual) == feature.words(value)
    text = feature.say(value) if same else f"{feature.say(value)}, usual here is {feature.words(usual)}"
    driver = {"feature": feature.name, "team": feature.team, "value": value, "usual": usual}
    answer = advised(FILL, driver)
    _, said = verdict(answer, TEXTS).reasons
    short = text if len(text) <= CHARACTERS else feature.say(value)
    if len(short) <= CHARACTERS:
        assert said == short.replace("-", "−") if "e-" in short else said == short
    told = verdict(answer, FOREIGN)
    for words in (told.verdict, told.action, *told.reasons):
        assert not re.search("[A-Za-z]", re.sub(r"\d+e[−+]\d+|\b[A-F]\b", "", words)), words


def test_a_column_of_the_shops_own_is_said_by_its_name_and_its_value_in_the_catalogues_language() -> None:
    extra = Extra("parcels", "seal_twisted", "flag", "packing")
    driver = {"feature": "parcels.seal_twisted", "team": "packing", "value": 1.0, "usual": 0.0}
    answer = advised(FILL, driver)
    german = Texts(
        TEXTS.all | {"value.yes": "ja", "value.no": "nein", "station.driver_usual": "{driver}, sonst {usual}"}
    )
    _, said = verdict(answer, german, features=catalogue(Settings(extra=(extra,)))).reasons
    assert said == "seal twisted ja, sonst nein"


def test_a_long_reason_keeps_its_figure() -> None:
    for feature in FEATURES.values():
        driver = {"feature": feature.name, "team": feature.team, "value": 3.0, "usual": 0.02}
        answer = advised(FILL, driver)
        _, said = verdict(answer, TEXTS).reasons
        assert feature.words(3.0).replace("-", "−") in said and len(said) <= CHARACTERS, said


def test_the_catalogue_names_features_as_they_are_registered() -> None:
    named = {k.removeprefix("driver."): v for k, v in TEXTS.all.items() if k.startswith("driver.")}
    assert named.items() <= {f.name: f.text for f in FEATURES.values()}.items()  # one that is not there says its own


def test_without_a_policy_and_without_a_model_parcels_are_packed_as_usual() -> None:
    request = Rules().one(json.dumps(EXAMPLE).encode())
    (answer,), decided = decide(None, None, None, request)
    said = verdict(answer, TEXTS)
    assert (said.kind, said.verdict, said.key) == ("none", "No advice, pack as usual", None)
    assert decided == []
    assert unknown(TEXTS).kind == "none"


def test_a_day_of_shadow_ends_on_the_shops_clock() -> None:
    policy = object.__new__(Policy)
    object.__setattr__(policy, "shadow_until", date(2026, 3, 1))
    last = datetime(2026, 2, 28, 16, 59, 59, tzinfo=UTC)  # 23:59:59 in Jakarta
    assert not shown(policy, "Asia/Jakarta", last)
    assert shown(policy, "Asia/Jakarta", datetime(2026, 2, 28, 17, tzinfo=UTC))
    assert not shown(policy, "UTC", datetime(2026, 2, 28, 17, tzinfo=UTC))
    assert shown(None, "UTC", last)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "code"),
        ({"code": ""}, "code"),
        ({"code": "x" * 201}, "code"),
        ({"code": 7}, "code"),
        ({"code": "P", "decision_id": "no good"}, "decision_id"),
        ({"code": "P", "parcel": "P"}, "parcel"),
        ([], "body"),
    ],
)
def test_a_scan_that_is_none_is_refused(body: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        read_scan(json.dumps(body).encode())
    assert refused.value.errors[0]["field"] == field


def test_control_codes_can_be_barcodes_and_are_no_scans_by_chance() -> None:
    from serving.pages.barcode import code39

    for code in (DONE, *OVERRIDES):
        path = str(code39(code)).partition('d="')[2].partition('"')[0]
        assert path.count("M") == 5 * (len(code) + 2)  # five bars a character, with a start and a stop


def test_each_character_of_code_39_has_three_wide_elements_and_a_pattern_of_its_own() -> None:
    from serving.pages.barcode import _ELEMENTS

    assert all(len(e) == 9 and e.count("1") == 3 for e in _ELEMENTS.values())
    assert len(set(_ELEMENTS.values())) == len(_ELEMENTS) == 38
