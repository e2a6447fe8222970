"""Levers against what is known to be true: made-up data with an effect, with none, and a simulated shop."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from features.matrix import values
from features.snapshot import Facts
from serving import Bundle
from serving.levers import BETTER
from training.models.levers import FOLDS, LEVERS, orthogonal, solved
from training.world.oracle import Oracle
from training.world.scenario import PACKAGE_TYPES


def logistic(z):
    return 1 / (1 + np.exp(-z))


def confounded(rng, n, effect):
    """A dose that is high where the risk is high: x, dose, what was expected of it, log-odds without it, outcome."""
    x = rng.normal(size=(n, 3))
    expected = 1.5 + np.sin(2 * x[:, 0]) + x[:, 1]
    dose = expected + rng.normal(0, 0.8, n)
    rest = -2.5 + np.sin(2 * x[:, 0]) + 1.2 * x[:, 1]
    return x, dose, expected, rest, (rng.random(n) < logistic(rest + effect * dose)).astype(float)


@pytest.mark.parametrize("effect", [0.0, -0.5])
def test_a_confounded_effect_is_found_where_a_crude_comparison_has_the_wrong_sign(effect):
    rng = np.random.default_rng(3)
    n = 8_000
    x, dose, _, _, y = confounded(rng, n, effect)
    group = np.arange(n).astype(object)
    parts = np.arange(n) % FOLDS
    found = orthogonal(y, dose[:, None], [np.ones((n, 1))], x, parts, group, 0)
    error = np.sqrt(found.covariance[0, 0])
    assert abs(found.effects[0] - effect) < 3 * error + 0.05
    assert 0.02 < error < 0.08
    assert dose[y == 1].mean() > dose[y == 0].mean() + 0.3  # what a spreadsheet says: it does harm


def test_intervals_hold_the_truth_at_their_nominal_rate_also_when_rows_without_the_outcome_are_left_out():
    rng = np.random.default_rng(8)
    held = []
    for k in range(300):
        effect = 0.0 if k % 2 else -0.5
        _, dose, _, rest, y = confounded(rng, 3_000, effect)
        keep = (y == 1) | (rng.random(len(y)) < 0.5)
        y, dose, rest = y[keep], dose[keep], rest[keep]
        # The nuisances as they are: the dose expected of those without the outcome, to a curve, and the log-odds.
        design = np.column_stack([np.ones(len(y)), rest, rest**2, rest**3])
        no = y == 0
        expected = design @ np.linalg.lstsq(design[no], dose[no], rcond=None)[0]
        found = solved(y, (dose - expected)[:, None], rest + effect * expected, np.arange(len(y)).astype(object))
        held.append(abs(found.effects[0] - effect) < 1.96 * np.sqrt(found.covariance[0, 0]))
    assert 0.90 <= np.mean(held) <= 0.99


def test_rows_of_one_order_count_once():
    rng = np.random.default_rng(1)
    _, dose, expected, rest, y = confounded(rng, 2_000, -0.3)
    once = solved(y, (dose - expected)[:, None], rest, np.arange(2_000).astype(object))
    twice = [np.tile(v, 2) for v in (y, dose - expected, rest)]
    same = solved(twice[0], twice[1][:, None], twice[2], np.tile(np.arange(2_000), 2).astype(object))
    np.testing.assert_allclose(same.effects, once.effects, atol=1e-9)
    np.testing.assert_allclose(same.covariance, once.covariance, rtol=1e-6)


@pytest.fixture(scope="module")
def told(trained):
    return json.loads((trained.run / "metrics.json").read_text())["levers"]


def test_a_training_tells_of_every_lever_and_keeps_those_that_help(told, trained):
    assert [(x["target"], x["column"]) for x in told] == [(t, c) for t, columns in LEVERS.items() for c in columns]
    kept = {(x.target, x.column) for x in Bundle.load(trained.bundle).levers}
    assert kept == {(x["target"], x["column"]) for x in told if x["status"] == "estimated"}
    for x in told:
        assert x["low"] < x["effect"] < x["high"]
        assert (x["effect"] * BETTER[x["column"]] < 0) == (x["status"] == "estimated")
    by = {(x["target"], x["column"]): x for x in told}
    for strong in (("failed_attempt", "address_quality"), ("late", "label_grade")):
        assert by[strong]["low"] * by[strong]["high"] > 0, strong


def test_the_lever_is_nearer_to_the_true_potential_outcomes_than_the_trees_or_crude_rates(trained):
    """Change of damage in each other package, of all parcels: weighted as money would be, by its size."""
    bundle, facts = Bundle.load(trained.bundle), Facts.of(Dataset.open(trained.dataset))
    rows = facts.rows
    truth = Oracle.open(trained.dataset).packages().set_index("parcel_id").loc[rows.parcel_id]
    used = pd.Index(PACKAGE_TYPES).get_indexer(pd.Index(truth.package))
    potential = truth[list(PACKAGE_TYPES)].to_numpy(dtype=float)
    true = potential - np.take_along_axis(potential, used[:, None], axis=1)
    model = bundle.targets["damaged"]
    p = model.probability(values(rows, model.features))
    lever = next(x for x in bundle.levers if (x.target, x.column) == ("damaged", "protection_level"))
    at = lever.moderators(rows)
    z = np.log(p / (1 - p))
    ours = np.stack([logistic(z + lever.shift(at, used, level)) - p for level in range(len(PACKAGE_TYPES))], axis=1)
    slope = (ours * true).sum() / (true**2).sum()
    assert 0.2 < slope < 1.5, slope  # 140 damaged parcels: what they say has a standard error of a half of it
    assert np.sqrt(((ours - true) ** 2).sum() / (true**2).sum()) < 0.75
    # Fewer are damaged in the packages that are taken for what cannot break: rates say that boxes do harm.
    damaged = facts.outcomes["damaged"].label(facts.snapshot.as_of)[0]
    rate = pd.Series(damaged).groupby(used).mean()
    crude = rate.to_numpy()[None, :] - rate.to_numpy()[used][:, None]
    assert np.sqrt(((crude - true) ** 2).sum() / (true**2).sum()) > 0.95
