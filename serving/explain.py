"""From contributions to points of risk by owner team, which add up exactly to the served probability.

Let z be the calibrated log-odds, z = phi_0 + sum(phi_i) with phi_i its TreeSHAP values, and g the logistic function. A
feature's points are the Aumann-Shapley share of the probability along the straight path from phi_0 to z,
`phi_i * (g(z) - g(phi_0)) / (z - phi_0)`: they keep sign and order, and sum with the base g(phi_0) to g(z).
(Aumann and Shapley, Values of Non-Atomic Games, 1974; Lundberg et al., arXiv 1802.03888, for TreeSHAP.)

The points say what drives the model's risk, not what would happen if a feature were changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from features.arrays import Array
from features.matrix import FeatureSet
from features.vocabulary import TEAMS

_AT, _BY = np.polynomial.legendre.leggauss(48)
_NODES, _WEIGHTS = (_AT + 1) / 2, _BY / 2


def logistic(z: Array) -> Array:
    """1 / (1 + exp(-z)) without overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))


def points(base: float, contributions: Array) -> tuple[Array, Array]:
    """Probability and points of risk of each feature.

    Args:
        base: phi_0, the calibrated log-odds before anything is known of the row.
        contributions: (n, f) phi_i, calibrated log-odds.

    Returns:
        (n,) probability and (n, f) points, so that `logistic(base) + points.sum(axis=1)` is the probability to 1e-9.
    """
    z = base + _sum(contributions)
    probability, start = logistic(z), _start(base)
    step = z - base
    near = np.abs(step) < 1e-6  # the slope itself, where the quotient would lose its digits
    slope = np.where(near, probability * (1 - probability), (probability - start) / np.where(near, 1.0, step))
    return probability, contributions * slope[:, None]


@lru_cache(maxsize=256)
def _start(base: float) -> float:
    """g(phi_0); a model asks for the same one with every parcel."""
    return float(logistic(np.asarray(base)))


def share_points(base: Array, contributions: Array, which: Array) -> tuple[Array, Array, Array]:
    """Shares of K classes, and each feature's points of one class's share.

    With z_k = phi_0k + sum(phi_ki) and s = softmax(z), feature i's points of the share s_k are the same path's share
    (Aumann and Shapley) as in `points`: sum over classes j of phi_ji times the integral over t in [0, 1] of ds_k/dz_j
    along phi_0 + t (z - phi_0). They sum to s_k(z) - s_k(phi_0). The integrand is smooth; Gauss-Legendre quadrature
    leaves less than 1e-12 of it while no two classes' log odds move apart by more than 20.

    Args:
        base: (K,) phi_0 of each class, before anything is known of a row.
        contributions: (n, K, f) phi, in log odds.
        which: (n,) the class whose share is explained.

    Returns:
        (n, K) shares, (n,) share of that class before anything is known, and (n, f) points.
    """
    step = contributions.sum(axis=2)
    rows = np.arange(len(which))
    along = base + _NODES[:, None, None] * step  # (nodes, n, K)
    s = softmax(along)
    mine = s[:, rows, which]
    pull = -mine[:, :, None] * s  # ds_k/dz_j = s_k (1[j = k] - s_j)
    pull[:, rows, which] += mine
    # Plain sums, not products of matrices: what a row gets must not depend on how many rows there are.
    weight = (_WEIGHTS[:, None, None] * pull).sum(axis=0)
    risk = (weight[:, :, None] * contributions).sum(axis=1)
    return softmax(base + step), softmax(base[None])[0, which], risk


def softmax(z: Array) -> Array:
    """Shares exp(z) / sum(exp(z)) along the last axis, without overflow."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def by_team(points: Array, teams: Sequence[str]) -> dict[str, Array]:
    """Points (n, f) summed by the team that owns each feature: a (n,) array per team of the vocabulary."""
    order, starts, owners = _owned(tuple(teams))
    sums = {team: np.zeros(len(points)) for team in TEAMS}
    if owners:
        sums.update(zip(owners, np.add.reduceat(points.take(order, axis=1), starts, axis=1).T, strict=True))
    return sums


@lru_cache(maxsize=256)
def _owned(teams: tuple[str, ...]) -> tuple[Array, Array, list[str]]:
    """Features in the order of their teams, where each team starts in it, and the teams that have any."""
    owners = [team for team in TEAMS if team in teams]
    places = [[i for i, owner in enumerate(teams) if owner == team] for team in owners]
    starts = [sum(map(len, places[:k])) for k in range(len(owners))]
    return np.array([i for place in places for i in place]), np.array(starts), owners


def _sum(values: Array) -> Array:
    """Sums of rows, added in an order that does not depend on how many rows there are or how they lie in memory."""
    total: Array = np.ascontiguousarray(values).sum(axis=1)
    return total


def usual_words(features: FeatureSet, usual: Sequence[float]) -> list[str | None]:
    """The usual value of each feature in words, None where there is none (NaN)."""
    shown = zip(features.features, usual, strict=True)
    return [None if np.isnan(value) else f.words(value) for f, value in shown]
