from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from training.evaluate import METRICS, compare, evaluate, metrics, reliability


def world(rows: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the very probabilities that are judged: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-2, 1, rows)))
    if ties:
        p = np.round(p, 1)
    return (rng.random(rows) < p).astype(int), p


def value(found: dict, name: str) -> float:
    return found[name]["value"]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "tied"])
def test_values_agree_with_scikit_learn(ties: bool) -> None:
    y, p = world(3000, ties=ties)
    found = metrics(y, p, replicates=0)

    assert value(found, "auc") == pytest.approx(oracle.roc_auc_score(y, p), abs=1e-12)
    assert value(found, "average_precision") == pytest.approx(oracle.average_precision_score(y, p), abs=1e-12)
    assert value(found, "brier") == pytest.approx(oracle.brier_score_loss(y, p), abs=1e-12)
    assert value(found, "log_loss") == pytest.approx(oracle.log_loss(y, p), abs=1e-12)


def test_log_loss_of_a_certain_mistake_is_finite_and_clipped_where_scikit_learn_clips() -> None:
    y, p = [1, 0, 1, 0], [0.0, 1.0, 1.0, 0.0]

    assert value(metrics(y, p, replicates=0), "log_loss") == pytest.approx(oracle.log_loss(y, p), rel=1e-12)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "tied"])
def test_intervals_agree_with_a_bootstrap_that_repeats_rows_and_asks_scikit_learn(ties: bool) -> None:
    y, p = world(400, seed=3, ties=ties)
    order = np.repeat(np.arange(200), 2)
    found = metrics(y, p, groups=order, seed=11, replicates=80)

    rng = np.random.default_rng(11)
    draws = {"auc": [], "average_precision": [], "brier": [], "log_loss": []}
    for _ in range(80):
        times = np.bincount(rng.integers(0, 200, 200), minlength=200)[order]
        weight = {"sample_weight": times}
        draws["auc"].append(oracle.roc_auc_score(y, p, **weight))
        draws["average_precision"].append(oracle.average_precision_score(y, p, **weight))
        draws["brier"].append(oracle.brier_score_loss(y, p, **weight))
        draws["log_loss"].append(oracle.log_loss(y, p, **weight))
    for name, drawn in draws.items():
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert found[name]["low"] == pytest.approx(low, abs=1e-12), name
        assert found[name]["high"] == pytest.approx(high, abs=1e-12), name


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    truth = metrics(*world(400_000, seed=99), replicates=0)
    inside = dict.fromkeys(("auc", "average_precision", "brier", "log_loss", "top_decile_capture"), 0)
    runs = 120
    for seed in range(runs):
        found = metrics(*world(800, seed=seed), seed=seed, replicates=150)
        for name in inside:
            inside[name] += found[name]["low"] <= value(truth, name) <= found[name]["high"]
    # 95 % of 120 is 114; below 105 or so has less than one chance in a thousand.
    assert all(count >= 105 for count in inside.values()), inside


def test_clusters_widen_the_interval_as_much_as_the_rows_repeat_each_other() -> None:
    y, p = world(500)
    alone = metrics(y, p, replicates=400)["auc"]
    fourfold = np.tile(np.arange(500), 4)
    honest = metrics(np.tile(y, 4), np.tile(p, 4), groups=fourfold, replicates=400)["auc"]
    fooled = metrics(np.tile(y, 4), np.tile(p, 4), replicates=400)["auc"]

    def width(interval: dict) -> float:
        return interval["high"] - interval["low"]

    assert honest["value"] == pytest.approx(alone["value"], abs=1e-12)
    assert width(honest) == pytest.approx(width(alone), rel=0.15)
    assert width(fooled) == pytest.approx(width(alone) / 2, rel=0.15)


def test_calibration_error_is_the_mean_gap_of_ten_equal_bins() -> None:
    y, p = world(1000, seed=5)
    order = np.argsort(p)
    gaps = [abs(p[part].mean() - y[part].mean()) for part in np.split(order, 10)]

    assert value(metrics(y, p, replicates=0), "calibration_error") == pytest.approx(np.mean(gaps), abs=1e-12)


def test_calibration_interval_reaches_zero_for_a_calibrated_model_and_not_for_a_shifted_one() -> None:
    y, p = world(4000, seed=8)
    good = metrics(y, p, replicates=200)["calibration_error"]
    bad = metrics(y, np.clip(p + 0.1, 0, 1), replicates=200)["calibration_error"]

    assert good["low"] == 0.0
    assert bad["low"] > 0.07
    for found in (good, bad):
        assert 0 <= found["low"] <= found["value"] <= found["high"]


def test_top_decile_capture_counts_the_tied_rows_at_the_border_by_their_share() -> None:
    # Twenty rows: the top two places go to one positive and half of the four rows tied at 0.5.
    p = np.r_[0.9, np.full(2, 0.5), np.full(17, 0.1)]
    y = np.r_[1, 1, 0, 1, np.zeros(16)].astype(int)

    assert value(metrics(y, p, replicates=0), "top_decile_capture") == pytest.approx((1 + 0.5) / 3)


def test_a_constant_model_ranks_nothing() -> None:
    y, _ = world(1000)
    found = metrics(y, np.full(1000, y.mean()), replicates=50)

    assert found["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert value(found, "average_precision") == pytest.approx(y.mean())
    assert value(found, "top_decile_capture") == pytest.approx(0.1)
    assert value(found, "calibration_error") == pytest.approx(0, abs=1e-12)


def test_nothing_depends_on_the_order_of_the_rows() -> None:
    y, p = world(600, ties=True)
    shuffled = np.random.default_rng(1).permutation(600)
    first, second = metrics(y, p, replicates=0), metrics(y[shuffled], p[shuffled], replicates=0)

    for name in METRICS:
        assert value(first, name) == pytest.approx(value(second, name), abs=1e-12), name


def test_the_same_seed_gives_the_same_interval() -> None:
    y, p = world(300)

    assert metrics(y, p, seed=4, replicates=40) == metrics(y, p, seed=4, replicates=40)
    assert metrics(y, p, seed=4, replicates=40) != metrics(y, p, seed=5, replicates=40)


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_gives_reasons_instead_of_rankings(only: int) -> None:
    found = metrics(np.full(50, only), np.linspace(0.1, 0.9, 50), replicates=20)

    for name, metric in METRICS.items():
        if metric.ranks:
            assert found[name]["value"] is None
            assert "needs both classes" in found[name]["why"]
        else:
            assert found[name]["low"] <= value(found, name) <= found[name]["high"]


def test_no_rows_and_a_single_positive_are_said_plainly() -> None:
    assert {found["why"] for found in metrics([], [], replicates=20).values()} == {"no rows"}

    single = metrics(np.r_[1, np.zeros(30)], np.linspace(0.9, 0.1, 31), replicates=20)["auc"]
    assert single["value"] == 1.0
    assert single["low"] is None
    assert single["why"] == "all positive rows are in one group: an interval needs two"


def test_paired_difference_sees_what_two_intervals_side_by_side_cannot() -> None:
    y, p = world(4000, seed=2)
    noisy = np.clip(p * np.exp(np.random.default_rng(0).normal(0, 0.35, len(p))), 0, 1)
    alone, other = metrics(y, p)["auc"], metrics(y, noisy)["auc"]
    found = compare(y, p, noisy, "auc")

    assert alone["low"] < other["high"], "side by side they overlap"
    assert found["verdict"] == "better"
    assert found["difference"] == pytest.approx(alone["value"] - other["value"], abs=1e-12)
    assert compare(y, noisy, p, "auc")["verdict"] == "worse"
    assert compare(y, noisy, p, "log_loss")["verdict"] == "worse", "lower is better here"
    assert compare(y, p, p, "auc") == {"difference": 0.0, "low": 0.0, "high": 0.0, "verdict": "undecided"}


def test_compare_without_an_answer_says_why() -> None:
    found = compare(np.zeros(10), np.full(10, 0.1), np.full(10, 0.2), "auc")

    assert found["verdict"] == "undecided"
    assert found["difference"] is None
    assert "all 10 rows are negative" in found["why"]


def test_evaluate_judges_everything_on_the_same_resamples() -> None:
    y, p = world(500)
    q = np.full(500, 0.12)
    order = np.arange(500) // 2
    found = evaluate(y, p, {"base_rate": q}, groups=order, seed=3, replicates=60)

    assert found["metrics"] == metrics(y, p, groups=order, seed=3, replicates=60)
    assert found["baselines"]["base_rate"] == metrics(y, q, groups=order, seed=3, replicates=60)
    assert found["against"]["base_rate"]["auc"] == compare(y, p, q, "auc", groups=order, seed=3, replicates=60)


def test_reliability_bins_hold_every_row_once_with_intervals_around_the_rate() -> None:
    y, p = world(5000, seed=6)
    table = reliability(y, p, 8)

    assert table["rows"].sum() == 5000
    assert table["positives"].sum() == y.sum()
    assert table["predicted"].is_monotonic_increasing
    assert ((table["low"] <= table["observed"]) & (table["observed"] <= table["high"])).all()
    np.testing.assert_allclose(table["observed"], table["positives"] / table["rows"])
    assert (table["rows"] == 625).all()


def test_reliability_keeps_equal_probabilities_together_and_widens_for_clusters() -> None:
    y, _ = world(400)
    one = reliability(y, np.full(400, 0.2))
    assert len(one) == 1

    twice = reliability(np.tile(y, 2), np.full(800, 0.2), groups=np.tile(np.arange(400), 2))
    np.testing.assert_allclose(twice[["observed", "low", "high"]], one[["observed", "low", "high"]], atol=1e-3)
    assert reliability([], []).empty


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics([0, 2], [0.1, 0.2]), "label: 2 at row 1 (1 such rows); use 0 or 1"),
        (lambda: metrics([0, np.nan], [0.1, 0.2]), "label: nan at row 1"),
        (lambda: metrics([[0], [1]], [0.1, 0.2]), "label: shape (2, 1) given"),
        (lambda: metrics([0, 1], [0.1, 1.5]), "probability: 1.5 at row 1 (1 such rows); use values from 0 to 1"),
        (lambda: metrics([0, 1], [0.1, np.nan]), "probability: nan at row 1"),
        (lambda: metrics([0, 1], [0.1]), "probability: shape (1,) given for 2 labels"),
        (lambda: evaluate([0, 1], [0.1, 0.2], {"lookup": [2, 0]}), "baseline lookup: 2.0 at row 0"),
        (lambda: metrics([0, 1], [0.1, 0.2], groups=["a"]), "groups: shape (1,) given for 2 labels"),
        (lambda: metrics([0, 1], [0.1, 0.2], groups=["a", None]), "groups: 1 rows without a group"),
        (lambda: compare([0, 1], [0.1, 0.2], [0.1, 0.2], "f1"), "metric: 'f1' is not known; use one of auc, "),
        (lambda: reliability([0, 1], [0.1, 0.2], 0), "bins: 0 given; use 1 or more"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
