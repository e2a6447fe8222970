"""Compiled gradient-boosted trees: exact TreeSHAP values and raw scores by table look-up, in plain numpy.

`training.models.compile` takes a LightGBM model apart into *groups*: neighbouring leaves of one tree that together
depend on at most eight comparisons `value > cut`. The answers to a group's comparisons are the bits of one byte, its
*state*. What the group's leaves contribute to each of their features (path-dependent TreeSHAP, Lundberg et al. 2020,
doi:10.1038/s42256-019-0138-9) depends on nothing but that state, so it is computed once, by `training.models.compile`,
and a row is explained by comparing, packing bits and adding up one table row per group.

Values are compared by rank: a feature's rank is how many of the model's cuts of that feature lie below the value, a
small integer that is exact for float64 and cheap to gather. Missing values are ranks too (below or above every cut), so
LightGBM's three ways with them (`missing_type` None, NaN and Zero) cost nothing per comparison.

A model is a folder of plain `.npy` files (`ARRAYS`), checked on loading so that no content can make a look-up leave its
table. The tables are memory-mapped: worker processes share them, and only what is touched is read. All methods only
read, so one object may serve many threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from features.arrays import Array

PROTOCOL = 1
"""Raise when the arrays change their meaning."""

BITS = 8
"""Comparisons of one group at most: its state is one byte."""

ZERO = float(np.float32(1e-35))
"""LightGBM takes any value this close to zero, or closer, for zero (`kZeroThreshold`)."""

PLAIN, NAN_LEFT, NAN_RIGHT, ZERO_LEFT, ZERO_RIGHT = range(5)
"""Ways with missing values: NaN is 0; NaN goes left, right; both NaN and 0 go left, right."""

ABOVE = 65534
"""Rank of a missing value that goes right: above every cut."""

NEVER = 65535
"""Threshold of a comparison that is not there: no rank is above it."""

ARRAYS: dict[str, tuple[str, int, str]] = {
    "size": ("<i8", 1, "(2,): protocol, number of features f"),
    "base": ("<f8", 1, "(1,): phi_0, the raw score before anything is known of a row"),
    "cut": ("<f8", 1, "(c,): cuts, ascending within a feature; infinity parts the numbers from NaN"),
    "cut_feature": ("<i4", 1, "(c,): the cut's feature, ascending"),
    "bits": ("|u1", 1, "(g,): comparisons of each group, descending"),
    "slot": ("<i4", 2, "(g, 8): what is compared: way with missing values * f + feature"),
    "threshold": ("<u2", 2, "(g, 8): the bit is set where the rank is above it; NEVER beyond the group's bits"),
    "flip": ("|u1", 1, "(g,): bits that are turned round, so that 1 is the rarer side"),
    "feature": ("<i4", 2, "(g, 8): the feature each column of the group's table belongs to"),
    "order": ("<i4", 1, "(g,): the groups in the order of the trees"),
    "leaf": ("<f8", 1, "per group 2**bits: the tree's value where one of the group's leaves is reached, else 0"),
    "table": ("<f8", 1, "per run of groups with equal bits (2**bits, groups, bits): contributions in raw score"),
}
"""Arrays of a compiled model, one file each: type, dimensions, meaning."""

_MAPPED = ("leaf", "table")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '([<|][fiu]\d)', 'fortran_order': False, "
    rb"'shape': \((\d{1,12}), ?(\d{1,12})?\), \} *\n"
)
_HEADER_BYTES = 128

_BATCH = 200  # from so many rows on, going group by group is faster than row by row
_ROWS = 4096  # rows worked on at a time
_CELLS = 1 << 18  # comparisons worked on at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class _Block:
    """A run of groups with the same number of comparisons.

    Attributes:
        groups: which groups.
        table: (2**bits, m, bits) contributions; states first, so that common states of all groups lie together.
        columns: which part of a row's contributions, group by group, is theirs.
    """

    groups: slice
    table: Array
    columns: slice


class CompiledTrees:
    """A binary (or any single-output) tree model that explains a row exactly, in a fraction of a millisecond.

    Attributes:
        n_features: number of features f.
        base: phi_0 in raw score (log-odds): the mean of the trees over the training rows, as TreeSHAP weighs them.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        """Take over the arrays, after checking that they belong together.

        Args:
            arrays: one per name in `ARRAYS`; they are kept, not copied.

        Raises:
            ValueError: an array is missing, has another shape or type, or points out of range.
        """
        _check(arrays)
        self._arrays = {name: np.asarray(arrays[name]) for name in ARRAYS}
        a = self._arrays
        self.n_features = int(a["size"][1])
        self.base = float(a["base"][0])

        # Complex numbers sort by real part, then imaginary: one search finds the ranks of all features of a row.
        self._cuts = np.empty(len(a["cut"]), dtype=np.complex128)
        self._cuts.real, self._cuts.imag = a["cut_feature"], a["cut"]
        self._first_cut = np.searchsorted(a["cut_feature"], np.arange(self.n_features))
        self._slot = a["slot"].astype(np.intp)
        self._zeros = bool((a["slot"] >= ZERO_LEFT * self.n_features).any())

        sizes = 1 << a["bits"].astype(np.intp)
        self._leaf_at = np.cumsum(sizes) - sizes
        self._order = a["order"].astype(np.intp)
        self._leaf_in_order = self._leaf_at[self._order]

        self._blocks: list[_Block] = []
        # Row of a group's state in its block's table, all rows in one: state * stride + place.
        self._stride = np.empty(len(a["bits"]), dtype=np.intp)
        self._place = np.empty(len(a["bits"]), dtype=np.intp)
        values, columns, owners = 0, 0, []
        for bits in range(BITS, 0, -1):
            which = np.flatnonzero(a["bits"] == bits)
            if len(which) == 0:
                continue
            groups = slice(int(which[0]), int(which[-1]) + 1)
            m, size = len(which), (len(which) << bits) * bits
            table = a["table"][values : values + size].reshape(1 << bits, m, bits)
            self._blocks.append(_Block(groups, table, slice(columns, columns + m * bits)))
            self._stride[groups], self._place[groups] = m, np.arange(m)
            owners.append(a["feature"][groups, :bits].ravel())
            values, columns = values + size, columns + m * bits
        self._owner = np.concatenate(owners, dtype=np.intp) if owners else np.empty(0, dtype=np.intp)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, which is their size on disk but for the headers."""
        return sum(a.nbytes for a in self._arrays.values())

    def contributions(self, rows: Array) -> Array:
        """TreeSHAP values of each row in raw score; with `base` they add up to the raw score.

        A row's values do not depend, to the last bit, on the other rows: few rows are explained one at a time and many
        group by group, but what a feature gets is added up in the same order.

        Args:
            rows: (n, f) numbers, as LightGBM would get them; NaN is missing.

        Returns:
            (n, f) float64.

        Raises:
            ValueError: the rows have another shape.
        """
        x = self._input(rows)
        out = np.empty(x.shape)
        if len(x) < _BATCH:
            for i in range(len(x)):
                out[i] = self._explain_row(self._states(self._ranks(x[i : i + 1]))[:, 0])
        else:
            for at in range(0, len(x), _ROWS):
                out[at : at + _ROWS] = self._explain_many(self._states(self._ranks(x[at : at + _ROWS]))).T
        return out

    def raw(self, rows: Array) -> Array:
        """Raw score (log-odds) of each row, the fast way where no explanation is wanted.

        It is LightGBM's own raw score bit for bit: the same leaves added in the same order, whatever the other rows.
        `base + contributions(rows).sum(axis=1)` adds other numbers up to the same sum and differs by rounding, less
        than 1e-12.

        Args:
            rows: (n, f) numbers; NaN is missing.

        Returns:
            (n,) float64.

        Raises:
            ValueError: the rows have another shape.
        """
        x = self._input(rows)
        leaf = self._arrays["leaf"]
        out = np.zeros(len(x))
        if len(x) < _BATCH:
            for i in range(len(x)):
                states = self._states(self._ranks(x[i : i + 1]))[:, 0].take(self._order)
                out[i] = np.cumsum(leaf.take(self._leaf_in_order + states))[-1]  # one after the other, unlike a sum
            return out
        for at in range(0, len(x), _ROWS):
            states, part = self._states(self._ranks(x[at : at + _ROWS])), out[at : at + _ROWS]
            for group, first in zip(self._order.tolist(), self._leaf_in_order.tolist(), strict=True):
                part += leaf[first : first + 256].take(states[group])  # a state is below 2**bits
        return out

    def save(self, directory: str | Path) -> None:
        """Write the arrays into a folder, made if needed. The same model gives the same bytes."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self._arrays.items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)

    @staticmethod
    def load(directory: str | Path, mmap: bool = True) -> CompiledTrees:
        """Read a folder that `save` wrote.

        Args:
            directory: the folder.
            mmap: map the tables into memory instead of reading them; replace such a folder whole, never in place.

        Raises:
            ValueError: a file is missing or is not what `save` writes: type, shape, size, range. A change of a number
                that stays in range cannot be seen here; the bundle's checksums are for that.
        """
        folder = Path(directory)
        try:
            return CompiledTrees(
                {name: _read(folder / f"{name}.npy", mmap and name in _MAPPED) for name in ARRAYS},
            )
        except ValueError as error:
            raise ValueError(f"{folder} holds no compiled trees: {error}") from None

    def _input(self, rows: Array) -> Array:
        x = np.asarray(rows, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"rows have the shape {x.shape}; the model needs (n, {self.n_features})")
        return x

    def _ranks(self, x: Array) -> Array:
        """Ranks (ways * f, n) uint16 of rows (n, f), for each way with missing values."""
        return _ranks(x, self._cuts, self._first_cut, self._zeros)

    def _states(self, ranks: Array) -> Array:
        """State (g, n) uint8 of each group for ranks (ways * f, n)."""
        threshold, flip = self._arrays["threshold"], self._arrays["flip"]
        n = ranks.shape[1]
        if n == 1:
            above = ranks[:, 0].take(self._slot) > threshold
            return (np.packbits(above, bitorder="little") ^ flip)[:, None]
        weight = (1 << np.arange(BITS)).astype(np.uint8)[:, None]
        out = np.empty((len(flip), n), dtype=np.uint8)
        step = max(1, _CELLS // (BITS * max(1, n)))
        for at in range(0, len(flip), step):
            part = slice(at, at + step)
            above = ranks.take(self._slot[part], axis=0) > threshold[part, :, None]
            bits = above.view(np.uint8)
            bits *= weight
            np.add.reduce(bits, axis=1, dtype=np.uint8, out=out[part])
            out[part] ^= flip[part, None]
        return out

    def _explain_row(self, states: Array) -> Array:
        """Contributions (f,) of one row's states (g,)."""
        values = np.empty(len(self._owner))
        at = states * self._stride
        at += self._place
        for block in self._blocks:
            size, m, bits = block.table.shape
            rows, out = block.table.reshape(size * m, bits), values[block.columns].reshape(m, bits)
            rows.take(at[block.groups], axis=0, out=out, mode="clip")  # "raise" would copy `out`
        return np.bincount(self._owner, values, self.n_features)

    def _explain_many(self, states: Array) -> Array:
        """Contributions (f, n) of states (g, n), to the last bit those of `_explain_row`."""
        out = np.zeros((self.n_features, states.shape[1]))
        for block in self._blocks:
            bits = block.table.shape[2]
            owners = self._owner[block.columns].reshape(-1, bits).tolist()
            for i, group in enumerate(range(block.groups.start, block.groups.stop)):
                values = block.table[:, i].take(states[group], axis=0)
                for j, feature in enumerate(owners[i]):
                    out[feature] += values[:, j]
        return out


class RawTogether:
    """Raw scores of one row by several models of the same features, in little more time than one of them takes.

    Most of a row's raw score is not looking up leaves but ranking its values and numpy's price per call. So the cuts of
    all models are put into one list and their groups into one table: a row is ranked and compared once for all.
    """

    def __init__(self, models: Sequence[CompiledTrees]) -> None:
        """Join the models.

        Raises:
            ValueError: none is given, they have different numbers of features, or too many cuts together.
        """
        sizes = sorted({m.n_features for m in models})
        if len(sizes) != 1:
            raise ValueError(f"models of {sizes} features cannot be joined: give models of the same features")
        self.n_features = sizes[0]
        parts = [m._arrays for m in models]
        self._cuts = np.unique(np.concatenate([m._cuts for m in models]))  # by feature, then by cut
        self._first_cut = np.searchsorted(self._cuts.real, np.arange(self.n_features))
        if np.diff(np.append(self._first_cut, len(self._cuts))).max() >= ABOVE:
            raise ValueError(f"{ABOVE} or more cuts of one feature cannot be joined")
        self._zeros = any(m._zeros for m in models)
        thresholds = []
        for m, a in zip(models, parts, strict=True):
            # A comparison names its cut by rank among the model's own; among all of them it has another.
            rank = np.append(np.searchsorted(self._cuts, m._cuts) - self._first_cut[a["cut_feature"]], NEVER)
            cut = m._first_cut[m._slot % self.n_features] + a["threshold"]
            thresholds.append(rank[np.where(a["threshold"] == NEVER, -1, cut)].astype(np.uint16))
        self._slot = np.concatenate([m._slot for m in models])
        self._threshold = np.concatenate(thresholds)
        self._flip = np.concatenate([a["flip"] for a in parts])
        self._leaf = np.concatenate([a["leaf"] for a in parts])
        groups = np.cumsum([0, *(len(a["bits"]) for a in parts)]).tolist()
        leaves = np.cumsum([0, *(len(a["leaf"]) for a in parts)]).tolist()
        self._order = np.concatenate([m._order + at for m, at in zip(models, groups, strict=False)])
        self._leaf_in_order = np.concatenate([m._leaf_in_order + at for m, at in zip(models, leaves, strict=False)])
        self._ends = list(pairwise(groups))

    def raw(self, row: Array) -> Array:
        """Raw score by each model, (models,), of one row (1, f): bit for bit what each of them says alone."""
        ranks = _ranks(np.asarray(row, dtype=np.float64), self._cuts, self._first_cut, self._zeros)[:, 0]
        states = np.packbits(ranks.take(self._slot) > self._threshold, bitorder="little") ^ self._flip
        found = self._leaf.take(self._leaf_in_order + states.take(self._order))
        return np.array([np.cumsum(found[start:end])[-1] for start, end in self._ends])


def _ranks(x: Array, cuts: Array, first_cut: Array, zeros: bool) -> Array:
    """Ranks (ways * f, n) uint16 of rows (n, f) among the cuts, for each way with missing values."""
    missing = np.isnan(x)
    query = np.empty(x.shape, dtype=np.complex128)
    query.real = np.arange(x.shape[1])
    query.imag = np.where(missing, 0.0, x)
    rank = cuts.searchsorted(query)
    rank -= first_cut
    out = np.empty((5 if zeros else 3, *x.T.shape), dtype=np.uint16)
    out[:] = rank.T
    out[NAN_LEFT][missing.T] = 0
    out[NAN_RIGHT][missing.T] = ABOVE
    if zeros:
        missing = np.abs(query.imag) <= ZERO
        out[ZERO_LEFT][missing.T] = 0
        out[ZERO_RIGHT][missing.T] = ABOVE
    return out.reshape(-1, len(x))


def _check(arrays: Mapping[str, Array]) -> None:
    """Raise ValueError unless every look-up these arrays can lead to stays within them."""
    for name, (dtype, dimensions, meaning) in ARRAYS.items():
        if name not in arrays:
            raise ValueError(f"{name} is missing")
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.ndim != dimensions:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; it must be {dtype} {meaning}")

    def need(ok: object, name: str, what: str) -> None:
        if not ok:
            raise ValueError(f"{name}: {what}")

    a = arrays
    need(a["size"].shape == (2,) and a["base"].shape == (1,), "size, base", "wrong length")
    protocol, f = (int(v) for v in a["size"])
    need(protocol == PROTOCOL, "size", f"protocol {protocol}; this version reads {PROTOCOL}: compile the model again")
    need(1 <= f <= 1_000_000, "size", f"{f} features; 1 to 1,000,000 are possible")
    need(math.isfinite(a["base"][0]), "base", "not finite")

    owner, cut = a["cut_feature"], a["cut"]
    need(owner.shape == cut.shape, "cut", "not as long as cut_feature")
    need((cut > -np.inf).all(), "cut", "not a number above -infinity")
    need(((owner >= 0) & (owner < f)).all(), "cut_feature", f"outside 0 .. {f - 1}")
    later = (owner[1:] > owner[:-1]) | ((owner[1:] == owner[:-1]) & (cut[1:] > cut[:-1]))
    need(later.all(), "cut", "not in ascending order")
    need(len(cut) == 0 or np.bincount(owner).max() < ABOVE, "cut", f"{ABOVE} or more cuts of one feature")

    bits = a["bits"]
    g = len(bits)
    need(g > 0, "bits", "no groups")
    for name in ("slot", "threshold", "feature"):
        need(a[name].shape == (g, BITS), name, f"shape {a[name].shape}, must be ({g}, {BITS})")
    for name in ("flip", "order"):
        need(a[name].shape == (g,), name, f"shape {a[name].shape}, must be ({g},)")
    need((bits <= BITS).all() and (bits[1:] <= bits[:-1]).all(), "bits", f"not descending from {BITS} or less")
    need(((a["slot"] >= 0) & (a["slot"] < 5 * f)).all(), "slot", f"outside 0 .. {5 * f - 1}")
    need(((a["feature"] >= 0) & (a["feature"] < f)).all(), "feature", f"outside 0 .. {f - 1}")
    unused = np.arange(BITS) >= bits[:, None]
    need((a["threshold"][unused] == NEVER).all(), "threshold", "a comparison beyond the group's bits")
    sizes = 1 << bits.astype(np.int64)
    need((a["flip"] < sizes).all(), "flip", "a bit beyond the group's bits")
    need((np.sort(a["order"]) == np.arange(g)).all(), "order", "does not name every group once")
    for name, length in (("leaf", int(sizes.sum())), ("table", int((sizes * bits).sum()))):
        need(len(a[name]) == length, name, f"{len(a[name])} values, must be {length}")
        for at in range(0, length, _CELLS):
            need(np.isfinite(a[name][at : at + _CELLS]).all(), name, "not finite")


def _read(path: Path, mapped: bool) -> Array:
    """One .npy file, read without evaluating its header: nothing but what `save` writes is taken.

    Raises:
        ValueError: it is missing, or is anything else.
    """
    try:
        with path.open("rb") as file:
            header = _HEADER.fullmatch(file.read(_HEADER_BYTES))
            if header is None:
                raise ValueError(f"{path.name}: not an array as this version writes it")
            kind, *counts = header.groups()
            shape = tuple(int(n) for n in counts if n is not None)
            try:
                dtype = np.dtype(kind.decode())
            except TypeError:
                raise ValueError(f"{path.name}: unknown type {kind.decode()}") from None
            expected, size = math.prod(shape) * dtype.itemsize + _HEADER_BYTES, path.stat().st_size
            if size != expected:
                raise ValueError(f"{path.name}: {size:,} bytes; its header says {expected:,}: copy it again")
            if math.prod(shape) == 0:
                return np.empty(shape, dtype)
            if mapped:
                return np.asarray(np.memmap(file, dtype, "r", offset=_HEADER_BYTES, shape=shape))
            return np.fromfile(file, dtype).reshape(shape)
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read ({error.strerror})") from None
