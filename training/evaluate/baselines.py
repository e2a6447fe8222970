"""What a model has to beat: the base rate, the best lookup table, a logistic regression.

All three see what the model sees, the rows before the holdout, in two folds. What has to be chosen is chosen by log
loss and the winner is then fitted on both folds together, which makes each as strong as its kind gets: that is the
point. The shrinkage of the regression is chosen on the later fold, fitted on the earlier. The lookup table has so many
candidates that a small later fold alone would pick luck; it is chosen on all rows, each later row told by the earlier
fold and each earlier row by the rest of it (leave one out, exact for a table of counts).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Baseline", "Fold", "fit_baselines"]

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
PAIRED_COLUMNS = 6
SHRINKAGE = (0.001, 0.01, 0.1, 1.0)
LOGISTIC_ROWS = 200_000
_CHOOSING_ROWS = 30_000
_CLIP = 1e-6


@dataclass(frozen=True)
class Fold:
    """Rows of one stretch of time.

    Attributes:
        X: shape (n, features), float32, NaN where missing.
        codes: shape (n, columns), raw code columns as text or `None`.
        y: shape (n,), 0 or 1.
    """

    X: pd.DataFrame
    codes: pd.DataFrame
    y: NDArray[np.int8]

    def __post_init__(self) -> None:
        if not len(self.X) == len(self.codes) == len(self.y):
            raise ValueError(
                f"Fold: X has {len(self.X)} rows, codes {len(self.codes)}, y {len(self.y)}; give the same rows to each"
            )


class Baseline(Protocol):
    """Something simple that gives a probability."""

    def predict(self, X: pd.DataFrame, codes: pd.DataFrame) -> NDArray[np.float64]:
        """Return shape (n,), the probability of each row; unseen codes and missing values are fine."""
        ...

    def describe(self) -> str:
        """Return one line for the model card: what was fitted and what was chosen."""
        ...


def fit_baselines(fit: Fold, calibrate: Fold) -> dict[str, Baseline]:
    """Fit the three baselines.

    Args:
        fit: the earlier fold.
        calibrate: the later fold, which every choice is judged on. Must have the same columns.

    Returns:
        `base_rate`, `lookup` and `logistic`.

    Raises:
        ValueError: a fold has no rows, or the folds differ in their columns.
    """
    import pandas as pd

    for name, fold in (("fit", fit), ("calibrate", calibrate)):
        if len(fold.y) == 0:
            raise ValueError(f"{name}: the fold has no rows; a baseline needs some in both folds")
    for what in ("X", "codes"):
        ours, theirs = list(getattr(fit, what).columns), list(getattr(calibrate, what).columns)
        if ours != theirs:
            raise ValueError(f"calibrate.{what}: columns {theirs} given where fit has {ours}; give both the same")
    both = Fold(
        pd.concat([fit.X, calibrate.X], ignore_index=True),
        pd.concat([fit.codes, calibrate.codes], ignore_index=True),
        np.concatenate([fit.y, calibrate.y]),
    )
    return {
        "base_rate": _BaseRate(float(both.y.mean()), len(both.y)),
        "lookup": _best_lookup(fit, calibrate, both),
        "logistic": _best_logistic(fit, calibrate, both),
    }


@dataclass(frozen=True)
class _BaseRate:
    rate: float
    rows: int
    why: str = ""

    def predict(self, X: pd.DataFrame, codes: pd.DataFrame) -> NDArray[np.float64]:
        return np.full(len(X), self.rate)

    def describe(self) -> str:
        said = f"the share of positives before the holdout, {self.rate:.4g} of {self.rows:,} rows"
        return f"{said} ({self.why})" if self.why else said


class _Lookup:
    """Share of positives per combination of codes, smoothed as if `strength` more rows at the base rate were seen."""

    def __init__(self, columns: Sequence[str], strength: float, fold: Fold) -> None:
        self.columns, self.strength = tuple(columns), strength
        self.rate, self.rows = float(fold.y.mean()), len(fold.y)
        key = self._key(fold.codes)
        self.rows_of = key.value_counts(sort=False)
        self.positives_of = key[fold.y == 1].value_counts(sort=False).reindex(self.rows_of.index, fill_value=0)

    def _key(self, codes: pd.DataFrame) -> pd.Series:
        import pandas as pd

        absent = [c for c in self.columns if c not in codes.columns]
        if absent:
            raise ValueError(f"codes: no column {', '.join(absent)}; the table was built on {', '.join(self.columns)}")
        parts = [codes[c].astype(object).where(codes[c].notna(), "\0") for c in self.columns]
        joined = parts[0].astype(str)
        for part in parts[1:]:
            joined = joined + "\x1f" + part.astype(str)
        return pd.Series(joined.to_numpy(dtype=object), dtype=object)

    def predict(self, X: pd.DataFrame, codes: pd.DataFrame) -> NDArray[np.float64]:
        place = self.rows_of.index.get_indexer(self._key(codes).array)
        seen = place >= 0
        positives = np.where(seen, self.positives_of.to_numpy(dtype=np.float64)[place], 0.0)
        rows = np.where(seen, self.rows_of.to_numpy(dtype=np.float64)[place], 0.0)
        return (positives + self.strength * self.rate) / (rows + self.strength)

    def describe(self) -> str:
        return (
            f"share of positives by {' x '.join(self.columns)} ({len(self.rows_of):,} cells from {self.rows:,} rows), "
            f"smoothed by {self.strength:g} rows at the base rate {self.rate:.4g}"
        )


def _best_lookup(fit: Fold, calibrate: Fold, both: Fold) -> Baseline:
    import pandas as pd

    columns = [str(c) for c in fit.codes.columns]
    if not columns:
        return _BaseRate(float(both.y.mean()), len(both.y), "no code columns to build a table on")
    early = len(fit.y)
    numbers = {c: pd.factorize(both.codes[c].astype(object), use_na_sentinel=False)[0] for c in columns}
    # A row is later or earlier, negative or positive: all that a table tells of a row depends on its cell and these.
    kind = 2 * (np.arange(len(both.y)) < early) + both.y
    own, y = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    # What a row may be told by the earlier fold: all of it for a later row, all but itself for an earlier one.
    rate = (fit.y.sum() - own * y) / np.maximum(early - own, 1)

    def cheapest(candidate: tuple[str, ...]) -> tuple[float, float]:
        key = numbers[candidate[0]].astype(np.int64)
        for column in candidate[1:]:
            key = key * (int(numbers[column].max()) + 1) + numbers[column]
        cell = pd.factorize(key)[0]
        count = np.bincount(4 * cell + kind, minlength=4 * (int(cell.max()) + 1)).reshape(-1, 4)
        rows = (count[:, 2:].sum(axis=1))[:, None] - own
        positives = count[:, 3:] - own * y
        losses = []
        for s in STRENGTHS:
            # Cells without a row of a kind have nothing to add, whatever a table would tell it.
            p = np.clip((positives + s * rate) / (np.maximum(rows, 0) + s), _CLIP, 1 - _CLIP)
            losses.append(float(-(count * np.where(y == 1, np.log(p), np.log1p(-p))).sum() / len(kind)))
        best = int(np.argmin(losses))
        return losses[best], STRENGTHS[best]

    tried: dict[tuple[str, ...], tuple[float, float]] = {(c,): cheapest((c,)) for c in columns}
    # Every pair of dozens of columns would mostly find noise: pair those that say something on their own.
    strongest = sorted(tried, key=lambda c: tried[c][0])[:PAIRED_COLUMNS]
    for i, j in itertools.combinations(sorted(columns.index(c[0]) for c in strongest), 2):
        tried[columns[i], columns[j]] = cheapest((columns[i], columns[j]))
    winner = min(tried, key=lambda c: tried[c][0])
    return _Lookup(winner, tried[winner][1], both)


class _Logistic:
    """Median for what is missing plus a column that says so, quantiles to a bell, L2-shrunk logistic regression."""

    def __init__(self, fold: Fold, limit: int) -> None:
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import QuantileTransformer, StandardScaler

        # Evenly over time where there are more rows than a handful of coefficients can use: the folds are in order.
        keep = np.linspace(0, len(fold.y) - 1, min(limit, len(fold.y))).astype(np.int64)
        self._X, self._y = _numbers(fold.X.iloc[keep]), fold.y[keep]
        self.rows, self.features = self._X.shape
        self.scale: Any = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            # Counts and money have long tails; a bell per column keeps one row from steering a coefficient.
            QuantileTransformer(
                n_quantiles=min(200, self.rows), output_distribution="normal", subsample=50_000, random_state=0
            ),
            StandardScaler(),
        )
        self._X = self.scale.fit_transform(self._X)

    def fit(self, shrinkage: float) -> _Logistic:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        self.shrinkage = shrinkage
        self.model: Any = LogisticRegression(C=shrinkage, solver="newton-cholesky", max_iter=200)
        # One thread: matrices this small gain nothing from more, and lose a lot when the cores are shared.
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1, "blas"):
            warnings.simplefilter("always", ConvergenceWarning)
            self.model.fit(self._X, self._y)
        self.converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        return self

    def predict(self, X: pd.DataFrame, codes: pd.DataFrame) -> NDArray[np.float64]:
        if len(X) == 0:
            return np.zeros(0)
        return self.predict_scaled(self.scale.transform(_numbers(X)))

    def predict_scaled(self, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.model.predict_proba(scaled)[:, 1], dtype=np.float64)

    def describe(self) -> str:
        said = (
            f"L2 logistic regression on the model's {self.features} features, C={self.shrinkage:g}, {self.rows:,} rows"
        )
        return said if self.converged else f"{said}; it did not converge, so read it with care"


def _best_logistic(fit: Fold, calibrate: Fold, both: Fold) -> Baseline:
    for name, fold in (("the earlier fold", fit), ("both folds", both)):
        if fold.X.shape[1] == 0:
            return _BaseRate(float(both.y.mean()), len(both.y), "no features to regress on")
        if len(np.unique(fold.y)) < 2:
            return _BaseRate(float(both.y.mean()), len(both.y), f"{name} has one class only, so nothing to regress on")

    trial = _Logistic(fit, _CHOOSING_ROWS)
    judge = np.linspace(0, len(calibrate.y) - 1, min(_CHOOSING_ROWS, len(calibrate.y))).astype(np.int64)
    scaled, y = trial.scale.transform(_numbers(calibrate.X.iloc[judge])), calibrate.y[judge]
    losses = {c: _log_loss(y, trial.fit(c).predict_scaled(scaled)) for c in SHRINKAGE}
    return _Logistic(both, LOGISTIC_ROWS).fit(min(losses, key=lambda c: losses[c]))


def _numbers(X: pd.DataFrame) -> NDArray[np.float64]:
    values = X.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    values[~np.isfinite(values)] = np.nan
    return values


def _log_loss(y: NDArray[np.int8], p: NDArray[np.float64]) -> float:
    p = np.clip(p, _CLIP, 1 - _CLIP)
    return float(-np.where(y == 1, np.log(p), np.log1p(-p)).mean())
