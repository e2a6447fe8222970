"""What actions are said to do, to cost and to be worth, against a second computation; and what is advised of it."""

from __future__ import annotations

import copy
import datetime
import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.actions import cost, failure, log_odds, saving
from pydantic import TypeAdapter

from features.dataset import Dataset
from features.rows import Rows
from features.snapshot import Snapshot
from features.treated import COLUMNS
from features.vocabulary import TARGETS
from serving.actions import PROTECTED, weigh
from serving.advice import Capacity, fingerprint, withheld
from serving.bundle import Bundle
from serving.carriers import CarrierLever
from serving.explain import logistic
from serving.levers import BETTER, Lever
from serving.policy import Policy
from serving.schemas import Answer
from serving.score import Scoring, _tables, answer, decide
from training.policy import draft

ASKED = 40


@dataclass
class Shop:
    """What a service would have loaded, and requests of its newest parcels."""

    bundle: Bundle
    snapshot: Snapshot
    document: dict[str, Any]
    requests: list[dict[str, Any]]

    def policy(self, change: Callable[[dict[str, Any]], None] = lambda d: None) -> Policy:
        """The shop's policy, with something changed."""
        document = copy.deepcopy(self.document)
        change(document)
        return Policy.parse(tomli_w.dumps(document))

    def options(self, policy: Policy, requests: list[dict[str, Any]]) -> Any:
        rows = Rows(_tables(requests, self.snapshot), self.snapshot)
        scoring = Scoring(self.bundle, rows)
        return weigh(self.bundle, policy, rows, {t: e.probability for t, e in scoring.targets()}), rows


def lever(target: str, column: str, **terms: float) -> Lever:
    names = tuple({"one": "1"}.get(t, t) for t in terms)
    k = len(names)
    covariance = tuple(tuple(0.01 * (i == j) for j in range(k)) for i in range(k))
    return Lever(target, column, names, tuple(terms.values()), covariance, (0.0,) * k, 1000, 100)


LEVERS = (
    lever("damaged", "protection_level", one=-0.2, fragility=-0.15),
    lever("returned", "protection_level", one=-0.02, fragility=-0.01),
    lever("damaged", "void_fill_ratio", one=-0.5),
    lever("late", "label_grade", one=0.1),
    lever("undelivered", "label_grade", one=0.2),
    lever("late", "documents_complete", one=-0.7),
    lever("failed_attempt", "address_quality", one=-1.5),
)


def carriers(target: str, error: float = 0.0, **effects: float) -> CarrierLever:
    """The same everywhere; of the services of the simulated carriers those that several have."""
    pairs = tuple((c, s) for c in effects for s in ("economy", "standard"))
    covariance = tuple(tuple(error**2 * (i == j) for j in range(len(pairs))) for i in range(len(pairs)))
    kinds, values = tuple(s for _, s in pairs), tuple(effects[c] for c, _ in pairs)
    return CarrierLever(target, pairs, kinds, (), (values,), (covariance,), 1000, 100)


CARRIERS = {"failed_attempt": carriers("failed_attempt", alba=-0.3, borea=0.0, corvus=0.4, dorado=0.1)}


@pytest.fixture(scope="module")
def shop(trained: Any) -> Shop:
    dataset = Dataset.open(trained.dataset)
    bundle = Bundle.load(trained.bundle)
    bundle.levers = LEVERS  # known ones, whatever a small shop could estimate
    bundle.carriers = CARRIERS
    document = tomllib.loads(draft(dataset))
    document["tiers"][0]["from"] = 20.0  # some parcels have none
    document["weights"] |= {"speed": 1.3, "reliability": 0.9, "cost": 1.1, "co2e": 0.2}
    for name, tariff in document["carriers"]["alba"].items():
        tariff["base_price"] += {"economy": -0.5, "standard": 0.1, "express": 2.0}[name]
        tariff["co2e_g_per_kg_km"] = 0.1
    document["packages"]["foam_box"] |= {"length_mm": 420.0, "width_mm": 320.0, "height_mm": 310.0}
    del document["packages"]["foam_box"]["volume_factor"]
    return Shop(bundle, Snapshot.load(trained.snapshot), document, requests_of(dataset, ASKED))


def requests_of(dataset: Dataset, n: int) -> list[dict[str, Any]]:
    """Requests for the newest parcels."""
    tables = {k: dataset.tables[k] for k in ("orders", "parcels", "order_lines")}

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for k, v in row.items():
            if v is None or v != v:
                continue
            flag = k in ("is_business", "documents_complete")
            out[k] = v.to_pydatetime() if isinstance(v, pd.Timestamp) else bool(v) if flag else v
        return out

    newest = tables["parcels"].sort_values("packed_at").tail(n)
    orders = tables["orders"][tables["orders"]["order_id"].isin(newest["order_id"])]
    order = {r["order_id"]: plain(r) for r in orders.to_dict("records")}
    lines: dict[str, list[Any]] = {}
    of = tables["order_lines"][tables["order_lines"]["parcel_id"].isin(newest["parcel_id"])]
    for r in of.to_dict("records"):
        lines.setdefault(r["parcel_id"], []).append(plain(r))
    return [
        {"order": order[r["order_id"]], "parcel": plain(r), "lines": lines[r["parcel_id"]], "listings": []}
        for r in newest.to_dict("records")
    ]


def without_ids(bodies: list[dict[str, Any]]) -> str:
    """Answers as text, but for the one thing that is new each time."""
    plain = json.loads(json.dumps(bodies))
    for body in plain:
        del body["advice"]["decision_id"]
    return json.dumps(plain)


# ---- what actions do, cost and are worth


def test_every_figure_is_what_the_policys_file_says(shop: Shop) -> None:
    policy, weights = shop.policy(), shop.document["weights"]
    options, rows = shop.options(policy, shop.requests)
    kinds: set[str] = set()
    for i, request in enumerate(shop.requests):
        mine = np.flatnonzero(rows.line_parcel == i)

        def risks(of: dict[str, Any], i: int = i, mine: Any = mine) -> dict[str, Any]:
            return {t: p[mine].tolist() if t == "returned" else float(p[i]) for t, p in of.items()}

        before = risks(options.before)
        for k in np.flatnonzero(options.offered[i]):
            key = options.keys[k]
            after = risks({t: p[:, k] for t, p in options.after.items()})
            assert options.saving[i, k] == pytest.approx(saving(shop.document, request, before, after), abs=1e-9)
            assert options.cost[i, k] == pytest.approx(cost(shop.document, request, key), abs=1e-9)
            co2e = options.co2e_g[i, k]
            net = saving(shop.document, request, before, after, weights) - weights["cost"] * cost(
                shop.document, request, key
            )
            net -= weights["co2e"] * (0.0 if math.isnan(co2e) else co2e) / 1000.0
            assert options.benefit[i, k] == pytest.approx(net, abs=1e-9)
            kinds.add(key.partition(":")[0])
    assert kinds == {*shop.document["actions"]}


def test_a_lever_shifts_the_log_odds_and_an_assumption_multiplies_the_odds(shop: Shop) -> None:
    policy = shop.policy()
    options, rows = shop.options(policy, shop.requests)
    levers = {(x.target, x.column): x for x in LEVERS}
    grades = "ABCDF"
    for i, request in enumerate(shop.requests):
        parcel = request["parcel"]
        fragility = float(rows.per_parcel(rows.lines["listings", "fragility"], "max")[i])
        for k in np.flatnonzero(options.offered[i]):
            key = options.keys[k]
            kind, _, name = key.partition(":")
            if kind == "carrier":
                continue
            for target in ("late", "failed_attempt", "damaged", "undelivered"):
                before, after = float(options.before[target][i]), float(options.after[target][i, k])
                found = levers.get((target, COLUMNS.get(kind, "")))
                if found is not None:
                    given = parcel[found.column]
                    now = float(grades.index(given)) if kind == "fix_label" else float(given)
                    to = policy.packages[name].protection_level if kind == "package" else policy.actions[kind].to
                    terms = {"1": 1.0, "fragility": 0.0 if math.isnan(fragility) else fragility}
                    slope = sum(c * terms[t] for c, t in zip(found.coefficients, found.terms, strict=True))
                    change = slope * (to - now)
                    assert options.evidence[target][k] == "model-estimated"
                elif target in policy.actions[kind].effects:
                    change = math.log(policy.actions[kind].effects[target].odds_ratio)
                    assert options.evidence[target][k] == "assumed"
                else:
                    assert after == before
                    continue
                assert log_odds(after) - log_odds(before) == pytest.approx(change, abs=1e-9)


def test_another_carrier_is_the_lever_and_its_pickup_or_the_parcel_asked_about_once_more(shop: Shop) -> None:
    policy = shop.policy()
    bodies, _ = decide(shop.bundle, shop.snapshot, policy, shop.requests)
    zone = datetime.timezone(datetime.timedelta(hours=1))  # the shop's, in December
    lever = CARRIERS["failed_attempt"]
    effect = {c: e for (c, _), e in zip(lever.carriers, lever.effects[0], strict=True)}
    checked = by_lever = 0
    for request, body in zip(shop.requests[:12], bodies, strict=False):
        for option in body["actions"]:
            kind, _, name = option["action"].partition(":")
            if kind != "carrier":
                continue
            carrier, service = name.split("/")
            clock = shop.document["carriers"][carrier][service]["pickups"][request["parcel"]["node"]]
            day = request["parcel"]["packed_at"].astimezone(zone)
            hour, minute = map(int, clock.split(":"))
            cutoff = day.replace(hour=hour, minute=minute, second=0, microsecond=0)
            collected, other = copy.deepcopy(request), copy.deepcopy(request)
            collected["parcel"]["pickup_cutoff_at"] = cutoff
            other["parcel"] |= {"carrier": carrier, "service": service, "pickup_cutoff_at": cutoff}
            [moved], [again] = (answer(shop.bundle, shop.snapshot, [x]) for x in (collected, other))
            for target, risk in again["risks"].items():
                before, after = option["risks"].get(target, [body["risks"][target]["probability"]] * 2)
                assert before == body["risks"][target]["probability"]
                expected = risk["probability"]
                if target in CARRIERS and service != "express":  # no two of the lever's carriers have that
                    step = effect[carrier] - effect[request["parcel"]["carrier"]]
                    expected = logistic(log_odds(moved["risks"][target]["probability"]) + step)
                    by_lever += 1
                assert after == pytest.approx(expected, abs=1e-9)
            kept = math.prod(1 - line["probability"] for line in again["returns"])
            assert option["risks"]["returned"][1] == pytest.approx(1 - kept, abs=1e-9)
            checked += 1
    assert checked > by_lever > 10


def test_another_carrier_is_advised_only_where_it_is_likely_to_be_worth_it(shop: Shop, monkeypatch: Any) -> None:
    policy, found = shop.policy(), {}
    for error in (0.0, 2.0, 500.0):
        lever = carriers("failed_attempt", error, alba=-0.6, borea=0.0, corvus=0.6, dorado=0.0)
        monkeypatch.setattr(shop.bundle, "carriers", {"failed_attempt": lever})
        options, _ = shop.options(policy, shop.requests)
        service = np.array([k.startswith("carrier:") and not k.endswith("express") for k in options.keys])
        worth = options.offered & (options.benefit > options.least) & service
        found[error] = options.safe & worth
        assert (found[error] == worth).all() == (error == 0.0)
    assert found[0.0].sum() > found[2.0].sum() > found[500.0].sum() == 0


def test_only_what_serves_the_corridor_is_offered(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        for services in document["carriers"].values():
            for tariff in services.values():
                tariff["destinations"] = ["DE/DE-BY", "AT"]

    policy = shop.policy(change)
    bodies, _ = decide(shop.bundle, shop.snapshot, policy, shop.requests)
    for request, body in zip(shop.requests, bodies, strict=True):
        order = request["order"]
        served = order["destination_country"] == "AT" or order["destination_region"] == "DE-BY"
        offered = [o["action"] for o in body["actions"] if o["action"].startswith("carrier:")]
        assert bool(offered) == served
        for key in offered:  # the customer's service stays
            assert key.endswith(f"/{request['parcel']['service']}")
            assert key != f"carrier:{request['parcel']['carrier']}/{request['parcel']['service']}"


def test_another_service_is_offered_where_the_policy_says_so(shop: Shop) -> None:
    policy = shop.policy(lambda d: d["actions"]["carrier"].update(change_service=True))
    bodies, _ = decide(shop.bundle, shop.snapshot, policy, shop.requests)
    keys = {o["action"] for body in bodies for o in body["actions"] if o["action"].startswith("carrier:")}
    services = {(r["parcel"]["service"], k.rpartition("/")[2]) for r in shop.requests for k in keys}
    assert any(a != b for a, b in services)
    assert len(keys) == len(policy.carriers)


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(st.integers(0, 4), min_size=3, max_size=6),
    ratios=st.lists(st.floats(0.2, 5.0), min_size=6, max_size=6),
    own=st.integers(0, 4),
)
def test_more_protection_is_never_riskier(shop: Shop, levels: list[int], ratios: list[float], own: int) -> None:
    def change(document: dict[str, Any]) -> None:
        document["packages"] = {
            f"box{j}": {"material_cost": 0.5, "protection_level": level} for j, level in enumerate(levels)
        }
        for j in range(0, len(levels), 2):  # experiments may have said anything of single packages
            stated = {"odds_ratio": ratios[j], "low": 0.01, "high": 9.0, "source": "experiment"}
            document["actions"][f"package:box{j}"] = {"effects": {"damaged": stated, "returned": stated}}

    requests = copy.deepcopy(shop.requests[:5])
    for request in requests:
        request["parcel"] |= {"package_type": "of old", "protection_level": float(own)}
    options, _ = shop.options(shop.policy(change), requests)
    boxes = [(k, levels[int(key[11:])]) for k, key in enumerate(options.keys) if key.startswith("package:")]
    for target in PROTECTED:
        before, after = options.before[target], options.after[target]
        for k, level in boxes:
            if level > own:
                assert (after[:, k] <= before).all()
            if level < own:
                assert (after[:, k] >= before).all()
            for other, weaker in boxes:
                if weaker < level:
                    assert (after[:, k] <= after[:, other]).all()


def test_what_is_measured_goes_before_what_is_estimated_and_that_before_what_is_assumed(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        stated = {"odds_ratio": 0.5, "source": "assumed"}
        document["actions"]["add_fill"]["effects"] = {"damaged": stated, "late": stated}
        measured = {"odds_ratio": 0.25, "low": 0.2, "high": 0.3, "source": "experiment"}
        document["actions"]["carrier:borea/standard"] = {"effects": {"late": measured}}
        document["actions"]["fix_label"]["effects"] = {"late": measured}

    policy = shop.policy(change)
    options, _ = shop.options(policy, shop.requests)
    at = {key: k for k, key in enumerate(options.keys)}
    assert options.evidence["damaged"][at["add_fill"]] == "model-estimated"
    assert options.evidence["late"][at["add_fill"]] == "assumed"
    assert options.evidence["late"][at["fix_label"]] == "measured"
    assert options.evidence["late"][at["carrier:borea/standard"]] == "measured"
    assert options.evidence["damaged"][at["carrier:borea/standard"]] == "model-estimated"
    for key in ("fix_label", "carrier:borea/standard"):
        odds = options.after["late"][:, at[key]] / (1 - options.after["late"][:, at[key]])
        before = options.before["late"] / (1 - options.before["late"])
        assert np.allclose(odds / before, 0.25)
    bodies, _ = decide(shop.bundle, shop.snapshot, policy, shop.requests)
    for option in (o for body in bodies for o in body["actions"] if o["action"] == "fix_label"):
        # An answer names the least trusted of what it rests on.
        assert option["evidence"] == ("model-estimated" if "undelivered" in option["risks"] else "measured")


def test_nothing_is_offered_of_which_nobody_can_say_what_it_does(shop: Shop) -> None:
    bundle = copy.copy(shop.bundle)
    bundle.levers = ()
    bodies, _ = decide(bundle, shop.snapshot, shop.policy(), shop.requests)
    offered = {o["action"].partition(":")[0] for body in bodies for o in body["actions"]}
    assert offered == {"carrier", "notify_customer", "pickup_point", "hold_next_pickup"}
    for body in bodies:
        for rung in body["packages"]:
            assert (rung["risks"] is not None) == rung["current"]
            assert rung["current"] or rung["net_benefit"] is None


def test_what_is_good_already_or_not_known_is_not_mended(shop: Shop) -> None:
    requests = copy.deepcopy(shop.requests[:3])
    requests[0]["parcel"] |= {"label_grade": "A", "void_fill_ratio": 0.95, "address_quality": 0.99}
    requests[0]["parcel"]["documents_complete"] = True
    for column in (*BETTER, "package_type", "carrier"):
        requests[1]["parcel"].pop(column, None)
    requests[2]["parcel"] |= {"label_grade": "F", "void_fill_ratio": 0.1, "address_quality": 0.1}
    requests[2]["parcel"]["documents_complete"] = False
    bodies, _ = decide(shop.bundle, shop.snapshot, shop.policy(), requests)
    own = {"add_fill", "fix_label", "complete_documents", "confirm_address"}
    offered = [{o["action"] for o in body["actions"]} for body in bodies]
    assert not offered[0] & own
    assert offered[1] == {"notify_customer", "pickup_point", "hold_next_pickup"}
    assert own <= offered[2]


def test_a_package_too_small_too_weak_or_too_light_for_it_is_not_offered(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        document["packages"] |= {
            "tiny": {"material_cost": 0.1, "protection_level": 4, "length_mm": 9, "width_mm": 9, "height_mm": 9},
            "frail": {"material_cost": 0.1, "protection_level": 4, "max_weight_g": 1},
            "huge": {"material_cost": 9, "protection_level": 4, "length_mm": 9e3, "width_mm": 9e3, "height_mm": 9e3},
        }
        document["tiers"] = [{"name": "all", "from": 0, "least_protection": 2, "handling": "Two sign."}]

    bodies, _ = decide(shop.bundle, shop.snapshot, shop.policy(change), shop.requests)
    _, rows = shop.options(shop.policy(change), shop.requests)
    known = rows.per_parcel(rows.lines["listings", "height_mm"], "max")
    assert (known > 0).sum() > ASKED / 2
    for body, height in zip(bodies, known, strict=True):
        if math.isnan(height):
            continue  # nobody knows how large it is
        offered = {o["action"] for o in body["actions"]}
        fits = {rung["package"]: rung["fits"] for rung in body["packages"]}
        assert body["tier"] == {"name": "all", "handling": "Two sign."}
        assert not offered & {"package:tiny", "package:frail", "package:bag", "package:padded_mailer"}
        assert "package:huge" in offered
        assert {n: fits[n] for n in ("tiny", "frail", "bag", "padded_mailer", "huge")} == {
            "tiny": False,
            "frail": False,
            "bag": False,
            "padded_mailer": False,
            "huge": True,
        }


def test_a_season_is_weighed_as_its_parcels_are_one_by_one(shop: Shop, trained: Any) -> None:
    policy = shop.policy()
    together, _ = shop.options(policy, shop.requests)
    for i in (0, 7, ASKED - 1):
        alone, _ = shop.options(policy, [shop.requests[i]])
        assert np.array_equal(alone.benefit[0], together.benefit[i], equal_nan=True)
        assert np.array_equal(alone.offered[0], together.offered[i])
        assert alone.best()[0] == together.best()[i]


# ---- the answer


def test_a_batch_is_its_parcels_one_by_one_bit_for_bit(shop: Shop) -> None:
    requests = copy.deepcopy(shop.requests)
    requests[4]["listings"] = [{"sku": requests[4]["lines"][0]["sku"], "fragility": 4.0}]

    def change(document: dict[str, Any]) -> None:
        document["least_benefit"] = 0.0
        for action in document["actions"].values():
            action |= {"capacity_per_day": 5, "randomize": 0.3}

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
            assert body["advice"]["text"] == done[0]["text"]
            assert body["advice"]["owner"] == done[0]["owner"]
            assert f"{done[0]['net_benefit']:.2f} EUR net ({done[0]['evidence']})" in done[0]["text"]
        else:
            assert not done
            assert body["advice"]["action"] is None
            first = "A packing rule is broken, mend that first" if body["violations"] else "Nothing worth doing."
            assert body["advice"]["text"].startswith(first)
            assert decision["net_benefit"] is None
        assert all(o["why_not"] for o in body["actions"] if not o["recommended"])
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


# ---- who is left as he is, and how often


def test_arms_are_as_frequent_as_the_policy_says_and_stay(shop: Shop) -> None:
    def share(salt: str, action: str, randomize: float) -> tuple[float, list[bool]]:
        def change(document: dict[str, Any]) -> None:
            document["salt"] = salt
            document["actions"]["add_fill"]["randomize"] = randomize
            document["actions"]["fix_label"]["randomize"] = randomize

        policy = shop.policy(change)
        drawn = [withheld(policy, action, f"P{i:06d}") for i in range(20_000)]
        assert drawn == [withheld(policy, action, f"P{i:06d}") for i in range(20_000)]
        return sum(drawn) / len(drawn), drawn

    found, drawn = share("1", "add_fill", 0.1)
    assert abs(found - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 20_000)
    assert share("1", "add_fill", 0.0)[0] == 0.0
    # A larger share keeps those it had; another salt or action draws anew.
    larger = share("1", "add_fill", 0.3)[1]
    assert all(a <= b for a, b in zip(drawn, larger, strict=True))
    for other in (share("2", "add_fill", 0.1)[1], share("1", "fix_label", 0.1)[1]):
        both = sum(a and b for a, b in zip(drawn, other, strict=True)) / len(drawn)
        assert abs(both - 0.01) < 4 * math.sqrt(0.01 * 0.99 / 20_000)


def test_a_parcel_of_the_control_arm_is_shown_nothing_to_do(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        for action in document["actions"].values():
            action["randomize"] = 0.9

    sure, random = shop.policy(), shop.policy(change)
    plain, _ = decide(shop.bundle, shop.snapshot, sure, shop.requests)
    bodies, decisions = decide(shop.bundle, shop.snapshot, random, shop.requests)
    seen, kinds = set(), set()
    for before, body, decision in zip(plain, bodies, decisions, strict=True):
        action = before["advice"]["action"]
        assert decision["action"] == action
        seen.add(decision["arm"])
        if action is None:
            assert (decision["arm"], decision["propensity"]) == ("none", 1.0)
            continue
        assert decision["propensity"] == body["advice"]["propensity"] == pytest.approx(0.1)
        assert decision["arm"] == ("control" if withheld(random, action, decision["parcel_id"]) else "act")
        assert action in {o["action"] for o in decision["actions"]}
        if decision["arm"] == "control":
            assert body["advice"]["action"] is None
            assert body["advice"]["owner"] is None
            assert not any(o["recommended"] for o in body["actions"])
            assert action not in {o["action"] for o in body["actions"]}
            assert not any(rung["recommended"] for rung in body["packages"])
            # What it is not to get it is shown nowhere, whatever field is read.
            assert json.dumps(action.partition(":")[2] or action) not in json.dumps(body | {"advice": None})
            kinds.add(action.partition(":")[0])
            assert all(o["why_not"] != "one action is enough" for o in body["actions"])
            assert action not in body["advice"]["text"]
        else:
            assert body["advice"]["action"] == action
            assert [rung["package"] for rung in body["packages"]] == [*random.packages]
    assert seen == {"act", "control", "none"}
    assert "package" in kinds


def test_what_a_day_has_no_room_for_is_not_recommended(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        document["actions"] = {"add_fill": document["actions"]["add_fill"] | {"cost": 0.0, "capacity_per_day": 3}}
        document["least_benefit"] = 0.0

    policy, capacity = shop.policy(change), Capacity()
    requests = copy.deepcopy(shop.requests[:8])
    for i, request in enumerate(requests):
        request["parcel"] |= {"void_fill_ratio": 0.1}
        day = 10 if i < 6 else 11
        request["parcel"]["packed_at"] = datetime.datetime(2025, 12, day, 22, 30, tzinfo=datetime.UTC)
        request["order"]["ordered_at"] = datetime.datetime(2025, 12, 1, tzinfo=datetime.UTC)
    bodies, decisions = decide(shop.bundle, shop.snapshot, policy, requests, capacity)
    assert [d["action"] for d in decisions] == ["add_fill"] * 3 + [None] * 3 + ["add_fill"] * 2
    assert bodies[3]["actions"][0]["why_not"] == "all 3 of the day are used up"
    assert "the day's capacity is used up" in bodies[3]["advice"]["text"]
    # Asked again, a parcel has the place it had; the day is the shop's, where 23:30 UTC is the next one.
    again, _ = decide(shop.bundle, shop.snapshot, policy, requests, capacity)
    assert [b["advice"]["action"] for b in again] == [d["action"] for d in decisions]
    late = copy.deepcopy(requests[3])
    late["parcel"]["packed_at"] = datetime.datetime(2025, 12, 10, 23, 30, tzinfo=datetime.UTC)
    [body], _ = decide(shop.bundle, shop.snapshot, policy, [late], capacity)
    assert body["advice"]["action"] == "add_fill"
    assert decide(shop.bundle, shop.snapshot, policy, [requests[3]])[1][0]["action"] == "add_fill"  # nobody counts


def test_the_control_arm_takes_no_room(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        action = document["actions"]["add_fill"] | {"cost": 0.0, "capacity_per_day": 2, "randomize": 0.5}
        document |= {"actions": {"add_fill": action}, "least_benefit": 0.0, "salt": salt}

    for salt in "0123456789":  # noqa: B007
        policy = shop.policy(change)
        if withheld(policy, "add_fill", shop.requests[0]["parcel"]["parcel_id"]):
            break
    requests = copy.deepcopy(shop.requests[:20])
    for request in requests:
        request["parcel"] |= {"void_fill_ratio": 0.1}
        request["parcel"]["packed_at"] = datetime.datetime(2025, 12, 30, 12, tzinfo=datetime.UTC)
        request["order"]["ordered_at"] = datetime.datetime(2025, 12, 1, tzinfo=datetime.UTC)
    _, decisions = decide(shop.bundle, shop.snapshot, policy, requests, Capacity())
    expected: list[str] = []
    for request in requests:
        held = withheld(policy, "add_fill", request["parcel"]["parcel_id"])
        expected.append("none" if expected.count("act") == 2 else "control" if held else "act")
    assert [d["arm"] for d in decisions] == expected
    assert {*expected} == {"act", "control", "none"}


WORKER = """
import sys
from pathlib import Path
from serving.advice import Capacity
from serving.policy import Policy

policy, capacity = Policy.load(sys.argv[1]), Capacity(Path(sys.argv[2]))
for i in range(60):
    parcel = (int(sys.argv[3]) + i) % 60
    if capacity.take(policy, "add_fill", "2025-12-10", f"P{parcel}", do=True):
        print(parcel)
"""


def places(file: Path, policy: Policy) -> int:
    """How many of the same 60 parcels have a place, or get one."""
    capacity = Capacity(file)
    had = [capacity.take(policy, "add_fill", "2025-12-10", f"P{i}", do=True) for i in range(60)]
    capacity.close()
    return sum(had)


def test_processes_keep_one_capacity_between_them_and_remember_it(shop: Shop, tmp_path: Path) -> None:
    policy = shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=25))
    file = tmp_path / "shared" / "capacity.sqlite"
    (tmp_path / "policy.toml").write_text(tomli_w.dumps(policy.document), encoding="utf-8")
    command = [sys.executable, "-c", WORKER, str(tmp_path / "policy.toml"), str(file)]
    workers = [subprocess.Popen([*command, first], stdout=subprocess.PIPE, text=True) for first in ("0", "30")]
    given = [set(worker.communicate()[0].split()) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(given[0] | given[1]) == 25, given
    assert places(file, policy) == 25, "after a restart those that had one"
    assert places(file, shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=25, cost=1.0))) == 25
    assert places(file, shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=26))) == 26
    other = Capacity(file)
    assert other.take(policy, "add_fill", "2025-12-11", "P1", do=True), "another day has its own"
    assert not other.take(policy, "add_fill", "2025-12-10", "Q", do=False)
    other.close()
    assert b"P1" not in file.read_bytes()


def test_the_packer_is_advised_where_nobody_can_count(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=1))
    file = tmp_path / "capacity.sqlite"
    file.write_bytes(b"no database " * 500)
    capacity = Capacity(file)
    assert "the day's capacity is not kept" in caplog.text
    assert [capacity.take(policy, "add_fill", "2025-12-10", p, do=True) for p in "aab"] == [True, True, False]
    capacity.close()
    assert capacity.take(policy, "add_fill", "2025-12-10", "c", do=True)
    (tmp_path / "folder").mkdir()
    assert Capacity(tmp_path / "folder").take(policy, "add_fill", "2025-12-10", "c", do=True)


# ---- rules, handoff, protocols


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
        broken = {v["field"]: (v["given"], v["required"]) for v in body["violations"]}
        assert broken == {
            "protection_level": (1.0, "protection_level at least 2"),
            "label_grade": ("D", "label_grade at least C"),
            "documents_complete": (False, "documents_complete is true"),
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
        document |= {"specification": [rule], "least_benefit": 1e6}

    def withheld_(document: dict[str, Any]) -> None:
        document["specification"] = [rule]
        for action in document["actions"].values():
            action["randomize"] = 0.9

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


def test_failures_of_a_business_and_of_a_dear_parcel_cost_more(shop: Shop) -> None:
    request = copy.deepcopy(shop.requests[0])
    request["lines"] = request["lines"][:1]
    request["lines"][0] |= {"unit_price": 900.0, "quantity": 1.0, "discount": 0.0}
    request["order"]["is_business"] = True
    assert failure(shop.document, "damaged", request) == pytest.approx(
        (shop.document["failures"]["damaged"]["cost"] + 0.9 * 900) * 1.2 * 1.5
    )
    options, _ = shop.options(shop.policy(), [request])
    request["order"]["is_business"] = False
    other, _ = shop.options(shop.policy(), [request])
    k = options.keys.index("add_fill")
    drop, less = (x.before["damaged"][0] - x.after["damaged"][0, k] for x in (options, other))
    assert options.saving[0, k] / drop == pytest.approx(1.5 * other.saving[0, k] / less)


def test_every_target_has_a_word(shop: Shop) -> None:
    from serving.advice import WORDS

    assert {*WORDS} == {*TARGETS}
    assert replace(shop.policy(), name="x").digest == shop.policy().digest
