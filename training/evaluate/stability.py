"""How far explanations depend on the seed: the same training again, and what the same units are told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from features.arrays import Array
from features.matrix import FeatureSet
from features.vocabulary import TEAMS
from serving.bundle import TargetModel
from serving.explain import by_team

ROWS = 2_000
"""Units whose explanations are compared."""

RISKY = 0.1
"""Share of the units, those with the highest probability, whose explanations people read."""


def stability(models: Sequence[TargetModel], values: Callable[[FeatureSet], Array]) -> dict[str, Any]:
    """Compare what models of different seeds say of the same units.

    Correlated features share credit differently with every seed; what an owner team is told should not change with it.

    Args:
        models: the same training with one seed each, two at least; they need not read the same features.
        values: the units' values of some features, (n, f) float32.

    Returns:
        Means over all pairs of seeds. In points of probability, 0 to 1: `difference` (mean absolute difference of a
        team's points), `size` (mean absolute points of a team), both also by team in `teams`; `probability` (mean
        absolute difference of the probability). As shares: `top_team` (units whose largest points are the same team's),
        `top_team_risky` (the same of the riskiest tenth), `moved_teams` and `moved_features` (difference over size, of
        the teams' points and of the features'). `rank_correlation`: mean over units of Spearman's correlation of the
        teams' points. `seeds` and `units`: how many.

    Raises:
        ValueError: fewer than two models.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} models given: two seeds at least can be compared")
    every = FeatureSet.union(m.features for m in models)
    place = {name: i for i, name in enumerate(every.names)}
    probabilities, features, teams = [], [], []
    for model in models:
        probability, own = model.explain(values(model.features))
        spread = np.zeros((len(own), len(every.features)))
        spread[:, [place[n] for n in model.features.names]] = own
        probabilities.append(probability)
        features.append(spread)
        owned = by_team(own, model.features.teams)
        teams.append(np.stack([owned[t] for t in TEAMS], axis=1))
    risk = np.mean(probabilities, axis=0)
    owners = [i for i, team in enumerate(TEAMS) if team in {f.team for f in every.features}]
    points = np.stack(teams)[:, :, owners]  # (seeds, n, teams)
    risky = np.argsort(-risk, kind="stable")[: max(1, round(RISKY * len(risk)))]
    pairs = list(itertools.combinations(range(len(models)), 2))
    differences = np.mean([np.abs(points[a] - points[b]).mean(axis=0) for a, b in pairs], axis=0)
    sizes = np.abs(points).mean(axis=(0, 1))
    same = [points[a].argmax(axis=1) == points[b].argmax(axis=1) for a, b in pairs]
    spread = np.stack(features)
    apart = np.mean([np.abs(spread[a] - spread[b]).sum() for a, b in pairs])
    return {
        "seeds": len(models),
        "units": len(risk),
        "probability": float(np.mean([np.abs(probabilities[a] - probabilities[b]).mean() for a, b in pairs])),
        "difference": float(differences.mean()),
        "size": float(sizes.mean()),
        "moved_teams": _over(float(differences.sum()), float(sizes.sum())),
        "moved_features": _over(float(apart), float(np.abs(spread).sum() / len(models))),
        "top_team": float(np.mean(same)),
        "top_team_risky": float(np.mean([s[risky] for s in same])),
        "rank_correlation": float(np.mean([_spearman(points[a], points[b]) for a, b in pairs])),
        "teams": {
            TEAMS[owner]: {"difference": float(differences[k]), "size": float(sizes[k])}
            for k, owner in enumerate(owners)
        },
    }


def _over(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _spearman(a: Array, b: Array) -> float:
    """Mean over rows of the correlation of the ranks of two (n, k); rows of equal values do not count."""
    from scipy.stats import rankdata

    ranks = [rankdata(x, axis=1) for x in (a, b)]
    centred = [r - r.mean(axis=1, keepdims=True) for r in ranks]
    size = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    told = size > 0
    # Where no team has any points in either model, they agree.
    return float(((centred[0] * centred[1]).sum(axis=1)[told] / size[told]).mean()) if told.any() else 1.0
