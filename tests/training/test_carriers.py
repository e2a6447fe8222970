"""Carriers' effects against what is known to be true: made-up lanes, and a simulated shop's potential outcomes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from features import Dataset
from features.matrix import values
from features.snapshot import Facts
from serving import Bundle
from serving.carriers import region_of
from training.models.carriers import shrunken
from training.world.oracle import Oracle


def logistic(z):
    return 1 / (1 + np.exp(-z))


def test_shrunken_effects_are_right_on_average_and_their_intervals_hold_the_truth():
    """Of many lanes with few failures each: a slope of the truth on the estimate of 1 is what shrinking is for."""
    rng = np.random.default_rng(4)
    truth, found, error, varies = [], [], [], []
    for _ in range(12):
        effects, n = rng.normal(0, 0.3, 60), 20_000
        lane, rest = rng.integers(0, 60, n), rng.normal(-2.5, 0.7, n)
        y = (rng.random(n) < logistic(rest + effects[lane])).astype(float)
        lanes = sparse.csr_matrix((np.ones(n), (np.arange(n), lane)), shape=(n, 60))
        estimate, covariance, variance = shrunken(y, rest, [lanes], 0.2)
        truth.append(effects - effects.mean())
        found.append(estimate - estimate.mean())
        error.append(np.sqrt(np.diag(covariance)))
        varies.append(variance[0])
    truth, found, error = map(np.concatenate, (truth, found, error))
    assert 0.9 < (truth * found).sum() / (found**2).sum() < 1.15
    assert 0.86 < np.mean(np.abs(truth - found) < 1.645 * error) < 0.94
    assert 0.25 < np.sqrt(np.mean(varies)) < 0.35


def test_where_lanes_do_not_differ_next_to_nothing_is_said():
    rng = np.random.default_rng(5)
    lane, rest = rng.integers(0, 60, 20_000), np.full(20_000, -2.0) + rng.normal(0, 0.3, 20_000)
    y = (rng.random(20_000) < logistic(rest)).astype(float)
    lanes = sparse.csr_matrix((np.ones(20_000), (np.arange(20_000), lane)), shape=(20_000, 60))
    estimate, _, variance = shrunken(y, rest, [lanes], 0.2)
    assert np.sqrt(variance[0]) < 0.13  # four guessed ones of 0.2 among 60
    assert np.abs(estimate).max() < 0.2


@pytest.fixture(scope="module")
def shop(trained):
    facts = Facts.of(Dataset.open(trained.dataset))
    return Bundle.load(trained.bundle), facts.rows, Oracle.open(trained.dataset)


def held(shop, target):
    """True changes of log-odds of each parcel with each other carrier, what the lever says, and its error."""
    bundle, rows, oracle = shop
    truth = oracle.carriers(target, handed_over_as_it_was=True).set_index("parcel_id").loc[rows.parcel_id]
    names = sorted(set(truth.carrier))
    potential = truth[names].to_numpy(dtype=float)
    z = np.log(potential / (1 - potential))
    used = pd.Index(names).get_indexer(truth.carrier)
    true = z - np.take_along_axis(z, used[:, None], axis=1)
    lever, level = bundle.carriers[target], rows.parcels
    place, service = lever.places(region_of(rows, "parcel")), level["parcels", "service"]
    now = lever.positions(level["parcels", "carrier"], service)
    said = [lever.shift(place, now, lever.positions(np.full(rows.parcels.n, k, dtype=object), service)) for k in names]
    shift, error = (np.column_stack(x) for x in zip(*said, strict=True))
    told = ~np.isnan(true) & ~np.isnan(shift) & (np.arange(len(names)) != used[:, None])
    return names, true, shift, error, told


@pytest.mark.parametrize("target", ["failed_attempt", "damaged", "late"])
def test_it_is_nearer_to_the_true_potential_outcomes_than_the_parcel_scored_again(shop, target):
    bundle, rows, _ = shop
    names, true, shift, error, told = held(shop, target)
    assert told.mean() > 0.5
    model = bundle.targets[target]
    p = model.probability(values(rows, model.features))
    again = np.full(true.shape, np.nan)
    for k, name in enumerate(names):
        other, _ = rows.as_if(np.arange(rows.parcels.n), {"carrier": np.full(rows.parcels.n, name, dtype=object)})
        q = model.probability(values(other, model.features))
        again[:, k] = np.log(q / (1 - q)) - np.log(p / (1 - p))
    far = {n: np.sqrt(((x - true)[told] ** 2).sum() / (true[told] ** 2).sum()) for n, x in (("l", shift), ("t", again))}
    assert far["l"] < min(far["t"], 0.95), far
    # How much later a slow lane makes a parcel depends on the days it has left: the interval is of their mean.
    assert np.mean(np.abs(shift - true)[told] < 1.645 * error[told]) > (0.5 if target == "late" else 0.75)
    assert 0.02 < error[told].mean() < 0.6


def test_a_training_tells_of_carriers_on_every_target(trained):
    told = {x["target"]: x for x in json.loads((trained.run / "metrics.json").read_text())["carriers"]}
    kept = Bundle.load(trained.bundle).carriers
    assert {t for t, x in told.items() if x["status"] == "estimated"} == set(kept)
    for target, x in told.items():
        assert x["rows"] == kept[target].rows
        assert set(x["effects"]) == {f"{c}/{s}" for c, s in kept[target].carriers}
        assert all(e["low"] < e["effect"] < e["high"] for e in x["effects"].values())
    # By the scenario alba finds more people at home than corvus.
    effects = told["failed_attempt"]["effects"]
    assert effects["alba/standard"]["effect"] < effects["corvus/standard"]["effect"]
