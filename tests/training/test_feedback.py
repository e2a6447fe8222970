"""Training on a shop that acted on its risks: naively it forgets them, with what was done on record it does not."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from features.matrix import FeatureSet
from features.snapshot import Facts
from serving.levers import Lever
from training.check import require
from training.labels import labels
from training.models.levers import estimate_levers
from training.pipeline import cut, fit_on, matrices_of
from training.splits import split
from training.treated import acted, by_lot
from training.world import Scenario, generate
from training.world.acting import Acting
from training.world.oracle import Oracle

END = np.datetime64("2025-12-01", "us")
SHARE = 0.7
"""Of the risky parcels get the action, by lot."""


def drawn(parcel: str) -> float:
    """A number from 0 to 1 that is the parcel's own."""
    return int.from_bytes(hashlib.sha256(parcel.encode()).digest()[:8], "big") / 2**64


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """A shop where much breaks and foam helps a lot, and the same one in which who is likely to break gets foam."""
    folder = tmp_path_factory.mktemp("acted")
    brittle = replace(Scenario().outcomes, damage_zero=-4.3, damage_protection=-0.5)
    world = generate(folder / "world", parcels=10_000, seed=2, scenario=replace(Scenario(), outcomes=brittle))
    oracle, plain = Oracle.open(world), Dataset.open(world)
    acting = Acting(oracle)
    parcels, true = plain.tables["parcels"], oracle.parcels().damaged.to_numpy()
    risky = (true > np.quantile(true, 0.75)) & (parcels.package_type != "foam_box").to_numpy()
    act = risky & np.array([drawn(p) < SHARE for p in parcels.parcel_id])
    action = pd.Series("package:foam_box", index=parcels.index, dtype=object)
    table = pd.DataFrame(
        {
            "decision_id": [f"d{i}" for i in range(len(parcels))],
            "parcel_id": parcels.parcel_id.array,
            "decided_at": parcels.packed_at.array,
            "action": action.where(risky, None).array,
            "arm": np.where(act, "act", np.where(risky, "control", "none")),
            "propensity": np.where(risky, SHARE, 1.0),
            "done": action.where(act, None).array,
            "before": parcels.package_type.astype(object).where(act, None).array,
            "known_at": parcels.packed_at.array,
        }
    )
    done = dict.fromkeys(parcels.parcel_id[act], "package:foam_box")
    told = Dataset.open(acting.act(world, folder / "told", done, table))
    require(told)
    tables = {n: t for n, t in told.tables.items() if n != "decisions"}
    return {"nobody acts": plain, "naive": Dataset(told.settings, tables), "told": told}, true


def fitted(dataset: Dataset, asked: Dataset) -> tuple[Facts, tuple[Lever, ...], np.ndarray]:
    """What the damage model trained on a shop says of all its parcels as they were before anything was done."""
    facts = Facts.of(dataset)
    units = {"damaged": labels(facts, "damaged")}
    matrices = matrices_of(facts, units, lambda _: None)
    end = facts.snapshot.as_of

    def read(features: FeatureSet, row: np.ndarray) -> np.ndarray:
        return cut(matrices, features, row)

    levers, _ = estimate_levers(facts, units, read, END, end, 0, lambda _: None)
    fold = split(units["damaged"], END, end)
    model = fit_on(facts, units["damaged"], matrices, fold, 0, lambda _: None, levers=levers).model
    seen = Facts.of(Dataset(dataset.settings, {**dataset.tables, "parcels": asked.tables["parcels"]}))
    rows = pd.Index(seen.rows.parcel_id).get_indexer(pd.Index(asked.tables["parcels"].parcel_id))
    matrix = cut(matrices_of(seen, units, lambda _: None), model.features, rows)
    return facts, levers, model.probability(matrix)


def test_a_shop_that_acts_forgets_its_risk_and_is_kept_from_it_by_what_is_on_record(shops):
    datasets, true = shops
    ratio = {}
    for name, dataset in datasets.items():
        _, _, p = fitted(dataset, datasets["nobody acts"])
        ratio[name] = p.mean() / true.mean()
    # With the failures went some of what there was to learn from them: the level is kept, not every ranking.
    assert ratio["naive"] < 0.86 * ratio["nobody acts"], ratio
    assert 0.9 < ratio["told"] / ratio["nobody acts"] < 1.15, ratio


def test_a_fit_of_a_backtest_or_a_search_takes_back_what_was_done_as_a_training_does(shops):
    """Neither estimates levers beforehand."""
    facts = Facts.of(shops[0]["told"])
    units = labels(facts, "damaged")
    matrices = matrices_of(facts, {"damaged": units}, lambda _: None)
    at, end = np.datetime64("2025-07-01", "us"), facts.snapshot.as_of
    levers, _ = estimate_levers(facts, {"damaged": units}, lambda f, r: cut(matrices, f, r), at, end, 0, lambda _: None)
    fold = split(units, at, end)
    there = [
        fit_on(facts, units, matrices, fold, 0, lambda _: None, **given).model for given in ({}, {"levers": levers})
    ]
    matrix = cut(matrices, there[0].features, units.row[fold.test])
    np.testing.assert_array_equal(*(model.probability(matrix) for model in there))


def test_what_was_done_is_taken_back_and_known_by_the_lot_and_the_lever(shops):
    datasets, _ = shops
    told, plain = Facts.of(datasets["told"]), Facts.of(datasets["nobody acts"])
    for column in ("package_type", "protection_level"):
        np.testing.assert_array_equal(told.tables["parcels"][column], plain.tables["parcels"][column])
    step = told.steps["protection_level"]
    treated = ~np.isnan(step)
    np.testing.assert_array_equal(step[treated], 4 - plain.tables["parcels"]["protection_level"][treated])
    units = labels(told, "damaged")
    effect, error = by_lot(told, units, END, "package")
    assert effect + 3 * error < 0 and error < 0.3
    found = acted(told, units, END, ())
    early = units.decided_at < END
    assert found is not None and found.left_out == 0
    assert found.corrected == (treated[units.row] & early).sum()
    assert set(np.round(found.offset, 9)) == {0.0, round(effect, 9)}
    # Nothing was drawn by lot for another target's sake: packages hide nothing of who is at home.
    assert acted(told, labels(told, "failed_attempt"), END, ()).corrected == 0
    assert acted(plain, labels(plain, "damaged"), END, ()) is None
