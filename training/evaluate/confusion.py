"""How what is said of returns goes with the truth: the confusion of words, and the mix of true reasons behind them.

What customers state is a noisy label: they choose the reason that returns free of charge. Where a shop inspects some of
what comes back, the inspected returns tell how the words go with the truth: the share of each stated reason (and of
stating none) among returns of each true reason, the *confusion*. It is estimated together with the mix of true reasons
by expectation-maximisation (Dawid and Skene, Applied Statistics 28, 1979, with the inspection as a rater whose share of
right findings the shop knows, `inspections_right` in `dataset.toml`). Without enough inspected returns the words are
taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import Array

__all__ = ["LEAST_INSPECTED", "Noise", "confusion", "log_losses", "mixture", "posterior"]

LEAST_INSPECTED = 100
"""With fewer inspected returns the words are taken as they are: a confusion of so few would be noise itself."""

STRENGTH = 10.0
"""A reason's confusion is drawn towards the shop's usual one as if so many more of its returns had been inspected."""

STEPS = 300
"""Steps of expectation-maximisation; the tables are tiny and it has long settled by then."""


@dataclass(frozen=True)
class Noise:
    """How what is said goes with the truth, for K reasons.

    Attributes:
        stated: (K, K + 1) share of each stated reason, the last for none, among the returns of each true reason.
        inspection: (K, K + 1) the same of what inspections find; the last, for no inspection, is 1 everywhere.
        mix: (K,) share of each true reason among all the returns it was estimated from.
        inspected: how many of them were inspected.
        corrected: there were enough; otherwise what is said is taken as true.
    """

    stated: Array
    inspection: Array
    mix: Array
    inspected: int
    corrected: bool

    def chance(self, stated: Array, inspected: Array) -> Array:
        """Chance (n, K) of what was said, for each true reason; -1 stands for nothing said."""
        return np.asarray(self.stated.T[stated] * self.inspection.T[inspected])

    def posterior(self, shares: Array, stated: Array, inspected: Array) -> Array:
        """Shares (n, K) of the true reason, given the model's and what was said (n,)."""
        return posterior(shares, self.chance(stated, inspected))

    def log_loss(self, shares: Array, stated: Array, inspected: Array) -> Array:
        """-log of the probability of what was said (n,), in nats."""
        return log_losses(shares, self.chance(stated, inspected))


def posterior(shares: Array, chance: Array) -> Array:
    """Shares (n, K) of the true reason, given the model's and the chance of what was said for each reason, (n, K)."""
    found = shares * chance
    return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-300))


def log_losses(shares: Array, chance: Array) -> Array:
    """-log of the probability of what was said (n,), in nats; the arguments are those of `posterior`."""
    return np.asarray(-np.log(np.maximum((shares * chance).sum(axis=1), 1e-15)))


def confusion(stated: Array, inspected: Array, reasons: int, right: float = 1.0) -> Noise:
    """Estimate how the words go with the truth.

    Args:
        stated, inspected: (n,) reasons 0 to K - 1 of n returns, -1 where nothing is said.
        reasons: K.
        right: share of inspections that find the true reason; the others find any other equally often.
    """
    cells = _cells(stated, inspected, reasons)
    count = int(cells[:reasons].sum())
    if count < LEAST_INSPECTED:
        silent = cells[:, reasons].sum() / max(1.0, cells.sum())
        said = np.hstack([np.eye(reasons) * (1 - silent), np.full((reasons, 1), max(silent, 1e-9))])
        alone = cells[:, :reasons].sum(axis=0) + cells[:reasons, reasons] + 1.0
        return Noise(said, _inspection(reasons, right), alone / alone.sum(), count, False)
    mix, said = _settle(cells[None], right)
    return Noise(said[0], _inspection(reasons, right), mix[0], count, True)


def mixture(
    stated: Array, inspected: Array, reasons: int, right: float, groups: Array, seed: int, replicates: int = 200
) -> tuple[Array, Array, Array]:
    """The mix of true reasons behind n returns, with its 95 % bootstrap interval.

    Args:
        stated, inspected, reasons, right: as for `confusion`, which is estimated anew from these returns alone.
        groups: (n,) the order of each return; what is resampled.
        seed: of the bootstrap.
        replicates: how many resamples.

    Returns:
        (K,) shares, and the lower and upper bound of each. Without enough inspected returns, the mix of what is said.
    """
    first = confusion(stated, inspected, reasons, right)
    _, group = np.unique(groups.astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    many = int(group.max()) + 1
    drawn = []
    for _ in range(replicates):
        weight = np.bincount(rng.integers(0, many, many), minlength=many)[group]
        drawn.append(_cells(stated, inspected, reasons, weight))
    cells = np.stack(drawn)
    if first.corrected:
        mixes, _ = _settle(cells, right)
    else:
        alone = cells[:, :, :reasons].sum(axis=1) + cells[:, :reasons, reasons] + 1e-9
        mixes = alone / alone.sum(axis=1, keepdims=True)
    low, high = np.quantile(mixes, (0.025, 0.975), axis=0)
    return first.mix, np.minimum(low, first.mix), np.maximum(high, first.mix)


def _cells(stated: Array, inspected: Array, k: int, weight: Array | None = None) -> Array:
    """Returns by what was inspected (rows) and stated (columns), (K + 1, K + 1), the last of each for nothing."""
    place = np.where(inspected < 0, k, inspected).astype(np.int64) * (k + 1) + np.where(stated < 0, k, stated)
    return np.bincount(place, weights=weight, minlength=(k + 1) ** 2).reshape(k + 1, k + 1).astype(np.float64)


def _inspection(k: int, right: float) -> Array:
    found = np.full((k, k + 1), (1 - right) / max(1, k - 1))
    found[np.arange(k), np.arange(k)] = right
    found[:, k] = 1.0
    return found


def _settle(cells: Array, right: float) -> tuple[Array, Array]:
    """Mix (b, K) and confusion (b, K, K + 1) that make tables of counts (b, K + 1, K + 1) likeliest."""
    b, k = len(cells), cells.shape[1] - 1
    found = _inspection(k, right)
    mix = np.full((b, k), 1 / k)
    said = np.full((b, k, k + 1), 0.3 / k)
    said[:, np.arange(k), np.arange(k)] = 0.7
    own = np.eye(k, k + 1)
    for _ in range(STEPS):
        joint = mix[:, :, None, None] * found[None, :, :, None] * said[:, :, None, :]  # true, inspected, stated
        joint *= (cells / np.maximum(joint.sum(axis=1), 1e-300))[:, None]
        total = joint.sum(axis=2)
        mass = total.sum(axis=2)
        mix = mass / mass.sum(axis=1, keepdims=True)
        # What is usual in this shop: true words with a certain share, and else the words of those that are not true.
        truly = (total * own).sum(axis=(1, 2)) / total.sum(axis=(1, 2))
        other = (total * (1 - own)).sum(axis=1) + 1e-9
        other /= other.sum(axis=1, keepdims=True)
        usual = truly[:, None, None] * own + (1 - truly)[:, None, None] * other[:, None, :]
        said = (total + STRENGTH * usual) / (mass + STRENGTH)[:, :, None]
        said /= said.sum(axis=2, keepdims=True)
    return mix, said
