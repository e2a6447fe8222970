"""Closed-form intervals agree with the bootstrap and with other people's formulas, and know about clusters."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from training.evaluate import evaluate
from training.evaluate.intervals import Estimate, auc, log_losses, mean


def sample(seed: int, n: int = 3000, size: int = 2):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, n // size, n)
    shared = rng.normal(size=n // size)[cluster]
    z = rng.normal(size=n) + shared - 1.5
    label = (rng.random(n) < 1 / (1 + np.exp(-z - shared))).astype(np.int8)
    return label, 1 / (1 + np.exp(-z)), np.unique(cluster, return_inverse=True)[1]


def test_values_are_those_of_scikit_learn() -> None:
    label, p, cluster = sample(0)
    p = np.round(p, 2)  # with ties
    assert auc(label, p, cluster).value == pytest.approx(roc_auc_score(label, p), abs=1e-12)
    assert mean(log_losses(label, p), cluster).value == pytest.approx(log_loss(label, p), abs=1e-12)
    assert np.isfinite(log_losses([0, 1], [1.0, 0.0])).all()


@pytest.mark.parametrize("size", [1, 2, 6])
def test_intervals_are_those_of_a_bootstrap_over_clusters(size: int) -> None:
    label, p, cluster = sample(1, size=size)
    drawn = evaluate(label, p, groups=cluster, replicates=2000)["metrics"]
    for name, found in (("auc", auc(label, p, cluster)), ("log_loss", mean(log_losses(label, p), cluster))):
        low, high = found.interval()
        width = drawn[name]["high"] - drawn[name]["low"]
        assert (low, high) == pytest.approx((drawn[name]["low"], drawn[name]["high"]), abs=0.08 * width), name


def test_rows_said_twice_in_one_cluster_add_no_certainty() -> None:
    label, p, _ = sample(2)
    once, twice = np.arange(len(label)), np.tile(np.arange(len(label)), 2)
    for figure in (auc, lambda y, q, c: mean(log_losses(y, q), c)):
        assert figure(np.tile(label, 2), np.tile(p, 2), twice).error == pytest.approx(
            figure(label, p, once).error, rel=1e-9
        )


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits, above = 0, 0
    for _ in range(2000):
        cluster = rng.integers(0, 30, 90)
        x = rng.normal(size=30)[cluster] + rng.normal(size=90)
        cluster = np.unique(cluster, return_inverse=True)[1]
        found = mean(x, cluster)
        low, high = found.interval(0.9)
        hits += low <= 0 <= high
        above += found.chance_above() < 0.05
    assert 0.87 < hits / 2000 < 0.93
    assert 0.03 < above / 2000 < 0.07


def test_one_cluster_or_no_spread_is_said_and_not_guessed() -> None:
    alone = mean(np.array([1.0, 2.0]), np.zeros(2, dtype=np.int64))
    assert alone.to_dict() == {"value": 1.5, "low": None, "high": None}
    assert alone.chance_above() == 1.0
    assert Estimate(0.0, 0.0, 9).chance_above() == 1.0
    assert Estimate(0.1, 0.0, 9).chance_above() == 0.0
    assert Estimate(0.5, 0.4, 9).to_dict(0, 1) == {"value": 0.5, "low": 0.0, "high": 1.0}
