from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from training.evaluate.baselines import Fold, fit_baselines


def shop(rows: int, seed: int) -> Fold:
    """Carrier and region matter together; weight matters alone; the rest is what real frames are full of."""
    rng = np.random.default_rng(seed)
    codes = pd.DataFrame(
        {
            "payment_method": rng.choice(["cod", "card", None], rows),
            "carrier": rng.choice(["north", "south", "east", None], rows),
            "region": rng.choice([f"r{i}" for i in range(8)], rows),
            "colour": rng.choice(["red", "blue"], rows),
        },
        dtype=object,
    )
    weight = rng.normal(size=rows)
    bad = (codes["carrier"] == "north") & codes["region"].isin(["r0", "r1", "r2"])
    z = -3 + 0.7 * weight + np.where(bad, 3.0, 0.0)
    y = (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(np.int8)
    X = pd.DataFrame(
        {
            "weight": weight,
            "price": np.exp(3 * rng.normal(size=rows)),
            "holes": np.where(rng.random(rows) < 0.4, np.nan, weight + rng.normal(size=rows)),
            "never": np.full(rows, np.nan),
            "always": np.ones(rows),
            "flag": rng.integers(0, 2, rows),
            "broken": np.where(np.arange(rows) == 3, np.inf, rng.normal(size=rows)),
        }
    ).astype(np.float32)
    X["twin"] = X["weight"]
    return Fold(X, codes, y)


@pytest.fixture(scope="module")
def folds() -> tuple[Fold, Fold, Fold]:
    return shop(6000, 1), shop(2000, 2), shop(4000, 3)


def both(first: Fold, second: Fold) -> Fold:
    return Fold(
        pd.concat([first.X, second.X], ignore_index=True),
        pd.concat([first.codes, second.codes], ignore_index=True),
        np.concatenate([first.y, second.y]),
    )


def test_each_baseline_gives_a_probability_for_every_row_and_says_what_it_is(folds) -> None:
    fit, calibrate, holdout = folds
    fitted = fit_baselines(fit, calibrate)

    assert list(fitted) == ["base_rate", "lookup", "logistic"]
    for name, baseline in fitted.items():
        p = baseline.predict(holdout.X, holdout.codes)
        assert p.shape == (4000,), name
        assert ((p > 0) & (p < 1)).all(), name
        assert abs(p.mean() - holdout.y.mean()) < 0.02, name
        assert len(baseline.predict(holdout.X.iloc[:0], holdout.codes.iloc[:0])) == 0
        assert baseline.describe()


def test_the_base_rate_is_that_of_everything_before_the_holdout(folds) -> None:
    fit, calibrate, holdout = folds
    p = fit_baselines(fit, calibrate)["base_rate"].predict(holdout.X, holdout.codes)

    assert np.unique(p) == pytest.approx(both(fit, calibrate).y.mean())


def test_the_lookup_finds_the_pair_that_matters_and_is_the_smoothed_share(folds) -> None:
    fit, calibrate, holdout = folds
    lookup = fit_baselines(fit, calibrate)["lookup"]
    assert "by carrier x region " in lookup.describe()

    # Independent of the implementation: a group-by over both folds, and the strength read from its own description.
    seen = both(fit, calibrate)
    strength = float(lookup.describe().split("smoothed by ")[1].split(" ")[0])
    frame = seen.codes.fillna("none").assign(y=seen.y).groupby(["carrier", "region"])["y"].agg(["sum", "count"])
    expected = (frame["sum"] + strength * seen.y.mean()) / (frame["count"] + strength)
    keys = pd.MultiIndex.from_frame(holdout.codes[["carrier", "region"]].fillna("none"))
    np.testing.assert_allclose(lookup.predict(holdout.X, holdout.codes), expected.reindex(keys), atol=1e-12)


def test_the_lookup_takes_the_table_and_strength_that_tell_rows_they_have_not_seen_best() -> None:
    fit, calibrate = shop(300, 4), shop(200, 5)
    seen = both(fit, calibrate)
    codes = seen.codes.fillna("none")
    single = [["payment_method"], ["carrier"], ["region"], ["colour"]]
    pairs = [[a[0], b[0]] for i, a in enumerate(single) for b in single[i + 1 :]]
    losses = {}
    for columns in single + pairs:
        table, told = codes[columns].to_numpy(dtype=str), []
        for row in range(500):
            others = np.arange(500) < 300
            others[row] = False
            same = others & (table == table[row]).all(axis=1)
            told.append((seen.y[same].sum(), same.sum(), seen.y[others].mean()))
        positives, rows, rate = np.array(told).T
        for strength in (1, 3, 10, 30, 100, 300, 1000, 3000):
            p = (positives + strength * rate) / (rows + strength)
            losses[" x ".join(columns), strength] = log_loss(seen.y, p)
    columns, strength = min(losses, key=losses.__getitem__)

    said = fit_baselines(fit, calibrate)["lookup"].describe()
    assert f"by {columns} (" in said
    assert f"smoothed by {strength} rows" in said


def test_codes_never_seen_get_the_base_rate(folds) -> None:
    fit, calibrate, holdout = folds
    lookup = fit_baselines(fit, calibrate)["lookup"]
    strange = holdout.codes.head(2).assign(carrier="meteor")

    assert lookup.predict(holdout.X.head(2), strange) == pytest.approx(both(fit, calibrate).y.mean())


def test_the_logistic_regression_ranks_like_a_plain_one_on_what_it_can_use(folds) -> None:
    fit, calibrate, holdout = folds
    seen = both(fit, calibrate)
    plain = LogisticRegression().fit(seen.X[["weight"]], seen.y)
    expected = roc_auc_score(holdout.y, plain.predict_proba(holdout.X[["weight"]])[:, 1])
    logistic = fit_baselines(fit, calibrate)["logistic"]

    assert roc_auc_score(holdout.y, logistic.predict(holdout.X, holdout.codes)) > expected - 0.01
    assert "did not converge" not in logistic.describe()


def test_that_a_value_is_missing_can_carry_the_signal() -> None:
    def fold(seed: int) -> Fold:
        rng = np.random.default_rng(seed)
        missing = rng.random(2000) < 0.3
        y = (rng.random(2000) < np.where(missing, 0.5, 0.05)).astype(np.int8)
        X = pd.DataFrame({"scan_quality": np.where(missing, np.nan, 0.0)}, dtype=np.float32)
        return Fold(X, pd.DataFrame(index=X.index), y)

    holdout = fold(3)
    p = fit_baselines(fold(1), fold(2))["logistic"].predict(holdout.X, holdout.codes)
    missing = holdout.X["scan_quality"].isna()

    assert p[missing].mean() == pytest.approx(0.5, abs=0.05)
    assert p[~missing].mean() == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("positive", [0, 1])
def test_one_class_falls_back_to_the_base_rate_and_says_so(positive: int, folds) -> None:
    fit, calibrate, holdout = folds
    only = [Fold(f.X, f.codes, np.full(len(f.y), positive, dtype=np.int8)) for f in (fit, calibrate)]
    fitted = fit_baselines(*only)

    assert "one class only" in fitted["logistic"].describe()
    for baseline in fitted.values():
        assert (baseline.predict(holdout.X, holdout.codes) == positive).all()


def test_without_codes_or_features_each_falls_back_and_says_why(folds) -> None:
    fit, calibrate, holdout = folds
    bare = [Fold(f.X[[]], f.codes[[]], f.y) for f in (fit, calibrate)]
    fitted = fit_baselines(*bare)

    assert "no code columns" in fitted["lookup"].describe()
    assert "no features" in fitted["logistic"].describe()
    assert fitted["lookup"].predict(holdout.X, holdout.codes).shape == (4000,)


def test_input_frames_are_left_as_they_were(folds) -> None:
    fit, calibrate, _ = folds
    before = fit.X.copy(), fit.codes.copy()
    fit_baselines(fit, calibrate)

    pd.testing.assert_frame_equal(fit.X, before[0])
    pd.testing.assert_frame_equal(fit.codes, before[1])


def test_bad_folds_are_named(folds) -> None:
    fit, calibrate, holdout = folds
    with pytest.raises(ValueError, match="X has 6000 rows, codes 2000, y 6000"):
        Fold(fit.X, calibrate.codes, fit.y)
    with pytest.raises(ValueError, match="calibrate: the fold has no rows"):
        fit_baselines(fit, Fold(fit.X.iloc[:0], fit.codes.iloc[:0], fit.y[:0]))
    with pytest.raises(ValueError, match=r"calibrate\.codes: columns .* given where fit has"):
        fit_baselines(fit, Fold(calibrate.X, calibrate.codes[["carrier"]], calibrate.y))
    lookup = fit_baselines(fit, calibrate)["lookup"]
    with pytest.raises(ValueError, match="codes: no column carrier"):
        lookup.predict(holdout.X, holdout.codes.drop(columns="carrier"))
