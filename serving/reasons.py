"""Why a line would come back: shares of the shop's return reasons, and what drives the likeliest.

One additive score per reason, softmax over them: the shares sum to one. They are shares of the returns, so the chance
that a line comes back for a reason is its risk of a return times the reason's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.arrays import Array
from features.matrix import FeatureSet
from serving.explain import share_points, softmax, usual_words
from serving.trees import CompiledTrees

_CELLS = 1 << 22
"""Contributions worked on at a time."""


@dataclass(frozen=True)
class ReasonModel:
    """The model of P(reason | return).

    Attributes:
        reasons: names of the K reasons.
        owners: the team that owns each.
        features: the f columns it was trained on.
        trees: compiled trees of K * f columns, see `training.models.compile.compile_classes`.
        bases: (K,) phi_0 of each reason in raw score.
        slope: calibration of the raw scores, one for all reasons.
        intercepts: (K,) calibration, one per reason.
        mix: share of each reason among the returns it was trained on.
        usual: per feature, its median among those returns.
    """

    reasons: tuple[str, ...]
    owners: tuple[str, ...]
    features: FeatureSet
    trees: CompiledTrees
    bases: tuple[float, ...]
    slope: float
    intercepts: tuple[float, ...]
    mix: tuple[float, ...]
    usual: tuple[float, ...]

    @cached_property
    def base(self) -> Array:
        """phi_0 (K,): calibrated scores before anything is known of a row."""
        return np.asarray(self.intercepts) + self.slope * np.asarray(self.bases)

    @cached_property
    def usual_words(self) -> list[str | None]:
        """The usual value of each feature in words, None where there is none."""
        return usual_words(self.features, self.usual)

    def shares(self, matrix: Array) -> Array:
        """Shares of the reasons (n, K) of a matrix (n, f) float32; each row sums to 1."""
        parts = [self.base + self._contributions(rows).sum(axis=2) for rows in self._chunks(matrix)]
        return softmax(np.concatenate(parts)) if parts else np.empty((0, len(self.reasons)))

    def explain(self, matrix: Array) -> tuple[Array, Array, Array, Array]:
        """Shares, and why the likeliest reason of each row is as likely as that.

        Args:
            matrix: (n, f) float32.

        Returns:
            (n, K) shares, (n,) position of the largest, (n,) its share before anything is known of the row, and (n, f)
            points, which with that base sum to the share.
        """
        found = []
        for rows in self._chunks(matrix):
            phi = self._contributions(rows)
            which = np.argmax(self.base + phi.sum(axis=2), axis=1)
            shares, base, risk = share_points(self.base, phi, which)
            found.append((shares, which, base, risk))
        if not found:
            k, f = len(self.reasons), len(self.features.features)
            return np.empty((0, k)), np.empty(0, dtype=np.intp), np.empty(0), np.empty((0, f))
        shares, which, base, risk = (np.concatenate(part) for part in zip(*found, strict=True))
        return shares, which, base, risk

    def _contributions(self, rows: Array) -> Array:
        """Calibrated contributions (n, K, f)."""
        k = len(self.reasons)
        return self.slope * self.trees.contributions(np.tile(rows, (1, k))).reshape(len(rows), k, -1)

    def _chunks(self, matrix: Array) -> list[Array]:
        size = max(1, _CELLS // max(1, len(self.reasons) * matrix.shape[1]))
        return [matrix[at : at + size] for at in range(0, len(matrix), size)]
