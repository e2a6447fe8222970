"""What actions do, what they cost, and what they are worth."""

from __future__ import annotations

import copy
import datetime
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.actions import cost, failure, log_odds, saving
from shops import ASKED, CARRIERS, LEVERS, Shop, carriers

from features.treated import COLUMNS
from features.vocabulary import TARGETS
from serving.actions import PROTECTED, weigh
from serving.explain import logistic
from serving.levers import BETTER
from serving.score import answer, decide


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


def test_a_benefit_is_in_its_interval_as_often_as_it_says(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth drawn from what the levers leave open, and the benefit by it: 95 % of the draws are inside, or more.

    400 draws miss that by up to 4 points in one of ten thousand runs.
    """
    policy = shop.policy(lambda d: d["actions"].pop("carrier"))
    said, rows = shop.options(policy, shop.requests[:8])
    known = said.offered & ~np.isnan(said.low)
    assert {key for k, key in enumerate(said.keys) if known[:, k].any()} >= {
        "add_fill",
        "fix_label",
        "package:foam_box",
    }
    rng = np.random.default_rng(5)
    draws, inside = 400, np.zeros(said.benefit.shape)
    for _ in range(draws):
        true = [
            replace(x, coefficients=tuple(rng.multivariate_normal(x.coefficients, np.array(x.covariance)).tolist()))
            for x in LEVERS
        ]
        monkeypatch.setattr(shop.bundle, "levers", tuple(true))
        truth = weigh(shop.bundle, policy, rows, said.before)
        inside += (said.low - 1e-9 <= truth.benefit) & (truth.benefit <= said.high + 1e-9)
    for k in range(len(said.keys)):
        mine = known[:, k]
        if mine.any():
            assert (inside[mine, k] / draws).mean() > 0.91, said.keys[k]
    one = [k for k, key in enumerate(said.keys) if key == "add_fill"]  # one lever alone: no wider than it must be
    assert (inside[known[:, one[0]], one[0]] / draws).mean() < 0.99


def test_another_carriers_benefit_is_in_its_interval_as_often_as_it_says(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth drawn from what the carriers' levers leave open; without one of them there is no interval."""
    policy, names = shop.policy(), {"alba": -0.3, "borea": 0.0, "corvus": 0.4, "dorado": 0.1}
    levers = {target: carriers(target, 0.2, **names) for target in TARGETS if target in shop.bundle.targets}
    monkeypatch.setattr(shop.bundle, "carriers", levers)
    said, rows = shop.options(policy, shop.requests[:8])
    own = [k for k, key in enumerate(said.keys) if key.startswith("carrier:") and said.offered[:, k].any()]
    assert len(own) >= 2
    known = said.offered & ~np.isnan(said.low)
    assert known[:, own].sum() >= 8
    rng = np.random.default_rng(7)
    draws, inside = 200, np.zeros(said.benefit.shape)
    for _ in range(draws):
        true = {}
        for target, x in levers.items():
            found = rng.multivariate_normal(x.effects[0], np.array(x.covariance[0])).tolist()
            true[target] = replace(x, effects=(tuple(found),))
        monkeypatch.setattr(shop.bundle, "carriers", true)
        truth = weigh(shop.bundle, policy, rows, said.before)
        inside += (said.low - 1e-9 <= truth.benefit) & (truth.benefit <= said.high + 1e-9)
    assert (inside[:, own][known[:, own]] / draws).mean() > 0.95, "both ends at once are rather too wide"
    assert (said.low[:, own] < said.benefit[:, own])[known[:, own]].all()

    monkeypatch.setattr(shop.bundle, "carriers", {t: x for t, x in levers.items() if t != "late"})
    less, _ = shop.options(policy, shop.requests[:8])
    assert np.isnan(less.low[:, own][known[:, own]]).all() and less.unsure["late"][:, own][known[:, own]].all()
    others = [t for t in levers if TARGETS[t].unit == "parcel" and t != "late"]
    assert not any(less.unsure[t][:, own][known[:, own]].any() for t in others)


def test_an_effect_that_is_stated_opens_a_benefit_by_its_own_interval(shop: Shop) -> None:
    def stated(**interval: float) -> Any:
        effect = {"odds_ratio": 0.5, "source": "assumed", **interval}

        def change(document: dict[str, Any]) -> None:
            document["actions"]["pickup_point"]["effects"] = {"failed_attempt": effect}

        return shop.options(shop.policy(change), shop.requests)[0]

    plain, wide = stated(), stated(low=0.2, high=1.5)
    k = plain.keys.index("pickup_point")
    assert np.isnan(plain.low[:, k]).all() and np.isnan(plain.high[:, k]).all()
    # An odds ratio at one of its ends is what the benefit is at that end.
    for ratio, end in ((1.5, wide.low), (0.2, wide.high)):
        at = stated(low=ratio, high=ratio, odds_ratio=ratio)
        np.testing.assert_allclose(end[:, k], at.benefit[:, k], atol=1e-12)
        np.testing.assert_allclose(at.low[:, k], at.high[:, k], atol=1e-12)


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
