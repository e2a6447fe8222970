"""Shapley values from their definition, over a LightGBM tree's cover-weighted conditional expectation.

Independent of the compiled trees, of LightGBM's predictor and of its `pred_contrib`: every subset of the features is
valued by walking the dumped tree, and weighted by factorials. Exponential, for small trees only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

TINY = 1.0000000180025095e-35  # 1e-35 as a 32-bit float: LightGBM's idea of zero


def goes_left(node: dict[str, Any], value: float) -> bool:
    """Which way LightGBM's documented predictor goes at a numerical split."""
    if math.isnan(value) and node["missing_type"] != "NaN":
        value = 0.0
    if abs(value) <= TINY:
        value = 0.0
    if (node["missing_type"] == "NaN" and math.isnan(value)) or (node["missing_type"] == "Zero" and value == 0.0):
        return bool(node["default_left"])
    return bool(value <= node["threshold"] or node["threshold"] >= 1e300)  # infinity, as the dump writes it


def cover(node: dict[str, Any]) -> int:
    return int(node["leaf_count"] if "leaf_value" in node else node["internal_count"])


def expectation(node: dict[str, Any], row: Sequence[float], known: frozenset[int]) -> float:
    """Mean of the tree where only the features in `known` are known; the others follow the training rows."""
    if "leaf_value" in node:
        return float(node["leaf_value"])
    left, right = node["left_child"], node["right_child"]
    if node["split_feature"] in known:
        return expectation(left if goes_left(node, float(row[node["split_feature"]])) else right, row, known)
    a, b = cover(left), cover(right)
    return (a * expectation(left, row, known) + b * expectation(right, row, known)) / (a + b)


def features_of(node: dict[str, Any]) -> set[int]:
    if "leaf_value" in node:
        return set()
    return {node["split_feature"]} | features_of(node["left_child"]) | features_of(node["right_child"])


def shapley(model: dict[str, Any], row: Sequence[float]) -> tuple[float, list[float]]:
    """phi_0 and the Shapley value of every feature.

    Args:
        model: `booster.dump_model()`.
        row: the features' values.
    """
    base, phi = 0.0, [0.0] * (model["max_feature_idx"] + 1)
    for tree in model["tree_info"]:
        root = tree["tree_structure"]
        players = sorted(features_of(root))
        worth = {
            frozenset(s): expectation(root, row, frozenset(s))
            for size in range(len(players) + 1)
            for s in combinations(players, size)
        }
        base += worth[frozenset()]
        n = len(players)
        for i in players:
            for known, value in worth.items():
                if i not in known:
                    k = len(known)
                    weight = math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n)
                    phi[i] += weight * (worth[known | {i}] - value)
    return base, phi
