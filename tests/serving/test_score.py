"""One request and a whole dataset are answered alike, on awkward shops: the two paths into `serving.score` agree."""

import dataclasses
import datetime
import math
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from oracles.asof import decided_at
from oracles.dataset import END, START, shop
from oracles.labels import plain

from features.dataset import Dataset
from features.history import ENTITIES, key
from features.matrix import FeatureSet, catalogue, values
from features.settings import Settings
from features.snapshot import Facts, Snapshot
from features.vocabulary import GENERIC_BASE_RATES, TARGETS, TEAMS
from serving.bundle import Bundle, TargetModel
from serving.score import answer, score, unknown_codes
from serving.windows import LEVELS, QUANTILES, Group, WindowModel
from training.models.compile import compile_booster


def bundle_of(facts: Facts) -> Bundle:
    """Small models of every target, and of the window, that split on many features; what they say is of no matter."""
    import lightgbm as lgb

    random_numbers, models = np.random.default_rng(0), {}
    params = {"num_leaves": 8, "min_data_in_leaf": 3, "verbose": -1, "seed": 1, "num_threads": 1}
    params["feature_fraction"] = 0.3
    for target in TARGETS:
        features = FeatureSet.for_target(target, facts.snapshot.settings)
        matrix = values(facts.rows, features)
        label = random_numbers.integers(0, 2, len(matrix))
        booster = lgb.train({"objective": "binary", **params}, lgb.Dataset(matrix, label), num_boost_round=40)
        usual = tuple(np.nanmedian(np.where(np.isnan(matrix).all(axis=0), 0, matrix), axis=0).tolist())
        models[target] = TargetModel(target, features, compile_booster(booster), 1.1, -0.4, 0.1, usual)
    features = FeatureSet.for_target("late", facts.snapshot.settings)
    matrix = values(facts.rows, features)
    took = random_numbers.normal(4, 1, len(matrix))
    start, likely, end = (
        compile_booster(lgb.train({"objective": "quantile", "alpha": q, **params}, lgb.Dataset(matrix, took), 20))
        for q in QUANTILES
    )
    carriers = np.unique(key(ENTITIES["carrier"], facts.rows.parcels))[:2]
    groups = {level: () for level in LEVELS} | {"all": (Group(1, "all parcels", 100, (-0.1, 0.02, 0.2)),)}
    groups["carrier"] = tuple(Group(int(k), "one", 100, (0.1, 0.2, 0.3)) for k in carriers if k)
    window = WindowModel(features, (start, likely, end), groups)
    return Bundle("0123456789abcdef", facts.snapshot.settings, models, None, {}, window)


def alike(one: Any, other: Any) -> bool:
    """The same answers, with numbers equal to 1e-12: trees are summed in another order for many rows than for one."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-12
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(v, other[k]) for k, v in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.fixture(scope="module", params=[0])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return shop(request.param)


@pytest.fixture(scope="module")
def facts(dataset: Dataset) -> Facts:
    return Facts.of(dataset)


@pytest.fixture(scope="module")
def bundle(facts: Facts) -> Bundle:
    return bundle_of(facts)


def requests_of(dataset: Dataset, facts: Facts) -> list[dict[str, Any]]:
    """A request per parcel, as a shop would send it: only what it knew at the decision, times as text in any zone."""
    chance = random.Random(0)
    orders = {o["order_id"]: o for o in plain(dataset.tables["orders"])}
    lines = {x["line_id"]: x for x in plain(dataset.tables["order_lines"])}
    out = []
    for i, parcel in enumerate(plain(dataset.tables["parcels"])):
        mine = facts.rows.line_id[facts.rows.line_parcel == i]
        out.append({"order": orders[parcel["order_id"]], "parcel": parcel, "lines": [lines[x] for x in mine]})

    def sent(value: Any) -> Any:
        if isinstance(value, pd.Timestamp):
            local = value.tz_convert(chance.choice(["UTC", "Asia/Jakarta", "America/St_Johns"]))
            return local.isoformat() if chance.random() < 0.5 else local.to_pydatetime()
        if isinstance(value, dict):
            # What is not known is left out or null.
            return {k: sent(v) for k, v in value.items() if v is not None or chance.random() < 0.5}
        return [sent(v) for v in value] if isinstance(value, list) else value

    return [sent(r) for r in out]


def test_requests_one_by_one_together_and_the_dataset_are_answered_alike(
    dataset: Dataset, facts: Facts, bundle: Bundle
) -> None:
    requests = requests_of(dataset, facts)
    frame = pd.concat(score(bundle, facts.rows)).set_index(["target", "unit_id"])

    together = answer(bundle, facts.snapshot, requests)
    alone = [answer(bundle, facts.snapshot, [r])[0] for r in requests]

    assert alike(alone, together)
    said = 0
    for request, body in zip(requests, together, strict=True):
        answers = [(body["parcel_id"], target, risk) for target, risk in body["risks"].items()]
        answers += [(r["line_id"], "returned", r) for r in body["returns"]]
        assert [r["line_id"] for r in body["returns"]] == [x["line_id"] for x in request["lines"]]
        for unit_id, target, risk in answers:
            row = frame.loc[(target, unit_id)]
            assert risk["probability"] == pytest.approx(row["probability"], abs=1e-12)
            assert risk["base"] == row["base"]
            for team in TEAMS:
                assert risk["teams"][team] == pytest.approx(row[f"team_{team}"], abs=1e-12)
            said += 1
        row = frame.loc[("late", body["parcel_id"])]
        for part in ("from", "likely", "to"):
            assert pd.Timestamp(body["window"][part]) == row[f"window_{part}"]
    assert said == sum(len(g) for t, g in frame.groupby(level=0) if t != "returned") + (
        facts.rows.line_parcel >= 0
    ).sum() - _bare(facts)
    assert len({round(b["risks"]["late"]["probability"], 9) for b in together}) > 20


def _bare(facts: Facts) -> int:
    """Lines of orders that have no parcel: nobody asks for them at a packing station."""
    at = facts.rows.line_parcel
    return int(sum(facts.rows.parcel_id[i] is None for i in at[at >= 0]))


def test_every_answer_adds_up(dataset: Dataset, facts: Facts, bundle: Bundle) -> None:
    for body in answer(bundle, facts.snapshot, requests_of(dataset, facts)):
        assert body["degraded"] is False and body["bundle"] == "0123456789ab"
        for risk in [*body["risks"].values(), *body["returns"]]:
            assert abs(risk["base"] + sum(risk["teams"].values()) - risk["probability"]) < 1e-9
            assert abs(risk["base"] + sum(d["points"] for d in risk["drivers"]) - risk["probability"]) < 1e-9
            for team in TEAMS:
                mine = [d for d in risk["drivers"] if d["team"] == team]
                assert abs(sum(d["points"] for d in mine) - risk["teams"][team]) < 1e-9
                named = [abs(d["points"]) for d in mine if d["feature"] != "other"]
                assert named == sorted(named, reverse=True) and len(named) <= 3
            assert all("\n" not in d["text"] and d["text"].endswith("points") for d in risk["drivers"])


def test_what_a_driver_says_in_words_is_in_its_fields(dataset: Dataset, facts: Facts, bundle: Bundle) -> None:
    known, told = catalogue(bundle.settings), set()
    for body in answer(bundle, facts.snapshot, requests_of(dataset, facts)[:60]):
        reasons = [line["reason"] for line in body["returns"] if "reason" in line]
        for d in [d for risk in (*body["risks"].values(), *body["returns"], *reasons) for d in risk["drivers"]]:
            if d["feature"] != "other":
                value, usual = (math.nan if d[x] is None else d[x] for x in ("value", "usual"))
                say = known[d["feature"]].words
                same = d["usual"] is None or say(value) == say(usual)
                told.add(same)
                said = f"{known[d['feature']].say(value)}{'' if same else f', usual here is {say(usual)}'}"
                assert d["text"].rpartition(": ")[0] == said
    assert told == {True, False}


def test_what_a_request_says_of_the_future_changes_no_answer(dataset: Dataset, bundle: Bundle) -> None:
    """As of the middle of the period: the snapshot of then, and the same snapshot made from the whole extract."""
    t = START + pd.Timedelta(days=35, hours=9)
    snapshot = Snapshot.from_dataset(dataset, t)
    facts = Facts.of(dataset)
    decided = decided_at(dataset.tables)
    chosen = [r for r in requests_of(dataset, facts) if decided[r["parcel"]["parcel_id"]] <= t]
    whole = pd.concat(score(bundle, facts.rows)).set_index(["target", "unit_id"])["probability"]

    bodies = answer(bundle, snapshot, chosen)

    assert len(bodies) > 20
    for body in bodies:
        for target, risk in body["risks"].items():
            assert risk["probability"] == pytest.approx(whole[target, body["parcel_id"]], abs=1e-12)


def test_a_request_with_its_own_listing_is_answered_among_others_as_alone(
    dataset: Dataset, facts: Facts, bundle: Bundle
) -> None:
    requests = requests_of(dataset, facts)[:8]
    for r, rating in ((requests[2], 1.0), (requests[5], 5.0)):
        r["lines"] = [{"line_id": "new", "sku": "a new product", "quantity": 1}]
        r["listings"] = [
            {"sku": "a new product", "rating": rating, "photo_count": 9 * rating, "has_size_guide": rating > 2}
        ]
    requests[6]["lines"] = [{"line_id": "new", "sku": "a new product", "quantity": 1}]  # described by others, not by it

    together = answer(bundle, facts.snapshot, requests)

    assert alike(together, [answer(bundle, facts.snapshot, [r])[0] for r in requests])
    seen = {d["feature"]: d["value"] for b in together[6:7] for r in b["returns"] for d in r["drivers"]}
    assert seen.get("rating") is None and seen.get("photo_count") is None


def test_codes_of_a_request_are_read_as_those_of_a_dataset() -> None:
    codes = {"payment_method": {"COD (Bayar di Tempat)": "cod", "-": ""}}
    settings = Settings(name="mapped", return_window_days=6, lost_after_days=8, extracted_at=END, codes=codes)
    dataset = Dataset(settings, shop(0, extras=False).tables)
    facts = Facts.of(dataset)
    bundle = bundle_of(facts)

    def ask(payment: str | None) -> dict[str, Any]:
        request = {
            "order": {"ordered_at": "2024-05-01T10:00:00+02:00", "payment_method": payment},
            "parcel": {"carrier": "k1"},
        }
        return answer(bundle, facts.snapshot, [request])[0]

    assert ask("COD (Bayar di Tempat)")["risks"] == ask(" cod ")["risks"] == ask("cod")["risks"]
    assert ask("-")["risks"] == ask("")["risks"] == ask(None)["risks"] != ask("cod")["risks"]
    assert ask("cod")["warnings"] == ask("-")["warnings"]
    assert any("'barter' has not been seen" in w for w in ask("barter")["warnings"])
    assert unknown_codes(facts.snapshot, {"order": {"payment_method": "barter"}}) == [
        ("orders", "payment_method", "barter")
    ]


def test_the_least_a_request_can_say_is_answered_and_what_is_missing_is_named(facts: Facts, bundle: Bundle) -> None:
    body = answer(
        bundle,
        facts.snapshot,
        [{"order": {"ordered_at": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)}, "parcel": {}}],
    )[0]

    assert set(body["risks"]) == {t for t in TARGETS if TARGETS[t].unit == "parcel"}
    assert "parcels.carrier" in body["missing"] and "orders.ordered_at" not in body["missing"]
    assert all(0 < r["probability"] < 1 for r in body["risks"].values())


def test_without_a_decision_time_nothing_of_history_is_known(facts: Facts, bundle: Bundle) -> None:
    requests = [{"order": {"customer_id": "c1"}, "parcel": {"carrier": "k1"}}, {}]

    for body in answer(bundle, facts.snapshot, requests):
        assert all(0 < r["probability"] < 1 for r in body["risks"].values())


@pytest.mark.parametrize("known", ["nothing", "snapshot", "bundle"])
def test_degraded_answers_are_base_rates(facts: Facts, bundle: Bundle, known: str) -> None:
    body = answer(
        bundle if known == "bundle" else None,
        facts.snapshot if known == "snapshot" else None,
        [{"order": {}, "parcel": {"parcel_id": "p"}, "lines": [{"line_id": "l"}]}],
    )[0]

    assert body["degraded"] is True and body["parcel_id"] == "p"
    rates = {n: r["probability"] for n, r in body["risks"].items()} | {"returned": body["returns"][0]["probability"]}
    if known == "nothing":
        assert rates == GENERIC_BASE_RATES
    elif known == "bundle":
        assert set(rates.values()) == {0.1}
    else:
        label, mature = facts.outcomes["late"].label(facts.snapshot.as_of)
        assert rates["late"] == label[mature].mean()


def test_a_snapshot_made_with_other_settings_is_not_used(facts: Facts, bundle: Bundle) -> None:
    settings = dataclasses.replace(facts.snapshot.settings, lost_after_days=99)
    other = dataclasses.replace(facts.snapshot, settings=settings)
    (said,) = answer(bundle, other, [{"order": {"ordered_at": "2024-05-01T10:00:00Z"}, "parcel": {"parcel_id": "p"}}])
    assert said["degraded"] is True
    assert "other settings" in said["warnings"][0]
    assert said["risks"]["late"]["probability"] == bundle.targets["late"].base_rate
