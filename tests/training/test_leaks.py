"""A column that knows the outcome stops the training, and says where to look."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from features.dataset import Dataset
from features.definitions import FEATURES
from features.settings import Extra
from training.leaks import BOUND, LeakError, leaks
from training.pipeline import train

ONE = (FEATURES["distance"],)


def with_column(dataset: Dataset, values: pd.Series) -> Dataset:
    """The shop with an extra column `claim` in its parcels, declared as known when they are packed."""
    tables = dict(dataset.tables)
    tables["parcels"] = tables["parcels"].assign(claim=tables["parcels"].parcel_id.map(values))
    extra = Extra("parcels", "claim", "number", "carrier", "packed_at")
    settings = dataclasses.replace(dataset.settings, extra=(*dataset.settings.extra, extra))
    return dataclasses.replace(dataset, settings=settings, tables=tables)


@pytest.fixture(scope="module")
def shop(world_dataset) -> Dataset:
    return Dataset.open(world_dataset)


@pytest.fixture(scope="module")
def damaged(shop) -> pd.Series:
    broken = shop.tables["events"].query("kind == 'damaged'").parcel_id.unique()
    return shop.tables["parcels"].set_index("parcel_id").index.isin(broken)


@pytest.mark.parametrize("kind", ["value", "absence"])
def test_a_column_filled_in_afterwards_stops_the_training(shop, kind, tmp_path):
    parcels = shop.tables["parcels"].parcel_id
    broken = parcels.isin(shop.tables["events"].query("kind == 'damaged'").parcel_id).to_numpy()
    r = np.random.default_rng(0)
    amount = r.gamma(2, 20, len(parcels))
    claim = np.where(broken, amount + 60, amount) if kind == "value" else np.where(broken, amount, np.nan)
    with pytest.raises(LeakError) as raised:
        train(with_column(shop, pd.Series(claim, index=parcels)), out=tmp_path / "run")
    said = str(raised.value)
    assert said.startswith("damaged: parcels.claim (The shop's own column parcels.claim")
    assert ("by whether it is filled in: AUC 1.000" in said) == (kind == "absence")
    assert "known_at" in said and "--trust parcels.claim" in said
    assert not (tmp_path / "run").exists()


def test_the_shop_itself_raises_no_alarm_and_a_trusted_column_none_either(shop, trained):
    assert (trained.run / "metrics.json").is_file()
    r = np.random.default_rng(0)
    label = (r.random(4000) < 0.1).astype(np.int8)
    matrix = label[:, None].astype(np.float32)
    assert [x.feature.name for x in leaks("late", ONE, matrix, label)] == ["distance"]
    assert not list(leaks("late", ONE, matrix, label, trusted=("distance",)))


def test_trusting_what_is_not_there_is_refused(shop, tmp_path):
    with pytest.raises(ValueError, match="'claim' is no feature"):
        train(shop, out=tmp_path / "run", trust=("claim",))


@pytest.mark.parametrize("way", [1, -1])
def test_the_auc_is_that_of_scikit_learn_whichever_way_it_points(way):
    r = np.random.default_rng(1)
    label = (r.random(3000) < 0.2).astype(np.int8)
    values = np.round(way * (label * 4 + r.normal(size=3000)), 1)
    values[r.random(3000) < 0.1] = np.nan
    (found,) = leaks("late", ONE, values[:, None].astype(np.float32), label)
    known = ~np.isnan(values)
    assert found.auc == pytest.approx(roc_auc_score(label[known], way * values[known].astype(np.float32)), abs=1e-12)
    assert not found.by_absence


def test_chance_among_a_few_raises_no_alarm():
    label = np.zeros(500, dtype=np.int8)
    label[[3, 90, 410]] = 1
    values = np.arange(500, dtype=np.float32)[:, None]
    values[[3, 90, 410], 0] = [480.5, 430.5, 490.5]  # three positives, by chance all near the top
    assert roc_auc_score(label, values[:, 0]) > BOUND
    assert not list(leaks("late", ONE, values, label))


def test_noise_in_a_column_that_is_nearly_empty_raises_no_alarm():
    r = np.random.default_rng(2)
    label = (r.random(20_000) < 0.05).astype(np.int8)
    for filled in (2, 5, 10, 50, 200):
        matrix = np.full((len(label), 400), np.nan, dtype=np.float32)
        for column in range(matrix.shape[1]):
            matrix[r.choice(len(label), filled, replace=False), column] = r.random(filled)
        assert not [x for i in range(matrix.shape[1]) for x in leaks("late", ONE, matrix[:, [i]], label)]


def test_a_column_of_holes_or_of_one_class_is_no_leak():
    label = np.array([0, 1] * 200, dtype=np.int8)
    holes = np.full((400, 1), np.nan, dtype=np.float32)
    assert not list(leaks("late", ONE, holes, label))
    only = np.where(label == 1, 1.0, np.nan).astype(np.float32)[:, None]
    (found,) = leaks("late", ONE, only, label)
    assert found.by_absence
