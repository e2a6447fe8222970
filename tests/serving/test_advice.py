"""The answer: what is advised, why not, and what the decision is made of."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.actions import failure, log_odds
from pydantic import TypeAdapter
from shops import ASKED, Shop, lever

from features.vocabulary import TARGETS
from serving.advice import Capacity, fingerprint
from serving.schemas import Answer
from serving.score import decide


def without_ids(bodies: list[dict[str, Any]]) -> str:
    """Answers as text, but for the one thing that is new each time."""
    plain = json.loads(json.dumps(bodies))
    for body in plain:
        del body["advice"]["decision_id"]
    return json.dumps(plain)


def test_a_batch_is_its_parcels_one_by_one_bit_for_bit(shop: Shop) -> None:
    requests = copy.deepcopy(shop.requests)
    requests[4]["listings"] = [{"sku": requests[4]["lines"][0]["sku"], "fragility": 4.0}]

    def change(document: dict[str, Any]) -> None:
        document["least_benefit"] = 0.0
        for name, action in document["actions"].items():
            action |= {"capacity_per_day": 5, "randomize": 0.3 * (name != "complete_documents")}

    policy = shop.policy(change)
    bodies, decisions = decide(shop.bundle, shop.snapshot, policy, requests, Capacity())
    capacity = Capacity()
    one_by_one = [decide(shop.bundle, shop.snapshot, policy, [r], capacity) for r in requests]
    assert without_ids(bodies) == without_ids([b for each, _ in one_by_one for b in each])
    assert [d["action"] for d in decisions] == [d["action"] for _, each in one_by_one for d in each]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_not_known_there_is_an_answer(shop: Shop, data: st.DataObject) -> None:
    """Columns left out in any combination, odd values, no lines: valid answers, and numbers that JSON can hold."""
    needed = {"order_id", "ordered_at", "parcel_id", "line_id", "sku"}
    odd = {
        "weight_g": 0.0,
        "package_length_mm": 0.0,
        "carrier": "nobody",
        "service": "none",
        "package_type": "a hat",
        "label_grade": "E",
        "destination_country": "XX",
        "quantity": 0.0,
        "discount": 1e6,
        "unit_price": 0.0,
        "order_value": 0.0,
    }
    requests = copy.deepcopy(shop.requests[:3])
    for request in requests:
        if data.draw(st.booleans()):
            request["lines"] = request["lines"][: data.draw(st.integers(0, 1))]
        for row in (request["order"], request["parcel"], *request["lines"]):
            for column in sorted({*row} - needed):
                what = data.draw(st.sampled_from(["keep", "keep", "drop", "odd"]))
                if what == "drop" or (what == "odd" and column not in odd):
                    del row[column]
                elif what == "odd":
                    row[column] = odd[column]
    bodies, decisions = decide(shop.bundle, shop.snapshot, shop.policy(), requests, Capacity())
    for body, decision in zip(bodies, decisions, strict=True):
        TypeAdapter(Answer).validate_python(body)
        json.dumps([body, decision], allow_nan=False)
        assert decision["arm"] in ("act", "none")


def test_actions_are_ranked_and_at_most_one_is_recommended(shop: Shop) -> None:
    policy = shop.policy()
    bodies, decisions = decide(shop.bundle, shop.snapshot, policy, shop.requests)
    arms = set()
    for body, decision in zip(bodies, decisions, strict=True):
        TypeAdapter(Answer).validate_python(body)
        nets = [o["net_benefit"] for o in body["actions"]]
        assert nets == sorted(nets, reverse=True)
        assert [o["action"] for o in body["actions"]] == [o["action"] for o in decision["actions"]]
        done = [o for o in body["actions"] if o["recommended"]]
        arms.add(decision["arm"])
        worth = [o for o in body["actions"] if o["net_benefit"] > policy.least_benefit]
        worth = [o for o in worth if "not sure enough" not in (o["why_not"] or "")]
        if worth:
            assert [o["action"] for o in done] == [body["advice"]["action"]] == [decision["action"]]
            assert done[0] is worth[0]
            assert done[0]["why_not"] is None
            assert body["advice"]["text"].endswith(done[0]["text"])
            assert body["advice"]["text"].startswith(
                "A packing rule is broken" if body["violations"] else done[0]["text"]
            )
            assert body["advice"]["owner"] == done[0]["owner"]
            assert f"{done[0]['net_benefit']:.2f} EUR net ({done[0]['evidence']})" in done[0]["text"]
        else:
            assert not done
            assert body["advice"]["action"] is None
            first = "A packing rule is broken, mend that first" if body["violations"] else "Nothing worth doing."
            assert body["advice"]["text"].startswith(first)
            assert decision["net_benefit"] is None
        assert all(o["why_not"] for o in body["actions"] if not o["recommended"])
        for o in body["actions"]:
            unsure = o["evidence"] == "assumed" or o["action"].startswith("carrier:")  # the draft states no intervals
            assert (o["low"] is None) == (o["high"] is None) == (o["why_no_interval"] is not None) == unsure
            if unsure:
                why = {"carrier": "the parcel scored again, which tells no error"}
                assert why.get(o["action"].partition(":")[0], "assumed without an interval") in o["why_no_interval"]
                assert "failed attempt (the parcel" not in o["why_no_interval"], "that is what its lever knows"
            assert o["low"] is None or o["low"] <= o["net_benefit"] <= o["high"]
        assert sum(rung["current"] for rung in body["packages"]) == 1
        assert [rung["package"] for rung in body["packages"]] == [*policy.packages]
    assert arms == {"act", "none"}


def test_a_weaker_box_is_recommended_where_it_saves_more_than_it_risks(shop: Shop) -> None:
    sturdy = copy.deepcopy(shop.requests)
    for request in sturdy:
        request["parcel"] |= {"package_type": "foam_box", "protection_level": 4.0, "void_fill_ratio": 0.9}
        request["listings"] = [{"sku": x["sku"], "fragility": 0.0} for x in request["lines"]]
    policy = shop.policy(lambda d: d["packages"]["foam_box"].update(material_cost=9.0))
    bodies, _ = decide(shop.bundle, shop.snapshot, policy, sturdy)
    weaker = [b for b in bodies if (b["advice"]["action"] or "").startswith("package:")]
    assert len(weaker) > ASKED / 2
    for body in weaker:
        [option] = [o for o in body["actions"] if o["recommended"]]
        assert option["saving"] < 0 < -option["cost"]
        assert -option["cost"] > -option["saving"]


def test_protection_is_taken_away_only_where_the_bad_end_of_the_estimate_is_worth_it(shop: Shop) -> None:
    policy, bundle = shop.policy(), copy.copy(shop.bundle)
    known = lever("damaged", "protection_level", one=-0.02)
    sure, unsure = (replace(known, covariance=((variance,),)) for variance in (1e-12, 1.0))
    found = {}
    for name, known in (("sure", sure), ("unsure", unsure)):
        bundle.levers = (known,)
        bodies, _ = decide(bundle, shop.snapshot, policy, shop.requests)
        weaker = []
        for request, body in zip(shop.requests, bodies, strict=True):
            for option in body["actions"]:
                kind, _, package = option["action"].partition(":")
                own = request["parcel"]["protection_level"]
                if kind != "package" or option["net_benefit"] <= policy.least_benefit:
                    continue
                level = policy.packages[package].protection_level
                before, after = option["risks"]["damaged"]
                cost_ = failure(shop.document, "damaged", request)
                slope = 1.644854 * math.sqrt(known.covariance[0][0]) + 0.02
                worst = 1 / (1 + math.exp(-(log_odds(before) - slope * (level - own))))
                lost = shop.document["weights"]["reliability"] * cost_ * (worst - after)
                safe = level > own or option["net_benefit"] - lost > 0
                assert ("not sure enough" in (option["why_not"] or "")) == (not safe)
                assert safe or not option["recommended"]
                weaker.append(option["recommended"] and level < own)
        found[name] = sum(weaker)
    assert found["sure"] > found["unsure"]


def test_a_weaker_box_is_not_recommended_on_an_assumption_that_has_no_doubt(shop: Shop) -> None:
    """What is stated of one level counts upside down for a level less: there the lower end is the bad one."""
    sturdy, bundle = copy.deepcopy(shop.requests), copy.copy(shop.bundle)
    bundle.levers = ()
    for request in sturdy:
        request["parcel"] |= {"package_type": "foam_box", "protection_level": 4.0}

    def weaker(odds_ratio: float, **more: Any) -> int:
        stated = {"odds_ratio": odds_ratio, "source": "assumed", **more}

        def change(document: dict[str, Any]) -> None:
            document["packages"]["foam_box"]["material_cost"] = 9.0
            document["actions"]["package"]["effects"] = {"damaged": stated}

        policy = shop.policy(change)
        bodies, _ = decide(bundle, shop.snapshot, policy, sturdy)
        count = 0
        for request, body in zip(sturdy, bodies, strict=True):
            for option in (o for o in body["actions"] if o["action"].startswith("package:")):
                before, after = option["risks"].get("damaged", [body["risks"]["damaged"]["probability"]] * 2)
                down = 4.0 - policy.packages[option["action"][8:]].protection_level
                assert log_odds(after) - log_odds(before) == pytest.approx(-down * math.log(odds_ratio), abs=1e-9)
                most = 1.0
                if "low" in more:
                    worst = max(-down * math.log(end) for end in (more["low"], more["high"]))
                    most = 1 / (1 + math.exp(-log_odds(before) - worst))
                lost = shop.document["weights"]["reliability"] * failure(shop.document, "damaged", request)
                safe = option["net_benefit"] - lost * (most - after) > 0
                if option["net_benefit"] > policy.least_benefit:
                    assert ("not sure enough" in (option["why_not"] or "")) == (not safe)
                count += option["recommended"]
        return count

    assert weaker(0.98) == weaker(1.0) == 0
    assert weaker(0.98, low=0.97, high=0.99) > ASKED / 2
    assert weaker(0.98, low=0.01, high=0.99) == 0
    measured = {"source": "experiment", "high": 0.99}
    assert weaker(0.98, low=0.97, **measured) > ASKED / 2 > weaker(0.98, low=0.01, **measured) == 0


def test_amounts_are_written_as_their_currency_is(shop: Shop) -> None:
    """Small ones with its coins, where it has any."""
    texts = {}
    for currency in ("EUR", "IDR"):
        bodies, _ = decide(
            shop.bundle, shop.snapshot, shop.policy(lambda d, c=currency: d.update(currency=c)), shop.requests[:5]
        )
        texts[currency] = json.dumps(without_ids(bodies))
    assert re.search(r"\d\.\d\d EUR", texts["EUR"])
    assert re.search(r"\d IDR", texts["IDR"]) and not re.search(r"\d\.\d\d IDR", texts["IDR"])


def test_without_a_policy_there_is_no_advice(shop: Shop) -> None:
    bodies, decisions = decide(shop.bundle, shop.snapshot, None, shop.requests[:2])
    assert not decisions
    for body in bodies:
        TypeAdapter(Answer).validate_python(body)
        assert (body["policy"], body["advice"], body["actions"], body["packages"]) == (None, None, [], [])
        assert (body["violations"], body["handoff"], body["exceptions"]) == ([], None, [])


def test_a_decision_says_what_it_was_made_of(shop: Shop) -> None:
    policy = shop.policy()
    [body], [decision] = decide(shop.bundle, shop.snapshot, policy, shop.requests[:1])
    request = shop.requests[0]
    assert decision == {
        "decision_id": body["advice"]["decision_id"],
        "decided_at": request["parcel"]["packed_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "parcel_id": request["parcel"]["parcel_id"],
        "order_id": request["order"]["order_id"],
        "customer_id": request["order"]["customer_id"],
        "lines": [line["line_id"] for line in request["lines"]],
        "inputs": fingerprint(request),
        "bundle": shop.bundle.name,
        "as_of": body["as_of"],
        "policy": policy.digest,
        "degraded": False,
        "probabilities": {t: r["probability"] for t, r in body["risks"].items()}
        | {"returned": [r["probability"] for r in body["returns"]]},
        "actions": [{k: o[k] for k in ("action", "net_benefit", "saving", "cost")} for o in body["actions"]],
        "action": body["advice"]["action"],
        "arm": body["advice"]["arm"],
        "propensity": 1.0,
        "demanded": False,
        "shown": True,
        "net_benefit": max(o["net_benefit"] for o in body["actions"]) if body["advice"]["action"] else None,
        "before": {
            "package": request["parcel"]["package_type"],
            "add_fill": str(request["parcel"]["void_fill_ratio"]),
            "fix_label": request["parcel"]["label_grade"],
            "complete_documents": str(float(request["parcel"]["documents_complete"])),
            "confirm_address": str(request["parcel"]["address_quality"]),
        },
    }
    json.dumps(decision, allow_nan=False)
    _, [again] = decide(shop.bundle, shop.snapshot, policy, shop.requests[:1])
    assert again["decision_id"] != decision["decision_id"]
    assert {**again, "decision_id": ""} == {**decision, "decision_id": ""}


def test_a_fingerprint_is_of_what_was_given_however_it_was_written(shop: Shop) -> None:
    request = shop.requests[0]
    turned = {part: request[part] for part in reversed([*request])}
    moved = copy.deepcopy(request)
    packed = request["parcel"]["packed_at"]
    moved["parcel"]["packed_at"] = packed.astimezone(datetime.timezone(datetime.timedelta(hours=7)))
    other = copy.deepcopy(request)
    other["parcel"]["weight_g"] += 1
    assert fingerprint(request) == fingerprint(turned) == fingerprint(moved) != fingerprint(other)
    assert len(fingerprint(request)) == 64


def test_every_target_has_a_word(shop: Shop) -> None:
    from serving.advice import WORDS

    assert {*WORDS} == {*TARGETS}
    assert replace(shop.policy(), name="x").digest == shop.policy().digest
