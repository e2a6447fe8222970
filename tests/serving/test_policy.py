"""Policies as a shop would write them, and every way in which one can be wrong."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from features.vocabulary import TARGETS
from serving.policy import Condition, Policy, PolicyError

GOOD: dict[str, Any] = {
    "name": "test",
    "currency": "EUR",
    "home_countries": ["DE"],
    "failures": {t: {"cost": 5.0, "share_of_value": 0.1} for t in TARGETS},
    "tiers": [{"name": "dear", "from": 500.0, "least_protection": 2}, {"name": "plain", "from": 0}],
    "packages": {
        "carton": {"material_cost": 0.5, "protection_level": 2, "length_mm": 200, "width_mm": 400, "height_mm": 300},
        "bag": {"material_cost": 0.1, "protection_level": 0, "volume_factor": 1.5},
    },
    "carriers": {
        "alba": {
            "standard": {
                "base_price": 4.0,
                "price_per_kg": 0.5,
                "dimensional_divisor": 5000,
                "destinations": ["DE", "AT/Tirol"],
                "pickups": {"north": "17:30"},
            }
        }
    },
    "actions": {
        "package": {
            "cost": 0.3,
            "owner": "packing",
            "randomize": 0.1,
            "effects": {"damaged": {"odds_ratio": 0.9, "source": "assumed"}},
        },
        "package:carton": {
            "cost": 0.4,
            "effects": {"late": {"odds_ratio": 0.9, "low": 0.8, "high": 1.0, "source": "experiment"}},
        },
        "add_fill": {"cost": 0.2, "owner": "packing", "to": 0.9, "capacity_per_day": 7, "least_benefit": 1.0},
    },
    "specification": [
        {
            "rule": "fragile",
            "when": [{"field": "fragility", "at_least": 3}],
            "require": [{"field": "label_grade", "at_least": "B"}],
        }
    ],
    "handoff": {"columns": ["parcels.carrier"]},
    "exceptions": {"late": {"at_least": 0.3, "owner": "customer", "steps": ["call"]}},
}


def made(**changes: Any) -> Policy:
    return Policy.parse(tomli_w.dumps({**GOOD, **changes}))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good policy with one thing changed; None: taken out."""
    document: Any = copy.deepcopy(GOOD)
    *way, last = path.replace("alba/standard", "alba|standard").split("/") if ":" in path else path.split("/")
    last = last.replace("|", "/")
    at = document
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return document  # type: ignore[no-any-return]


def test_what_is_said_is_read() -> None:
    policy = made()
    assert [*policy.packages] == ["bag", "carton"]  # weakest first
    assert policy.packages["carton"].sides_mm == (400.0, 300.0, 200.0)
    assert policy.packages["bag"].sides_mm is None
    tariff = policy.carriers["alba", "standard"]
    assert tariff.pickups == {"north": 17 * 60 + 30}
    assert tariff.key == "carrier:alba/standard"
    assert policy.weights.of("late") == policy.weights.cost == 1.0
    assert policy.business_factor == 1.0


def test_a_full_key_has_what_differs_from_its_kind() -> None:
    policy = made()
    kind, own = policy.action("package:bag"), policy.action("package:carton")
    assert kind is not None and own is not None
    assert (kind.cost, own.cost) == (0.3, 0.4)
    assert own.owner == "packing"
    assert own.randomize == 0.1
    assert {*kind.effects} == {"damaged"}
    assert {*own.effects} == {"late"}
    assert policy.action("notify_customer") is None


def test_least_benefit_is_the_policys_where_the_action_has_none() -> None:
    policy = made(least_benefit=0.25)
    assert policy.actions["package"].least_benefit == 0.25
    assert policy.actions["add_fill"].least_benefit == 1.0


def test_tiers_go_by_value() -> None:
    policy = made()
    names = [None if (t := policy.tier(v)) is None else t.name for v in (-1.0, 0.0, 499.99, 500.0, float("nan"))]
    assert names == [None, "plain", "plain", "dear", None]


@pytest.mark.parametrize(
    ("destinations", "served"),
    [
        (["DE"], {("DE", "Bayern"): True, ("DE", None): True, ("AT", "Tirol"): False}),
        (["AT/Tirol"], {("AT", "Tirol"): True, ("AT", "Wien"): False, ("AT", None): False}),
        (["*"], {("CH", None): True, (None, None): True}),
        (["*/Tirol"], {(None, "Tirol"): True, (None, "Wien"): False}),
    ],
)
def test_where_a_service_may_be_used(destinations: list[str], served: dict[Any, bool]) -> None:
    tariff = Policy.parse(tomli_w.dumps(changed("carriers/alba/standard/destinations", destinations))).carriers[
        "alba", "standard"
    ]
    assert {place: tariff.serves(*place) for place in served} == served


def test_layout_and_comments_do_not_change_the_digest_and_costs_do() -> None:
    text = tomli_w.dumps(GOOD)
    policy = Policy.parse(text)
    assert Policy.parse(f"# a remark\n\n{text}").digest == policy.digest
    assert len(policy.digest) == 12
    assert Policy.parse(tomli_w.dumps(changed("failures/late/cost", 5.01))).digest != policy.digest


@pytest.mark.parametrize(
    ("path", "value", "place", "says"),
    [
        ("failures/late/cost", None, "failures.late.cost", "is missing"),
        ("failures/damaged", None, "failures.damaged", "what does it cost?"),
        ("failures/late/cost", -1, "failures.late.cost", "a number in EUR, of 0 or more"),
        ("failures/late/cost", "4.50 EUR", "failures.late.cost", "write the number alone; its unit is EUR"),
        ("failures/late/cost", True, "failures.late.cost", "a number in EUR"),
        ("failures/late/cost", float("nan"), "failures.late.cost", "a number in EUR"),
        ("failures/late/share_of_value", 30, "failures.late.share_of_value", "write 0.3 for 30 %"),
        ("failures/lost", {"cost": 1, "share_of_value": 0}, "failures.lost", "is no target"),
        ("failures/dameged", {"cost": 1, "share_of_value": 0}, "failures.dameged", "did you mean 'damaged'?"),
        ("failures/late/Cost", 4, "failures.late.Cost", "did you mean 'cost'?"),
        ("currency", None, "currency", "is missing"),
        ("wieghts", {"speed": 2}, "wieghts", "did you mean 'weights'?"),
        ("weights/speed", -1, "weights.speed", "of 0 or more"),
        ("actions/add_fill/capacity_per_day", -5, "actions.add_fill.capacity_per_day", "a whole number in times"),
        ("actions/add_fill/capacity_per_day", 2.5, "actions.add_fill.capacity_per_day", "a whole number"),
        ("actions/send_drone", {"cost": 1, "owner": "carrier"}, "actions.send_drone", "is no action"),
        ("actions/package:crate", {"cost": 1, "owner": "packing"}, "actions.package:crate", "is no action"),
        ("actions/add_fill/to", None, "actions.add_fill.to", "is missing"),
        ("actions/package/to", 0.9, "actions.package.to", "unknown key"),
        ("actions/package/owner", "warehouse", "actions.package.owner", "is no team"),
        ("actions/package/randomize", 10, "actions.package.randomize", "write 0.1 for 10 %"),
        ("actions/package/primary", "dammaged", "actions.package.primary", "did you mean 'damaged'?"),
        ("actions/package/randomize", 1, "actions.package.randomize", "from 0 to 0.9"),
        ("actions/package/effects/damaged/source", "measured", "actions.package.effects.damaged.source", "experiment"),
        ("actions/package/effects/damaged/odds_ratio", 0, "actions.package.effects.damaged.odds_ratio", "from 0.01"),
        ("actions/package/effects/damaged/low", 0.5, "actions.package.effects.damaged", "has one end"),
        (
            "actions/package/effects/broken",
            {"odds_ratio": 1, "source": "assumed"},
            "actions.package.effects.broken",
            "",
        ),
        ("actions/package:carton/effects/late/low", None, "actions.package:carton.effects.late", "has no interval"),
        ("actions/package:carton/effects/late/low", 0.95, "actions.package:carton.effects.late", "not in its interval"),
        ("actions/carrier:alba/standard", {"cost": 1, "owner": "carrier"}, "actions.carrier:alba/standard", "add it"),
        ("packages/carton/length_mm", None, "packages.carton", "has some of its sides"),
        ("packages/carton/volume_factor", 2, "packages.carton", "remove one"),
        ("packages/carton/length_cm", 20, "packages.carton.length_cm", "its unit is that of its name: length_mm"),
        ("packages/carton/protection_level", 40, "packages.carton.protection_level", "from 0 to 10"),
        ("packages/bag", 7, "packages.bag", "a section with"),
        ("carriers/alba/standard/dimensional_divisor", 5, "carriers.alba.standard.dimensional_divisor", "cm³ per kg"),
        ("carriers/alba/standard/destinations", [], "carriers.alba.standard.destinations", "a list of texts"),
        ("carriers/alba/standard/pickups/north", "25:00", "carriers.alba.standard.pickups", "a time of day"),
        ("carriers/alba/base_price", 4, "carriers.alba.base_price", "a tariff belongs to a service"),
        ("tiers", {"name": "x", "from": 0}, "tiers", "[[tiers]]"),
        ("tiers/0/from", 0, "tiers", "is there twice"),
        ("specification/0/require", None, "specification 1.require", "is missing"),
        ("specification/0/when/0/field", "fragile", "specification 1.when", "did you mean 'fragility'?"),
        ("specification/0/when/0/at_least", "three", "specification 1.when", "a number"),
        ("specification/0/require/0/at_least", "E", "specification 1.require", "one of A, B, C, D, F"),
        ("specification/0/when/0/at_most", 4, "specification 1.when", "each has a field and one of"),
        ("handoff/columns", ["parcels.carier"], "handoff.columns", "did you mean 'parcels.carrier'?"),
        ("exceptions/late/steps", [], "exceptions.late.steps", "a list of texts"),
        ("exceptions/late/at_least", 30, "exceptions.late.at_least", "write 0.3 for 30 %"),
        ("exceptions/late/actions", ["notify_customers"], "exceptions.late.actions", "did you mean 'notify_customer'?"),
        ("exceptions/late/actions", ["package:tube"], "exceptions.late.actions", "is no action"),
        ("exceptions/late/actions", "add_fill", "exceptions.late.actions", "a list of texts"),
        (
            "actions/complete_documents",
            {"cost": 1, "owner": "packing", "randomize": 0.1},
            "actions.complete_documents.randomize",
            "remove it: the handoff asks for missing documents of every parcel",
        ),
    ],
)
def test_every_fault_names_its_place_and_what_is_allowed(path: str, value: Any, place: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(tomli_w.dumps(changed(path, value)), "policy.toml")
    [problem] = caught.value.problems
    assert problem.column == place
    assert says in str(problem)
    assert f"\n  {place}: " in str(caught.value)  # the file is named above, by the name it was given


def test_all_faults_are_named_at_once() -> None:
    document = changed("failures/late/cost", None)
    document["actions"]["add_fill"]["capacity_per_day"] = -1
    document["actions"]["teleport"] = {}
    document["packages"]["bag"]["material_cost"] = "cheap"
    with pytest.raises(PolicyError) as caught:
        Policy.parse(tomli_w.dumps(document), "shop.toml")
    assert len(caught.value.problems) == 4
    assert str(caught.value).startswith("shop.toml cannot be used: 4 problems")
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_what_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"\n  none\.toml: cannot be read: No such file"):
        Policy.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(PolicyError, match=r"\n  bad\.toml: is no TOML"):
        Policy.load(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'# costs\nname = "\xe9"')
    with pytest.raises(PolicyError, match=r"line 2 is not UTF-8 \(byte 0xe9\)\n    to do: save the file as UTF-8"):
        Policy.load(tmp_path / "latin.toml")
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(GOOD).encode())
    assert Policy.load(tmp_path / "marked.toml").digest == Policy.parse(tomli_w.dumps(GOOD)).digest
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(PolicyError, match=r"failures\.returned: is missing"):
        Policy.load(tmp_path / "empty.toml")


@pytest.mark.parametrize(
    ("condition", "given", "met"),
    [
        (Condition("fragility", "at_least", 3), 3.0, True),
        (Condition("fragility", "at_least", 3), 2.9, False),
        (Condition("fragility", "at_least", 3), None, None),
        (Condition("fragility", "at_least", 3), float("nan"), None),
        (Condition("weight_g", "at_most", 500), 500, True),
        (Condition("label_grade", "at_least", "C"), "A", True),
        (Condition("label_grade", "at_least", "C"), "C", True),
        (Condition("label_grade", "at_least", "C"), "D", False),
        (Condition("label_grade", "at_least", "C"), "Z", None),
        (Condition("abroad", "is", True), True, True),
        (Condition("carrier", "one_of", ("a", "b")), "c", False),
    ],
)
def test_conditions(condition: Condition, given: Any, met: bool | None) -> None:
    assert condition.met(given) is met
