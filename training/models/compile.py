"""Compiles a LightGBM model into the arrays of `serving.trees`: groups of leaves, and their tables of TreeSHAP values.

**Games.** The path-dependent TreeSHAP game of a leaf is a product: with feature set S known it is worth
`value * prod(satisfied_i for i in S) * prod(share_i for i not in S)`, where `share_i` is the part of the training rows
that takes the leaf's side at the nodes which split on feature i (products over repeated splits). Its Shapley value is
Owen's integral of the multilinear extension,

    phi_i = value * (satisfied_i - share_i) * integral_0^1 prod_{j != i} (share_j + (satisfied_j - share_j) t) dt,

a polynomial of degree at most seven for eight features, which Gauss-Legendre quadrature with four nodes integrates
exactly. It depends only on which of the path's features are satisfied, so each leaf has at most 2**8 rows of values.

**Groups.** Neighbouring leaves share most of their path. Consecutive leaves, in depth-first order, are put into one
group as long as their paths have at most eight different comparisons; where to cut is chosen per tree by dynamic
programming, for the least work per explained row, with a small price on memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import Array
from serving.trees import (
    BITS,
    NAN_LEFT,
    NAN_RIGHT,
    NEVER,
    PLAIN,
    PROTOCOL,
    ZERO,
    ZERO_LEFT,
    ZERO_RIGHT,
    CompiledTrees,
)

if TYPE_CHECKING:
    import lightgbm

Comparison = tuple[int, float, int]
"""feature, cut, way with missing values: true (go right) where the value is above the cut."""

_FETCH = 4.0  # cost of fetching one table row, in comparisons (measured)
_STATE = 1 / 64  # price of one number in a table, in comparisons: as fast as less, with smaller files (measured)
_INFINITE = 1e300  # how LightGBM dumps infinity, the cut that parts all numbers from NaN
_CHUNK = 256  # groups whose tables are filled at a time


@dataclass(frozen=True)
class _Leaf:
    """A leaf: its raw score, the answers that lead to it, and per feature the share of rows that take its side."""

    value: float
    path: tuple[tuple[Comparison, bool], ...]
    shares: dict[int, float]


@dataclass(frozen=True)
class _Group:
    """Leaves of one tree and the comparisons they depend on; `flip`: the answer is turned round in the state."""

    tree: int
    leaves: list[_Leaf]
    comparisons: list[Comparison]
    flip: list[bool]
    features: list[int]


def compile_booster(booster: lightgbm.Booster) -> CompiledTrees:
    """Compile a LightGBM model with one output, such as a binary one; the best iteration where training stopped early.

    Args:
        booster: the trained model; every leaf within eight different comparisons, as `max_depth=8` ensures.

    Returns:
        The compiled trees, whose contributions are those of `predict(pred_contrib=True)` and whose raw score is that of
        `predict(raw_score=True)`.

    Raises:
        ValueError: the model has something that cannot be represented exactly; the message says what to train instead.
    """
    model = _dumped(booster)
    outputs = model["num_tree_per_iteration"]
    if outputs != 1:
        raise ValueError(f"the model has {outputs} outputs; one can be compiled: train one binary model per class")
    trees = [_leaves(tree["tree_structure"], i) for i, tree in enumerate(model["tree_info"])]
    return _compiled(trees, model["max_feature_idx"] + 1)


def compile_classes(booster: lightgbm.Booster) -> tuple[CompiledTrees, Array]:
    """Compile a LightGBM model with K outputs into one forest, whose column `k * f + i` is feature i of output k.

    A row is looked up once for all outputs, if it is given K times side by side; its contributions are then those of
    `predict(pred_contrib=True)`, output by output.

    Args:
        booster: as for `compile_booster`, with any number of outputs.

    Returns:
        The compiled trees, and (K,) phi_0 of each output in raw score.

    Raises:
        ValueError: as `compile_booster`.
    """
    model = _dumped(booster)
    outputs, f = model["num_tree_per_iteration"], model["max_feature_idx"] + 1
    trees = [_leaves(tree["tree_structure"], i, first=i % outputs * f) for i, tree in enumerate(model["tree_info"])]
    bases = [_base(trees[k::outputs]) for k in range(outputs)]
    return _compiled(trees, outputs * f), np.array(bases)


def _dumped(booster: lightgbm.Booster) -> dict[str, Any]:
    model: dict[str, Any] = booster.dump_model()
    if model["average_output"]:
        raise ValueError("the model averages its trees (boosting=rf), sums can be compiled: train with boosting=gbdt")
    if not model["tree_info"]:
        raise ValueError("the model has no trees: train at least one iteration")
    return model


def _compiled(trees: list[list[_Leaf]], columns: int) -> CompiledTrees:
    groups = [group for i, leaves in enumerate(trees) for group in _groups(leaves, i)]
    return CompiledTrees(_arrays(groups, columns, _base(trees)))


def _base(trees: list[list[_Leaf]]) -> float:
    """The mean of some trees over the training rows, as TreeSHAP weighs them."""
    return math.fsum(leaf.value * math.prod(leaf.shares.values()) for leaves in trees for leaf in leaves)


def _leaves(root: dict[str, Any], tree: int, first: int = 0) -> list[_Leaf]:
    """Leaves of a dumped tree, depth first; its features are numbered from `first` on."""
    out: list[_Leaf] = []
    todo: list[tuple[dict[str, Any], tuple[tuple[Comparison, bool], ...], dict[int, float]]] = [(root, (), {})]
    while todo:
        node, path, shares = todo.pop()
        if "leaf_value" in node:
            if "leaf_const" in node:
                raise ValueError(
                    f"tree {tree} has linear leaves; constants can be compiled: train with linear_tree=false"
                )
            out.append(_Leaf(float(node["leaf_value"]), path, shares))
            continue
        feature, cut, way = _comparison(node, tree)
        comparison = (first + feature, cut, way)
        rows = node["internal_count"]
        for child, right in ((node["right_child"], True), (node["left_child"], False)):
            part = child["leaf_count"] if "leaf_value" in child else child["internal_count"]
            if rows <= 0:
                raise ValueError(f"tree {tree} has a split without training rows: train with min_data_in_leaf >= 1")
            share = shares.get(comparison[0], 1.0) * part / rows
            todo.append((child, (*path, (comparison, right)), {**shares, comparison[0]: share}))
    return out


def _comparison(node: dict[str, Any], tree: int) -> Comparison:
    """What a dumped split compares, in the form that is exact for every float64 value."""
    if node["decision_type"] != "<=":
        raise ValueError(
            f"tree {tree} splits on categories of feature {node['split_feature']}; numbers can be compiled: "
            "train without categorical_feature"
        )
    left = node["default_left"]
    way = {"None": PLAIN, "NaN": NAN_LEFT if left else NAN_RIGHT, "Zero": ZERO_LEFT if left else ZERO_RIGHT}
    cut = float(node["threshold"])
    if -ZERO <= cut < 0:  # what is nearer to zero than ZERO is zero to LightGBM, so only values below are to the left
        cut = float(np.nextafter(-ZERO, -1.0))
    elif 0 <= cut <= ZERO:
        cut = ZERO
    elif cut >= _INFINITE:
        cut = math.inf
    return node["split_feature"], cut, way[node["missing_type"]]


def _groups(leaves: list[_Leaf], tree: int) -> list[_Group]:
    """The cheapest division of a tree's leaves into groups of at most eight comparisons."""
    asked = [frozenset(comparison for comparison, _ in leaf.path) for leaf in leaves]
    deepest = max(len(a) for a in asked)
    if deepest > BITS:
        raise ValueError(
            f"tree {tree} has a leaf behind {deepest} comparisons; {BITS} can be compiled: train with max_depth={BITS}"
        )
    best = [0.0] + [math.inf] * len(leaves)  # of the first leaves; start of the last group
    start = [0] * (len(leaves) + 1)
    for first in range(len(leaves)):
        union: frozenset[Comparison] = frozenset()
        for last in range(first, len(leaves)):
            union |= asked[last]
            bits = len(union)
            if bits > BITS:
                break
            cost = best[first] + _FETCH + bits + (bits << bits) * _STATE
            if cost < best[last + 1]:
                best[last + 1], start[last + 1] = cost, first
    out, end = [], len(leaves)
    while end:
        out.append(_group(leaves[start[end] : end], tree))
        end = start[end]
    return out[::-1]


def _group(leaves: list[_Leaf], tree: int) -> _Group:
    """A group whose comparisons are ordered and turned so that small states are the common ones."""
    weight: dict[Comparison, list[float]] = {}
    for leaf in leaves:
        reach = math.prod(leaf.shares.values())
        for comparison, right in leaf.path:
            weight.setdefault(comparison, [0.0, 0.0])[right] += reach
    above = {c: (w[1] / sum(w) if sum(w) > 0 else 0.5) for c, w in weight.items()}
    comparisons = sorted(above, key=lambda c: (-min(above[c], 1 - above[c]), c))
    flip = [above[c] > 0.5 for c in comparisons]
    return _Group(tree, leaves, comparisons, flip, sorted({c[0] for c in comparisons}))


def _arrays(groups: list[_Group], f: int, base: float) -> dict[str, Array]:
    """The arrays of `serving.trees.ARRAYS`."""
    cuts: defaultdict[int, set[float]] = defaultdict(set)
    for group in groups:
        for feature, cut, _ in group.comparisons:
            cuts[feature].add(cut)
    ranks = {feature: {cut: rank for rank, cut in enumerate(sorted(values))} for feature, values in cuts.items()}

    ordered = sorted(range(len(groups)), key=lambda i: -len(groups[i].comparisons))
    order = np.empty(len(groups), dtype="<i4")
    order[ordered] = np.arange(len(groups))
    groups = [groups[i] for i in ordered]
    bits = np.array([len(group.comparisons) for group in groups], dtype="|u1")
    slot = np.zeros((len(groups), BITS), dtype="<i4")
    threshold = np.full((len(groups), BITS), NEVER, dtype="<u2")
    flip = np.zeros(len(groups), dtype="|u1")
    column = np.zeros((len(groups), BITS), dtype="<i4")
    for g, group in enumerate(groups):
        for j, (owner, cut, way) in enumerate(group.comparisons):
            slot[g, j] = way * f + owner
            threshold[g, j] = ranks[owner][cut]
        flip[g] = sum(turned << j for j, turned in enumerate(group.flip))
        if group.features:
            column[g] = group.features[0]  # columns nobody owns hold zeros
            column[g, : len(group.features)] = group.features

    leaf, table = [], []
    for b in range(BITS, -1, -1):
        which = np.flatnonzero(bits == b)
        block = [groups[i] for i in which]
        parts = [_tables(block[at : at + _CHUNK], b) for at in range(0, len(block), _CHUNK)]
        leaf += [values.ravel() for values, _ in parts]
        if parts and b:
            table.append(np.concatenate([contributions for _, contributions in parts], axis=1).ravel())
    owners = sorted(ranks)
    return {
        "size": np.array([PROTOCOL, f], dtype="<i8"),
        "base": np.array([base], dtype="<f8"),
        "cut": np.array([cut for owner in owners for cut in ranks[owner]], dtype="<f8"),
        "cut_feature": np.array([owner for owner in owners for _ in ranks[owner]], dtype="<i4"),
        "bits": bits,
        "slot": slot,
        "threshold": threshold,
        "flip": flip,
        "feature": column,
        "order": order,
        "leaf": np.concatenate(leaf),
        "table": np.concatenate(table) if table else np.empty(0, dtype="<f8"),
    }


def _tables(groups: list[_Group], bits: int) -> tuple[Array, Array]:
    """Leaf values (m, 2**bits) and contributions (2**bits, m, bits) of groups with this number of comparisons."""
    leaves = [(g, n, leaf) for g, group in enumerate(groups) for n, leaf in enumerate(group.leaves)]
    count = len(leaves)
    mine = np.array([g for g, _, _ in leaves])
    nth = np.array([n for _, n, _ in leaves])  # no two n-th leaves are of one group: their sums do not collide
    value = np.array([leaf.value for _, _, leaf in leaves])
    players = np.array([len(leaf.shares) for _, _, leaf in leaves])
    share = np.ones((count, BITS))
    column = np.zeros((count, BITS), dtype=np.intp)
    mask = np.zeros((count, BITS), dtype=np.uint8)  # feature q of the leaf is satisfied where state & mask == want
    want = np.zeros((count, BITS), dtype=np.uint8)
    for i, (g, _, leaf) in enumerate(leaves):
        group = groups[g]
        at = {feature: q for q, feature in enumerate(leaf.shares)}
        share[i, : len(at)] = list(leaf.shares.values())
        column[i, : len(at)] = [group.features.index(feature) for feature in at]
        bit = {c: 1 << j for j, c in enumerate(group.comparisons)}
        turned = dict(zip(group.comparisons, group.flip, strict=True))
        for comparison, right in leaf.path:
            q = at[comparison[0]]
            mask[i, q] |= bit[comparison]
            want[i, q] |= bit[comparison] * (right != turned[comparison])
        for comparison, right in leaf.path:
            if (comparison, not right) in leaf.path:  # two cuts within ZERO of zero: no value lies between them
                mask[i, at[comparison[0]]], want[i, at[comparison[0]]] = 0, 1

    states = np.arange(1 << bits, dtype=np.uint8)
    satisfied = (states[None, :, None] & mask[:, None, :]) == want[:, None, :]
    pattern = np.packbits(satisfied, axis=2, bitorder="little")[:, :, 0]  # features the leaf lacks count as satisfied
    leaf_values = np.zeros((len(groups), 1 << bits))
    table = np.zeros((1 << bits, len(groups), bits))
    for n in range(int(nth.max()) + 1):
        which = nth == n
        leaf_values[mine[which]] += np.where(pattern[which] == 255, value[which, None], 0.0)
        for k in np.unique(players[which & (players > 0)]):
            some = np.flatnonzero(which & (players == k))
            game = shapley_of_products(value[some], share[some, :k])
            phi = game[np.arange(len(some))[:, None], pattern[some] & ((1 << k) - 1)]
            for q in range(k):
                table[:, mine[some], column[some, q]] += phi[:, :, q].T
    return leaf_values, table


def shapley_of_products(value: Array, share: Array) -> Array:
    """Shapley values of product games, for every pattern of satisfied features.

    Args:
        value: (m,) what the game is worth when all features are known and satisfied.
        share: (m, k) what each feature multiplies the game with while it is not known.

    Returns:
        (m, 2**k, k): row p holds the values where feature i is satisfied if bit i of p is set.
    """
    k = share.shape[1]
    satisfied = (np.arange(1 << k)[:, None] >> np.arange(k) & 1).astype(np.float64)
    node, weight = np.polynomial.legendre.leggauss(max(1, (k + 1) // 2))
    node, weight = (node + 1) / 2, weight / 2
    lift = satisfied - share[:, None, :]  # (m, 2**k, k)
    factor = share[:, None, :, None] + lift[..., None] * node  # (m, 2**k, k, nodes)
    before, after = np.ones_like(factor), np.ones_like(factor)
    for i in range(1, k):
        np.multiply(before[:, :, i - 1], factor[:, :, i - 1], out=before[:, :, i])
        np.multiply(after[:, :, k - i], factor[:, :, k - i], out=after[:, :, k - i - 1])
    before *= after  # the product of all factors but one's own
    return value[:, None, None] * lift * (before @ weight)
