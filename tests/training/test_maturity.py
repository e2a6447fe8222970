"""What young units tell: against Kaplan and Meier, against shops whose rate is known, and only by what was known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.maturity import kaplan_meier

from features.dataset import Dataset
from features.matrix import FeatureSet
from features.settings import Settings
from features.snapshot import Facts
from training.labels import labels
from training.maturity import FOUR_WEEKS, LEAST, News, TooYoung, matured_rate, news
from training.models import MODELS, Fitted, ModelSpec, fit

WINDOW = 30
START = pd.Timestamp("2024-01-01", tz="UTC")
HOUR = pd.Timedelta(hours=1)


def us(time: pd.Timestamp) -> np.datetime64:
    return np.datetime64(time.tz_convert("UTC").tz_localize(None), "us")


def shop(door: list[float], returned: list[float | None], order: list[int] | None = None) -> Facts:
    """Lines delivered on a day (and packed the day before), and sent back so many days later or not at all."""
    n = len(door)
    order = list(range(n)) if order is None else order
    names, orders = [f"l{i}" for i in range(n)], [f"o{k}" for k in order]
    packed = [START + pd.Timedelta(days=d - 1) for d in door]
    parcels = pd.DataFrame({"parcel_id": orders, "order_id": orders, "packed_at": packed}).drop_duplicates("parcel_id")
    back = [
        (m, START + pd.Timedelta(days=d + r)) for m, d, r in zip(names, door, returned, strict=True) if r is not None
    ]
    frames = {
        "orders": parcels[["order_id"]].assign(ordered_at=parcels["packed_at"]),
        "parcels": parcels,
        "order_lines": pd.DataFrame({"line_id": names, "order_id": orders, "parcel_id": orders, "sku": "u"}),
        "events": pd.DataFrame(
            {
                "parcel_id": parcels["parcel_id"],
                "kind": "delivered",
                "happened_at": parcels["packed_at"] + pd.Timedelta(days=1),
            }
        ),
        "returns": pd.DataFrame(
            {
                "line_id": pd.Series([m for m, _ in back], dtype=object),
                "requested_at": pd.Series([t for _, t in back], dtype="datetime64[us, UTC]"),
            }
        ),
    }
    return Facts.of(Dataset.from_frames(frames, Settings(return_window_days=WINDOW)), START + pd.Timedelta(days=3_000))


def simulated(
    r: np.random.Generator, n: int, before: float, after: float, days: int = 200, together: int = 1
) -> tuple[Facts, np.datetime64]:
    """A shop whose lines come back with one chance until four weeks before the end, and with another one since."""
    group = np.arange(n) // together
    door = np.sort(r.uniform(1, days, group[-1] + 1))[group]
    chance = np.where(door - 1 >= days - 28, after, before)
    fate = r.random(group[-1] + 1)[group]
    took = np.minimum(r.gamma(2, 5, n), WINDOW - 0.01)
    back = [float(t) if f < c else None for f, c, t in zip(fate, chance, took, strict=True)]
    return shop(door.tolist(), back, group.tolist()), us(START + pd.Timedelta(days=days))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, WINDOW - 1), min_size=LEAST, max_size=60),
    st.integers(LEAST, 80),
    st.integers(1, 27),
    st.lists(st.integers(1, WINDOW - 1) | st.none(), min_size=20, max_size=60),
)
def test_a_cohort_of_one_age_is_kaplan_and_meier_continued_as_the_mature_went_on(past, kept, age, cohort):
    # Mature lines came to the door on day 1, the cohort `age` days before day 60.
    mature: list[float | None] = [d - 0.5 for d in past] + [None] * kept
    young: list[float | None] = [None if d is None else d - 0.5 for d in cohort]
    facts = shop([1.0] * len(mature) + [60.0 - age] * len(young), mature + young)
    seen = [(min(age, 99 if d is None else d), d is not None and d <= age) for d in young]
    ever = [(WINDOW if d is None else d, d is not None) for d in mature]
    so_far = kaplan_meier(seen, age)
    share = kaplan_meier(ever, age) / kaplan_meier(ever, WINDOW)
    try:
        found = matured_rate(facts, labels(facts, "returned"), us(START + pd.Timedelta(days=60)))
    except TooYoung:
        assert share < 0.4  # hardly anything is known by that age: no number is given
        return
    assert (found.units, found.mature) == (len(young), 0)
    assert found.naive == pytest.approx(float(so_far))
    # A return at an age at which no mature line came back tells nothing of the rate: leave those cases to others.
    if share > 0:
        assert found.rate == pytest.approx(min(1.0, float(so_far / share)), abs=1e-9)
        assert 0 <= found.low <= found.rate <= found.high <= 1


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.2), (0.1, 0.3), (0.3, 0.1)])
def test_a_rate_that_changed_four_weeks_ago_is_found_where_counting_so_far_is_far_off(before, after):
    found = [
        matured_rate(facts, labels(facts, "returned"), end)
        for facts, end in (simulated(np.random.default_rng(seed), 4_000, before, after) for seed in range(5))
    ]
    off, naive = (np.mean(each) - after for each in zip(*((f.rate, f.naive) for f in found), strict=True))
    assert naive < -0.3 * after
    assert abs(off) < 3 * np.mean([(f.high - f.low) / 4 for f in found]) / np.sqrt(5)  # no further off than by chance
    assert abs(off) < abs(naive) / 3
    assert sum(f.low < after < f.high for f in found) >= 4  # at 95 %, five of them miss once in four runs


@pytest.mark.parametrize("together", [1, 3])
def test_the_interval_holds_the_rate_as_often_as_it_says(together):
    facts, _ = simulated(np.random.default_rng(4), 9_000, 0.2, 0.2, days=1_400, together=together)
    units, hits = labels(facts, "returned"), []
    for day in range(150, 1_400, 28):  # cohorts of 180 lines that share nothing
        found = matured_rate(facts, units, us(START + pd.Timedelta(days=day)))
        hits.append(found.low <= 0.2 <= found.high)
    assert len(hits) == 45 and sum(hits) >= 39  # 95 % nominal: fewer than 39 of 45 in one of a hundred runs


def test_an_interval_ends_at_0_where_nothing_has_happened():
    facts = shop([1.0] * 80 + [50.0] * 20, [5.0] * 40 + [None] * 60)
    found = matured_rate(facts, labels(facts, "returned"), us(START + pd.Timedelta(days=60)))
    assert (found.rate, found.low) == (0.0, 0.0)
    assert 0.05 < found.high < 0.3  # 20 lines without one: somewhat less is known than by the rule of three


def test_who_cannot_tell_says_why():
    few = shop([1.0] * 40 + [50.0] * 20, [5.0] * (LEAST - 1) + [None] * 31)
    end = us(START + pd.Timedelta(days=60))
    with pytest.raises(TooYoung, match=r"returned: 11 of 40 mature lines have the rarer label; 30 are needed"):
        matured_rate(few, labels(few, "returned"), end)
    assert news(few, labels(few, "returned"), end).mature.all()  # and none of the young is made use of
    enough = shop([1.0] * 80, [5.0] * 40 + [None] * 40)
    with pytest.raises(TooYoung, match=r"no line decided from 2024-02-02.* was at risk"):
        matured_rate(enough, labels(enough, "returned"), end)
    # Every return so far came on the last days of the window: lines of two days can have nothing to tell.
    silent = shop([1.0] * 80 + [58.0] * 20, [WINDOW - 1.0] * 40 + [None] * 60)
    with pytest.raises(TooYoung, match=r"of 20 lines decided from .* fits every rate from 0% to 100%: wait"):
        matured_rate(silent, labels(silent, "returned"), end)


def test_a_young_line_is_never_good_but_the_better_the_longer_it_is_out():
    back = [float(d) + 0.5 for d in range(WINDOW)] * 4
    facts = shop([1.0] * 240 + [60.0 - a for a in range(1, 26)], back + [None] * 120 + [None] * 25)
    known = news(facts, labels(facts, "returned"), us(START + pd.Timedelta(days=60)))
    chance = known.chance(0.5)[~known.mature][::-1]  # youngest first
    assert (chance > 0).all() and (chance <= 0.5).all()
    assert (np.diff(chance) < 0).all()
    assert not known.happened[~known.mature].any()


def test_a_line_that_is_not_at_the_door_yet_is_not_at_risk():
    facts = shop([1.0] * 80 + [59.0, 62.0], [5.0] * 40 + [None] * 42)
    units, end = labels(facts, "returned"), us(START + pd.Timedelta(days=60, hours=6))
    known = news(facts, units, end)
    assert units.unit_id[known.where[~known.mature]].tolist() == ["l80"]


@pytest.mark.parametrize("target", ["returned", "failed_attempt", "damaged", "undelivered", "late"])
def test_nothing_that_was_known_later_changes_what_is_known(world_dataset, target):
    whole = Dataset.open(world_dataset)
    end = pd.Timestamp("2025-09-03", tz="UTC")
    now, later = Facts.of(whole, end), Facts.of(whole)
    a, b = (news(f, labels(f, target), us(end)) for f in (now, later))
    ids_a, ids_b = (labels(f, target).unit_id[k.where] for f, k in ((now, a), (later, b)))
    assert a.young > 100 and ids_a.tolist() == ids_b.tolist()
    for name in ("mature", "happened", "if_true", "if_false", "recent"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    rates = [matured_rate(f, labels(f, target), us(end)) for f in (now, later)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("target", ["returned", "failed_attempt", "damaged", "undelivered"])
def test_mature_units_are_those_of_the_split_and_all_that_happened_is_counted(world_dataset, target):
    facts = Facts.of(Dataset.open(world_dataset))
    units, at = labels(facts, target), np.datetime64("2025-09-03", "us")
    known = news(facts, units, at)
    label, mature = units.known(at)
    assert np.array_equal(known.where[known.mature], np.flatnonzero(mature & (units.decided_at < at)))
    own = known.mature
    assert np.array_equal(known.if_true[own], label[known.where[own]] == 1)
    assert np.array_equal(known.if_false[own], label[known.where[own]] == 0)
    # What is reported of the young has, with very few exceptions, happened in the end.
    end = facts.snapshot.as_of
    final, judged = (x[known.where] for x in units.known(end))
    told = ~own & known.happened & judged
    assert told.any() and (final[told] == 1).mean() > 0.9
    # The chance that is left to the others is right on average.
    rest = ~own & judged
    rate = matured_rate(facts, units, at).rate
    assert known.chance(rate)[rest].sum() == pytest.approx(final[rest].sum(), abs=4 * np.sqrt(final[rest].sum()))


def test_slopes_are_those_of_the_likelihood():
    r = np.random.default_rng(0)
    n = 200
    young = r.random(n) < 0.5
    y = r.random(n) < 0.3
    if_true = np.where(young, r.uniform(0.1, 1, n), y)
    if_false = np.where(young, r.uniform(0.1, 1, n), ~y)
    known = News(np.arange(n), ~young, y, if_true, if_false, young)
    raw, step = r.normal(-1, 1, n), 1e-5

    def loss(z: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-z))
        return -np.log(p * if_true + (1 - p) * if_false)

    gradient, curve = known.slopes(raw)
    assert gradient == pytest.approx((loss(raw + step) - loss(raw - step)) / (2 * step), abs=1e-8)
    second = (loss(raw + step) - 2 * loss(raw) + loss(raw - step)) / step**2
    p = 1 / (1 + np.exp(-raw))
    assert curve == pytest.approx(np.where(known.mature, second, np.maximum(second, 0.01 * p * (1 - p))), abs=1e-4)
    assert 0 < known.worth(raw) < 1


def learned(n: int, young: np.ndarray, worth: float, late_change: float = 0.0) -> tuple[np.ndarray, np.ndarray, Fitted]:
    """A model of rows that are in the order of time, the last of which are young; their causes and true chances."""
    r = np.random.default_rng(3)
    features = FeatureSet("line", FeatureSet.for_target("returned", Settings()).features[:6])
    matrix = r.normal(size=(n, len(features.features))).astype(np.float32)
    recent = np.arange(n) >= n - n // 8
    chance = 1 / (1 + np.exp(1.5 - matrix[:, 0] - late_change * recent))
    y = r.random(n) < chance
    known_now = r.random(n) < worth
    if_true, if_false = (
        np.where(young, np.where(y & known_now, worth, 1 - worth), y),
        np.where(young, ~(y & known_now), ~y),
    )
    told = News(np.arange(n), ~young, y & (~young | known_now), if_true.astype(float), if_false.astype(float), recent)
    label = np.where(young, -1, y).astype(np.int8)
    fitted = fit(ModelSpec("returned", max_trees=300), features, matrix, label, [], seed=0, news=told)
    return matrix, chance, fitted


def test_young_rows_whose_label_is_as_good_as_known_are_learned_from_like_mature_ones():
    n = 4_000
    young = np.arange(n) >= n // 2
    matrix, _, all_known = learned(n, young, 1 - 1e-9)
    _, _, all_mature = learned(n, np.zeros(n, dtype=bool), 1.0)
    assert (all_known.young_rows, all_mature.young_rows) == (n // 2, 0)
    assert all_known.young_worth == pytest.approx(1, abs=1e-6)
    of_known, of_mature = (f.model.probability(matrix) for f in (all_known, all_mature))
    shift = all_known.recent_level  # what only young rows are asked for
    logit = np.log(of_known / (1 - of_known)) - shift
    assert np.corrcoef(logit, np.log(of_mature / (1 - of_mature)))[0, 1] > 0.98
    assert abs(shift) < 0.3
    assert np.mean(1 / (1 + np.exp(-logit))) == pytest.approx(of_mature.mean(), abs=0.003)


def test_the_level_follows_what_changed_in_the_last_four_weeks():
    n = 20_000
    young = np.arange(n) >= n - n // 8
    matrix, chance, fitted = learned(n, young, 0.6, late_change=0.8)
    assert 0.3 < fitted.young_worth < 0.7  # a share of 0.6 of what happens is known by now
    assert 0.3 < fitted.recent_level < 0.9
    own = fitted.model.probability(matrix)[young]
    without = 1 / (1 + np.exp(fitted.recent_level - np.log(own / (1 - own))))
    assert abs(own.mean() - chance[young].mean()) < 0.4 * abs(without.mean() - chance[young].mean())
    assert abs(learned(n, young, 0.6)[2].recent_level) < 0.25  # where nothing has changed it moves by chance only


def test_metrics_tell_the_recent_rate_and_how_the_young_were_used(result, world_dataset):
    facts = Facts.of(Dataset.open(world_dataset))
    end, start = facts.snapshot.as_of, us(result.holdout_from)
    for target, found in result.metrics["targets"].items():
        recent, units = found["recent"], labels(facts, target)
        assert recent == matured_rate(facts, units, end).to_json()
        assert recent["from"] == f"{end - FOUR_WEEKS}Z" and recent["to"] == f"{end}Z"
        assert 0 <= recent["low"] <= recent["corrected"] <= recent["high"] <= 1
        used = news(facts, units, start).young if MODELS[target].young else 0
        assert found["young"]["rows"] == used
        assert 0 <= found["young"]["worth"] <= 1
    assert result.metrics["targets"]["returned"]["recent"]["naive"] < 0.8 * recent_rate(result, "returned")
    assert result.metrics["targets"]["returned"]["young"]["rows"] > 100
    assert result.metrics["targets"]["late"]["young"] == {"rows": 0, "worth": 0.0, "level": 0.0}


def recent_rate(result, target: str) -> float:
    return result.metrics["targets"][target]["recent"]["corrected"]


def test_a_shop_that_has_sold_nothing_lately_is_told_so_and_trained(world_dataset, tmp_path):
    from training import train

    data = Dataset.open(world_dataset)
    late = data.tables["parcels"]["packed_at"] >= pd.Timestamp("2025-06-01", tz="UTC")
    gone = set(data.tables["parcels"].loc[late, "order_id"])
    tables = {
        n: t[~t["order_id"].isin(gone)] if "order_id" in t else t for n, t in data.tables.items() if n != "listings"
    }
    tables["listings"] = data.tables["listings"]
    tables["events"] = tables["events"][tables["events"]["kind"].isin(["delivered", "handed_over"])]
    ids = set(tables["parcels"]["parcel_id"])
    tables["events"] = tables["events"][tables["events"]["parcel_id"].isin(ids)]
    tables["returns"] = tables["returns"][tables["returns"]["line_id"].isin(set(tables["order_lines"]["line_id"]))]
    tables["orders"] = tables["orders"].drop(columns=["promised_from", "promised_to"])
    found = train(dataclasses.replace(data, tables=tables), out=tmp_path / "run").metrics["targets"]["returned"]
    assert found["status"] == "trained"
    assert "no line decided from" in found["recent"]["why"]
