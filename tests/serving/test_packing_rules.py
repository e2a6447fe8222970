"""Packing rules, what the handoff lacks, and protocols."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import TypeAdapter
from shops import Shop

from serving.advice import Asking, Capacity
from serving.pages.texts import Texts
from serving.pages.verdict import Verdict, verdict
from serving.policy import Policy
from serving.schemas import Answer
from serving.score import decide


def test_nothing_is_recommended_that_breaks_a_packing_rule(shop: Shop) -> None:
    asked = copy.deepcopy(shop.requests)
    for i, request in enumerate(asked):
        request["parcel"] |= {"package_type": "foam_box", "protection_level": 4.0, "void_fill_ratio": 0.9}
        request["parcel"]["carrier"] = "alba"
        request["order"]["channel"] = "app" if i % 2 else "web"
    rules = [
        {
            "rule": "app in 2 or better",
            "when": [{"field": "channel", "is": "app"}],
            "require": [{"field": "protection_level", "at_least": 2}],
        },
        {
            "rule": "alba alone takes foam",
            "when": [{"field": "package_type", "is": "foam_box"}],
            "require": [{"field": "carrier", "is": "alba"}],
        },
    ]

    def advised(rules: list[dict[str, Any]]) -> tuple[Policy, list[dict[str, Any]]]:
        def change(document: dict[str, Any]) -> None:
            document["packages"]["foam_box"]["material_cost"] = 9.0
            document["specification"] = rules

        policy = shop.policy(change)
        return policy, decide(shop.bundle, shop.snapshot, policy, asked)[0]

    _, free = advised([])
    policy, bound = advised(rules)
    weak = {f"package:{p.name}" for p in policy.packages.values() if p.protection_level < 2}
    assert any(body["advice"]["action"] in weak for body in free[1::2])
    said = set()
    for i, (was, body) in enumerate(zip(free, bound, strict=True)):
        other = {o["action"] for o in body["actions"] if o["action"].startswith("carrier:")}
        barred = {a for a in other if not a.startswith("carrier:alba/")} | (weak if i % 2 else set())
        for option in body["actions"]:
            said.add(option["why_not"])
            if option["action"] in barred:
                assert not option["recommended"]
            else:
                assert option["why_not"] != "it breaks a packing rule"
        if was["advice"]["action"] not in barred:
            assert body["advice"]["action"] == was["advice"]["action"]
    assert "it breaks a packing rule" in said


def test_rules_are_kept_or_broken_in_words(shop: Shop) -> None:
    request = copy.deepcopy(shop.requests[0])
    request["listings"] = [{"sku": "new", "fragility": 4.0}]
    request["lines"] = [{"line_id": "1", "sku": "new"}]
    request["parcel"] |= {"protection_level": 1.0, "package_type": "padded_mailer", "label_grade": "D"}
    request["parcel"] |= {"documents_complete": False, "void_fill_ratio": 0.8}
    request["order"] |= {"destination_country": "CH"}
    for bundle, snapshot in (
        (shop.bundle, shop.snapshot),
        (None, shop.snapshot),
        (shop.bundle, None),
        (None, None),
    ):
        [body], [decision] = decide(bundle, snapshot, shop.policy(), [request])
        TypeAdapter(Answer).validate_python(body)
        names = ("given", "relation", "required_value", "required")
        broken = {v["field"]: tuple(v[name] for name in names) for v in body["violations"]}
        assert broken == {
            "protection_level": (1.0, "at_least", 2, "protection_level at least 2"),
            "label_grade": ("D", "at_least", "C", "label_grade at least C"),
            "documents_complete": (False, "is", True, "documents_complete is true"),
        }
        assert body["violations"][0]["text"].endswith("protection_level is 1, required is protection_level at least 2")
        assert body["handoff"]["incomplete"][0]["column"] == "parcels.documents_complete"
        assert decision["degraded"] == body["degraded"] == (bundle is None or snapshot is None)
        if body["degraded"]:
            assert (body["actions"], body["packages"], decision["arm"]) == ([], [], "none")
            said = body["advice"]["text"]
            assert said.endswith(
                "(fragile goods in protection 2 or better; labels that scan; documents for abroad). "
                "No advice: no model answers."
            )

    request["parcel"] |= {"protection_level": 2.0, "label_grade": "C", "documents_complete": True}
    [body], _ = decide(shop.bundle, shop.snapshot, shop.policy(), [request])
    assert body["violations"] == []
    for column in ("protection_level", "label_grade", "documents_complete", "void_fill_ratio", "package_type"):
        del request["parcel"][column]
    [body], _ = decide(shop.bundle, shop.snapshot, shop.policy(), [request])
    assert body["violations"] == []  # what is not known is missing, not broken
    assert {"parcels.label_grade", "parcels.documents_complete"} <= {*body["handoff"]["missing"]}


def test_words_do_not_say_there_is_nothing_to_do_where_a_rule_is_broken(shop: Shop) -> None:
    """Whatever the reason that nothing is recommended: not worth it, withheld, no room, no model."""
    rule = {"rule": "no bags", "require": [{"field": "package_type", "is": "none of these"}]}

    def change(document: dict[str, Any]) -> None:
        document |= {"specification": [rule], "least_benefit": 1e6}  # a type that no package is: nothing mends it

    def withheld_(document: dict[str, Any]) -> None:
        document["specification"] = [rule]
        for name, action in document["actions"].items():
            action["randomize"] = 0.9 * (name != "complete_documents")

    def full(document: dict[str, Any]) -> None:
        document["specification"] = [rule]
        for action in document["actions"].values():
            action["capacity_per_day"] = 0

    for changed, bundle, goes_on in (
        (change, shop.bundle, "Beyond that nothing worth doing."),
        (withheld_, shop.bundle, "Beyond that nothing to do."),
        (full, shop.bundle, "Beyond that nothing to do, the day's capacity"),
        (change, None, "No advice: no model answers."),
    ):
        bodies, _ = decide(bundle, shop.snapshot, shop.policy(changed), shop.requests, Capacity())
        said = [b["advice"]["text"] for b in bodies if b["advice"]["action"] is None]
        assert all(x.startswith("A packing rule is broken, mend that first (no bags). ") for x in said)
        assert any(goes_on in x for x in said), (goes_on, said[:2])
        assert not any("Nothing" in x for x in said)


def test_the_station_says_what_mends_a_broken_rule_and_the_rest_after_it(shop: Shop) -> None:
    """Whatever it is worth, whatever else is, and whether or not there is a model, an action or room for it."""
    asked = copy.deepcopy(shop.requests[:12])
    for request in asked:
        request["parcel"] |= {"label_grade": "F", "void_fill_ratio": 0.1}
    label = {"rule": "labels that scan", "require": [{"field": "label_grade", "at_least": "C"}]}
    fill = {"rule": "nothing rattles", "require": [{"field": "void_fill_ratio", "at_least": 0.4}]}

    def said(
        *rules: dict[str, Any], model: bool = True, free: bool = False, **fix: Any
    ) -> list[tuple[Verdict, dict[str, Any], dict[str, Any]]]:
        def change(document: dict[str, Any]) -> None:
            document |= {"specification": list(rules), "least_benefit": 0.0 if free else 1e6}
            document["actions"]["fix_label"] |= fix
            document["tiers"] = []

        asking = Asking(least_benefit=0.0 if free else 1e6, rules_first=True)
        bundle = shop.bundle if model else None
        found = decide(bundle, shop.snapshot, shop.policy(change), asked, Capacity(), asking)
        return [(verdict(b, Texts.load()), b, d) for b, d in zip(*found, strict=True)]

    for free in (False, True):
        for change in ({}, {"cost": 999.0}, {"capacity_per_day": 0}, {"randomize": 0.9}):
            for shown, body, decision in said(label, free=free, **change):
                assert (shown.kind, shown.key, shown.action) == ("do", "fix_label", "Print the label again")
                assert shown.verdict.startswith("A packing rule is broken")
                assert shown.reasons[0] == "Label grade F, at least C" and "→" in shown.reasons[1]
                assert (decision["action"], decision["arm"], decision["propensity"]) == ("fix_label", "act", 1.0)
                assert decision["demanded"]
                [option] = [o for o in body["actions"] if o["recommended"]]
                assert (option["action"], option["why_not"]) == ("fix_label", None)
                assert body["advice"]["text"].startswith("A packing rule is broken, mend that first (labels that scan)")
                TypeAdapter(Answer).validate_python(body)
    for shown, *_ in said(label, fill):
        assert shown.key == "fix_label"
        assert "→" in shown.reasons[1] and shown.reasons[2] == "Also: Fill the empty space"
    for shown, *_ in said(fill, label):
        assert shown.key == "add_fill"
        assert shown.reasons[0] == "Empty space filled 10.0 %, at least 40.0 %"
        assert shown.reasons[-1] == "Also: Print the label again"
    for shown, body, _ in said(label, model=False):
        assert (shown.kind, shown.key, shown.action) == ("mind", None, "Print the label again")
        assert shown.reasons[0] == "Label grade F, at least C" and body["advice"]["action"] is None
    strong = {"rule": "in foam", "require": [{"field": "package_type", "is": "foam_box"}]}
    for shown, *_ in said(strong):
        assert shown.key in ("package:foam_box", None)
    most = {"rule": "room to breathe", "require": [{"field": "void_fill_ratio", "at_most": 0.05}]}
    for shown, _, decision in said(most, free=True):  # nothing mends it, and nothing else is said in its place
        assert (shown.kind, shown.key, shown.action) == ("mind", None, "room to breathe")
        assert (decision["action"], decision["arm"]) == (None, "none")


def test_a_rule_of_several_codes_lists_them(shop: Shop) -> None:
    rule = {"rule": "for two of them", "require": [{"field": "package_type", "one_of": ["foam_box", "tube"]}]}
    request = copy.deepcopy(shop.requests[0])
    request["parcel"]["package_type"] = "padded_mailer"

    def change(document: dict[str, Any]) -> None:
        document |= {"specification": [rule], "packages": {}, "tiers": []}

    [body], _ = decide(shop.bundle, shop.snapshot, shop.policy(change), [request])
    TypeAdapter(Answer).validate_python(body)
    [broken] = body["violations"]
    assert (broken["relation"], broken["required_value"]) == ("one_of", ["foam_box", "tube"])
    said = verdict(body, Texts.load())
    assert said.reasons[0] == "Package type padded mailer, one of foam box, tube"
    texts = Texts(Texts.load().all | {"package.foam_box": "Schaumkiste", "package.padded_mailer": "Polstertasche"})
    assert verdict(body, texts).reasons[0] == "Package type Polstertasche, one of Schaumkiste, tube"


def test_the_words_say_a_broken_rule_before_what_is_worth_most(shop: Shop) -> None:
    label = {"rule": "labels that scan", "require": [{"field": "label_grade", "at_least": "C"}]}
    asked = copy.deepcopy(shop.requests)
    for request in asked:
        request["parcel"] |= {"label_grade": "F"}

    def change(document: dict[str, Any]) -> None:
        document["specification"] = [label]
        document["actions"]["fix_label"]["cost"] = 999.0

    bodies, _ = decide(shop.bundle, shop.snapshot, shop.policy(change), asked)
    first = "A packing rule is broken, mend that first (labels that scan: Print the label again). "
    assert any(b["advice"]["action"] for b in bodies)
    for body in bodies:
        assert body["advice"]["text"].startswith(first)
        assert body["advice"]["action"] != "fix_label"


def test_the_handoff_is_complete_or_says_what_is_missing(shop: Shop) -> None:
    request = copy.deepcopy(shop.requests[1])
    request["parcel"] |= {"address_quality": 0.9, "documents_complete": True}

    def change(document: dict[str, Any]) -> None:
        document["handoff"]["columns"] += ["order_lines.quantity", "listings.weight_g", "orders.promised_to"]

    policy = shop.policy(change)
    [body], _ = decide(shop.bundle, shop.snapshot, policy, [request])
    assert body["handoff"] == {"complete": True, "missing": [], "incomplete": []}
    del request["order"]["promised_to"], request["lines"][0]["quantity"]
    request["lines"][0]["sku"] = "nobody knows it"
    request["parcel"]["address_quality"] = 0.3
    [body], _ = decide(shop.bundle, shop.snapshot, policy, [request])
    assert not body["handoff"]["complete"]
    assert {*body["handoff"]["missing"]} == {"order_lines.quantity", "listings.weight_g", "orders.promised_to"}
    [incomplete] = body["handoff"]["incomplete"]
    assert incomplete["text"] == "the address is incomplete: quality 0.3, required is at least 0.5"


def test_protocols_are_called_for_by_the_risk(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        document["exceptions"]["late"]["at_least"] = 0.05
        document["exceptions"]["returned"]["at_least"] = 0.1

    bodies, _ = decide(shop.bundle, shop.snapshot, shop.policy(change), shop.requests)
    called = 0
    for body in bodies:
        late = [x for x in body["exceptions"] if x["target"] == "late"]
        assert bool(late) == (body["risks"]["late"]["probability"] >= 0.05)
        assert all(x["steps"] == shop.document["exceptions"]["late"]["steps"] for x in late)
        back = {x["line_id"] for x in body["exceptions"] if x["target"] == "returned"}
        assert back == {x["line_id"] for x in body["returns"] if x["probability"] >= 0.1}
        called += len(late) + len(back)
    assert called
