"""Splits in time, by a worked example in numbers, and a validator that finds every way to break one."""

import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.dataset import DAYS, START, shop
from oracles.labels import Oracle

from features.dataset import Dataset
from features.settings import Settings
from features.snapshot import Facts
from training.labels import Labels, labels
from training.splits import Fold, rolling, split, violations


def date(text: str) -> pd.Timestamp:
    return pd.Timestamp(f"2024-{text}", tz="UTC")


def us(time: pd.Timestamp) -> np.datetime64:
    return np.datetime64(time.tz_localize(None), "us")


def example() -> Labels:
    """The example of the module: a return window of 30 days, and a model that goes live on 1 May."""
    packed = {
        "old": ("03-10", "03-12", None),  # closed on 11 April: known to be kept
        "back": ("03-10", "03-12", "03-20"),  # known to be sent back
        "edge": ("03-30", "04-01", None),  # closes on 1 May at 00:00, and 1 May is too late
        "young": ("04-20", "04-23", None),  # closes on 23 May: on 1 May nobody knows
        "tested": ("05-01", "05-03", "05-09"),
        "later": ("05-20", "05-22", None),  # closes on 21 June
        "too new": ("06-20", "06-22", None),  # still open on 1 July
        "lost": ("03-10", None, None),  # never delivered: never judged
    }
    names = list(packed)
    delivered = {n: p[1] for n, p in packed.items() if p[1]}
    frames = {
        "orders": pd.DataFrame({"order_id": names, "ordered_at": [date(p[0]) for p in packed.values()]}),
        "parcels": pd.DataFrame(
            {"parcel_id": names, "order_id": names, "packed_at": [date(p[0]) for p in packed.values()]}
        ),
        "order_lines": pd.DataFrame({"line_id": names, "order_id": names, "sku": ["u"] * len(names)}),
        "events": pd.DataFrame(
            {"parcel_id": list(delivered), "kind": "delivered", "happened_at": [date(d) for d in delivered.values()]}
        ),
        "returns": pd.DataFrame(
            {
                "line_id": [n for n in names if packed[n][2]],
                "requested_at": [date(p[2]) for p in packed.values() if p[2]],
            }
        ),
    }
    return labels(Facts.of(Dataset.from_frames(frames, Settings(return_window_days=30)), date("12-31")), "returned")


def test_the_worked_example_in_numbers() -> None:
    units = example()

    fold = split(units, us(date("05-01")), us(date("07-01")))

    def of(at: np.ndarray, label: np.ndarray) -> dict[str, int]:
        return dict(zip(units.unit_id[at], label.tolist(), strict=True))

    assert of(fold.train, fold.train_label) == {"old": 0, "back": 1}
    assert of(fold.test, fold.test_label) == {"tested": 1, "later": 0}
    assert fold.immature_train == 2  # "edge" and "young"; "lost" can never be judged and is not waited for
    assert fold.immature_test == 1  # "too new"
    assert violations(units.decided_at, units.matures_at, fold.train, fold.test, fold.at) == []


def test_a_label_that_changes_after_the_split_trains_as_it_was_known_then() -> None:
    noon = pd.Timestamp("2024-03-01 12:00", tz="UTC")
    frames = {
        "orders": pd.DataFrame({"order_id": ["o"], "ordered_at": [noon], "promised_to": [noon + pd.Timedelta(days=3)]}),
        "parcels": pd.DataFrame({"parcel_id": ["p"], "order_id": ["o"]}),
        "events": pd.DataFrame(
            {
                "parcel_id": ["p"],
                "kind": ["delivered"],
                "happened_at": [noon + pd.Timedelta(days=2)],
                "known_at": [noon + pd.Timedelta(days=30)],
            }
        ),
    }
    units = labels(Facts.of(Dataset.from_frames(frames), noon + pd.Timedelta(days=99)), "late")

    early = split(units, us(noon + pd.Timedelta(days=10)), us(noon + pd.Timedelta(days=40)))
    late = split(units, us(noon + pd.Timedelta(days=35)), us(noon + pd.Timedelta(days=40)))

    assert early.train_label.tolist() == [1]  # on day 10 the shop took it for late
    assert late.train_label.tolist() == [0]


@pytest.mark.parametrize("target", ["late", "undelivered", "returned"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_holds_what_a_plain_loop_would_put_there(target: str, seed: int) -> None:
    dataset = shop(seed)
    units, oracle, chance = labels(Facts.of(dataset), target), Oracle(dataset), random.Random(seed)
    by_id = {u.id: u for u in (oracle.lines if units.unit == "line" else oracle.parcels)}
    for _ in range(5):
        at = START + pd.Timedelta(hours=chance.randrange(15 * 24, 40 * 24))
        until = at + pd.Timedelta(hours=chance.randrange(5 * 24, 30 * 24))

        fold = split(units, us(at), us(until))

        train, test = {}, {}
        for name, unit in by_id.items():
            if name is None or unit.decided_at is None:
                continue
            if unit.decided_at < at and (label := oracle.label(target, unit, at)) is not None:
                train[name] = label
            if at <= unit.decided_at < until and (label := oracle.label(target, unit, until)) is not None:
                test[name] = label
        assert dict(zip(units.unit_id[fold.train], fold.train_label, strict=True)) == train
        assert dict(zip(units.unit_id[fold.test], fold.test_label, strict=True)) == test
        assert violations(units.decided_at, units.matures_at, fold.train, fold.test, us(at)) == []


def test_labels_are_read_after_the_split() -> None:
    units = example()
    with pytest.raises(ValueError, match="the labels must be read after the split"):
        split(units, us(date("05-01")), us(date("05-01")))


# The validator does not trust the splitter.


@pytest.fixture(scope="module")
def fold() -> tuple[Labels, Fold]:
    units = labels(Facts.of(shop(2)), "late")
    return units, split(units, us(START + pd.Timedelta(days=30)), us(START + pd.Timedelta(days=DAYS + 25)))


def told(units: Labels, at: np.datetime64, train: np.ndarray, test: np.ndarray) -> list[str]:
    return violations(units.decided_at, units.matures_at, train, test, at)


def test_a_good_split_is_not_blamed(fold: tuple[Labels, Fold]) -> None:
    units, good = fold
    assert len(good.train) > 10 and len(good.test) > 10
    assert told(units, good.at, good.train, good.test) == []
    assert told(units, good.at, good.train[:0], good.test[:0]) == []


def test_a_unit_on_both_sides_is_found(fold: tuple[Labels, Fold]) -> None:
    units, good = fold
    found = told(units, good.at, np.append(good.train, good.test[:2]), good.test)
    assert "2 units are on both sides" in found


def test_a_training_unit_of_the_future_is_found(fold: tuple[Labels, Fold]) -> None:
    units, good = fold
    found = told(units, good.at, np.append(good.train, good.test[:1]), good.test[1:])
    assert f"1 training units were decided at {good.at} or later" in found


@pytest.mark.parametrize("when", ["at the split", "never"])
def test_a_training_label_that_was_not_mature_is_found(fold: tuple[Labels, Fold], when: str) -> None:
    units, good = fold
    matures = units.matures_at.copy()
    matures[good.train[3]] = good.at if when == "at the split" else np.datetime64("NaT")
    found = told(replace(units, matures_at=matures), good.at, good.train, good.test)
    assert f"1 training labels were not mature at {good.at}" in found


@pytest.mark.parametrize("when", ["before the split", "never"])
def test_a_test_unit_of_the_past_is_found(fold: tuple[Labels, Fold], when: str) -> None:
    units, good = fold
    decided = units.decided_at.copy()
    decided[good.test[3]] = good.at - np.timedelta64(1, "us") if when == "before the split" else np.datetime64("NaT")
    found = told(replace(units, decided_at=decided), good.at, good.train, good.test)
    assert f"1 test units were decided before {good.at}" in found


def test_a_split_without_a_gap_is_found_by_its_labels(fold: tuple[Labels, Fold]) -> None:
    """The common mistake: by decision time alone, with labels as they are in today's extract."""
    units, good = fold
    train = np.flatnonzero(units.decided_at < good.at)
    found = told(units, good.at, train, good.test)
    assert any("not mature" in f for f in found)
    assert "a training label matured after the first test decision" in found


def test_a_random_split_is_found(fold: tuple[Labels, Fold]) -> None:
    units, good = fold
    mixed = np.random.default_rng(0).permutation(np.concatenate([good.train, good.test]))
    half = len(mixed) // 2
    assert len(told(units, good.at, mixed[:half], mixed[half:])) >= 3


moments = st.integers(0, 20)


@given(st.lists(st.tuples(moments, st.one_of(st.none(), moments)), min_size=1, max_size=8), moments, st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whatever_is_not_blamed_could_have_been_done_at_the_time(units: list, at: int, data: st.DataObject) -> None:
    places = st.lists(st.integers(0, len(units) - 1), unique=True, max_size=4)
    train, test = data.draw(places), data.draw(places)
    decided = np.array([d for d, _ in units], dtype="datetime64[us]")
    matures = np.array([np.datetime64("NaT") if m is None else m for _, m in units], dtype="datetime64[us]")

    blamed = violations(decided, matures, train, test, np.datetime64(at, "us"))

    fine = not set(train) & set(test)
    fine &= all(units[i][0] < at and units[i][1] is not None and units[i][1] < at for i in train)
    fine &= all(units[i][0] >= at for i in test)
    assert (blamed == []) == fine


# Rolling origins.


@pytest.mark.parametrize("target", ["late", "damaged", "returned"])
@pytest.mark.parametrize("folds", [1, 3, 5])
def test_rolling_folds_obey_the_clock_and_follow_one_another(target: str, folds: int) -> None:
    units = labels(Facts.of(shop(5, 150)), target)
    until = us(START + pd.Timedelta(days=50))

    made = rolling(units, until, folds)

    assert 1 <= len(made) <= folds
    tested: set[int] = set()
    for fold, after in zip(made, [*made[1:], None], strict=True):
        assert told(units, fold.at, fold.train, fold.test) == []
        assert fold.until == until
        assert fold.at == fold.at.astype("datetime64[D]")  # origins are midnights: a day is never on both sides
        end = until if after is None else after.at
        assert (units.decided_at[fold.test] < end).all()
        assert not tested & set(fold.test.tolist())
        tested |= set(fold.test.tolist())
        assert set(fold.train.tolist()) <= set(np.flatnonzero(units.decided_at < fold.at).tolist())
        label, mature = units.known(fold.at)
        np.testing.assert_array_equal(fold.train, np.flatnonzero(mature & (units.decided_at < fold.at)))
        np.testing.assert_array_equal(fold.train_label, label[fold.train])
        label, mature = units.known(until)
        assert mature[fold.test].all()
        np.testing.assert_array_equal(fold.test_label, label[fold.test])
    _, mature = units.known(until)
    last = mature & (units.decided_at >= made[0].at) & (units.decided_at < until)
    assert tested == set(np.flatnonzero(last).tolist())


def test_no_mature_units_are_no_folds() -> None:
    units = labels(Facts.of(shop(5)), "late")

    assert rolling(units, us(START), 3) == []
    assert rolling(units, us(START + pd.Timedelta(days=2)), 3) == []
