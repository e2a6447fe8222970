"""Decisions that no other test holds (docs/decisions)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from features import Dataset
from features.matrix import FeatureSet, build, catalogue
from features.settings import Settings
from features.snapshot import Facts
from serving.bundle import Bundle
from training import train
from training.models import (
    LEAST_GAIN,
    MANY_ROWS,
    MANY_ROWS_RATE,
    MODELS,
    ONE_THREAD_ROWS,
    PARAMS,
    calibration_slope,
    centred,
    cores,
    fit,
    parameters,
    threads,
)
from training.splits import Fold
from training.world import generate


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small simulated shop, on a clock that is never put forward or back."""
    found = Dataset.open(generate(tmp_path_factory.mktemp("decisions") / "shop", parcels=2_500, seed=3))
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, timezone="UTC"))


def later(shop: Dataset, by: pd.Timedelta) -> Dataset:
    """The same shop, all of it at another time."""
    times = lambda frame: frame.select_dtypes("datetimetz").columns  # noqa: E731
    tables = {n: t.assign(**{c: t[c] + by for c in times(t)}) for n, t in shop.tables.items()}
    assert shop.settings.extracted_at is not None
    settings = dataclasses.replace(shop.settings, extracted_at=shop.settings.extracted_at + by)
    return dataclasses.replace(shop, settings=settings, tables=tables)


def matrices(shop: Dataset) -> list[pd.DataFrame]:
    rows = Facts.of(shop).rows
    features = list(catalogue(shop.settings).values())
    of_parcels = tuple(f for f in features if f.level == "parcel" or f.aggregate)
    return [build(rows, FeatureSet("parcel", of_parcels)), build(rows, FeatureSet("line", tuple(features)))]


def test_no_feature_tells_the_season(shop: Dataset) -> None:
    moved = later(shop, pd.Timedelta(weeks=26))  # weekdays and hours stay, the season is another
    for here, there in zip(matrices(shop), matrices(moved), strict=True):
        pd.testing.assert_frame_equal(here, there, check_exact=True)


def test_a_week_more_or_less_would_be_noticed(shop: Dataset) -> None:
    moved = later(shop, pd.Timedelta(days=1))
    here, there = matrices(shop)[0], matrices(moved)[0]
    assert (here["ordered_weekday"] != there["ordered_weekday"]).all()


def test_a_share_without_a_history_of_its_own_is_left_out(shop: Dataset, tmp_path: Path) -> None:
    tables = dict(shop.tables)
    tables["listings"] = tables["listings"].drop(columns="brand")
    tables["events"] = tables["events"][tables["events"]["kind"] == "delivered"]  # only returns can be learned
    tables["orders"] = tables["orders"].drop(columns="promised_to")
    result = train(dataclasses.replace(shop, tables=tables), out=tmp_path / "run")
    report = result.targets["returned"]
    assert report.status == "trained"
    assert "returned_rate_brand" in report.dropped
    assert "returned_rate_category_365d" in report.features


def test_calibration_finds_the_two_numbers_where_there_are_many_rows() -> None:
    r = np.random.default_rng(0)
    raw = r.normal(-1, 1.5, 200_000)
    label = (r.random(len(raw)) < 1 / (1 + np.exp(-(0.7 * raw - 0.4)))).astype(np.int8)
    plain = LogisticRegression(C=np.inf, tol=1e-10).fit(raw[:, None], label)
    slope = calibration_slope([raw], [label])
    assert (slope, centred(slope * raw, label)) == pytest.approx((plain.coef_[0, 0], plain.intercept_[0]), abs=1e-3)
    assert (slope, centred(slope * raw, label)) == pytest.approx((0.7, -0.4), abs=0.03)


def test_what_a_fold_missed_for_a_fault_that_came_later_is_not_put_on_the_served_model() -> None:
    r = np.random.default_rng(2)
    raw = r.normal(-2, 1, 200_000)
    # The later fold's outcomes have become twice as likely, which its model could not know.
    happened = [(r.random(len(raw)) < 1 / (1 + np.exp(-(0.8 * raw + rise)))).astype(np.int8) for rise in (0.0, 0.7)]
    assert calibration_slope([raw, raw], happened) == pytest.approx(0.8, abs=0.02)
    # The model that is served has learned from those rows too: it is right on average over what it was fitted on.
    p = 1 / (1 + np.exp(-(raw + centred(raw, happened[1]))))
    assert p.mean() == pytest.approx(happened[1].mean(), abs=1e-9)


def test_calibration_of_a_few_rows_stays_near_the_identity() -> None:
    raw = np.array([-3.0, -2.5, -3.5, -2.0, -1.0, 0.5])
    label = np.array([0, 0, 0, 0, 1, 1], dtype=np.int8)  # perfectly parted: without a prior the slope has no end
    assert calibration_slope([raw], [label]) == pytest.approx(1, abs=0.15)


def test_calibration_never_turns_the_order_round() -> None:
    r = np.random.default_rng(1)
    raw = r.normal(size=5_000)
    label = (r.random(len(raw)) < 1 / (1 + np.exp(3 * raw))).astype(np.int8)
    assert calibration_slope([raw], [label]) > 0


def test_small_data_get_one_thread_and_large_data_all_cores() -> None:
    features = FeatureSet.for_target("late", Settings())
    label = np.tile(np.array([0, 0, 0, 1], dtype=np.int8), ONE_THREAD_ROWS)
    few, many = label[: ONE_THREAD_ROWS - 4], label[:ONE_THREAD_ROWS]
    assert parameters(MODELS["late"], features, few, 0)["num_threads"] == threads(len(few)) == 1
    assert parameters(MODELS["late"], features, many, 0)["num_threads"] == threads(len(many)) == 0


def test_models_that_are_fitted_side_by_side_share_the_cores() -> None:
    assert threads(ONE_THREAD_ROWS - 1, beside=2) == threads(ONE_THREAD_ROWS, beside=10_000) == 1
    assert threads(ONE_THREAD_ROWS, beside=2) == max(1, cores() // 2)


def test_many_rows_take_larger_steps() -> None:
    features = FeatureSet.for_target("late", Settings())
    rates = [
        parameters(MODELS["late"], features, np.arange(n) % 2, 0)["learning_rate"] for n in (MANY_ROWS - 1, MANY_ROWS)
    ]
    assert rates == [PARAMS["learning_rate"], MANY_ROWS_RATE]


FIT = """
import os
import numpy as np
from features.matrix import FeatureSet
from features.settings import Settings
from training.models import MODELS, fit

x = np.random.default_rng(0).normal(size=(400, 1)).astype(np.float32)
fit(MODELS["late"], FeatureSet.named("parcel", ["distance"], Settings()), x, (x[:, 0] > 0).astype(np.int8), [], 0)
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep(given: str | None, used: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", FIT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [used]


NAMES = ["distance", "parcel_weight", "label_grade"]


def little() -> tuple[FeatureSet, np.ndarray, np.ndarray]:
    """A target that is all in the first column, next to nothing in the second and nothing in the third."""
    r = np.random.default_rng(0)
    matrix = r.normal(size=(3_000, 3)).astype(np.float32)
    matrix[:, 1] = matrix[:, 1] > 2.5  # too few rows for a leaf of their own to gain much
    matrix[:, 2] = 1
    label = (r.random(len(matrix)) < 1 / (1 + np.exp(3 - 3 * matrix[:, 0]))).astype(np.int8)
    return FeatureSet.named("parcel", NAMES, Settings()), matrix, label


def fold(label: np.ndarray, at: int, until: int) -> Fold:
    """Rows before `at` to train on and those up to `until` to test on, as if one row came a day."""
    days = np.datetime64("2025-01-01", "us") + np.array([at, until]) * np.timedelta64(1, "D")
    train, test = np.arange(at), np.arange(at, until)
    return Fold(days[0], days[1], train, label[train], test, label[test], 0, 0)


def test_a_feature_with_next_to_no_gain_is_not_served() -> None:
    features, matrix, label = little()
    folds = [fold(label, 1_000, 2_000), fold(label, 2_000, 3_000)]
    assert fit(MODELS["late"], features, matrix, label, folds, 0).model.features.names == ["distance"]
    assert 0 < LEAST_GAIN < 1 / len(FeatureSet.for_target("returned", Settings()).names)  # features alike are all kept


def test_without_folds_no_feature_is_left_out() -> None:
    features, matrix, label = little()
    assert fit(MODELS["late"], features, matrix, label, [], 0).model.features.names == NAMES


def test_metrics_say_what_a_model_reads_and_what_it_does_not(trained) -> None:
    targets = json.loads((trained.run / "metrics.json").read_text())["targets"]
    bundle = Bundle.load(trained.bundle)
    settings = Dataset.open(trained.dataset).settings
    for name, model in bundle.targets.items():
        said = targets[name]
        assert said["features"] == model.features.names
        assert said["dropped"]
        every = FeatureSet.for_target(name, settings).names
        assert sorted([*said["features"], *said["dropped"]]) == sorted(every)
