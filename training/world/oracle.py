"""The truth behind a simulated shop. For tests and benchmarks only: nothing that trains or serves may import this.

`Oracle` draws the shop once more from its seed and scenario and asks the structural equations, so it knows of every
parcel and line:

    parcels, lines   the true probability of every target when the parcel is packed, given all its causes
    packages         the same for damage, had the very same parcel been packed in each of the packages
    carriers         the same for every target, had each of the carriers taken it
    listings         the same for returns, had the listing been that of a comparable product
    teams            how much of the probability is whose: Shapley values over the owner teams of the causes
    returns          the true reason behind each return
    reachable        the AUC and log loss of who knows the true probabilities: nothing honest beats them

Some causes leave no trace in the tables but through history (a customer's habit to be out, how rough a lane is), so no
model reaches these probabilities entirely.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from features.vocabulary import TEAMS
from training.world.decisions import BLOCK, Decisions, collection, draw
from training.world.equations import OWNERS, Causes, LineCauses, Risks, causes, risks
from training.world.outcomes import happen
from training.world.scenario import PACKAGE_TYPES, RETURN_REASONS, Scenario
from training.world.scenarios import read
from training.world.shop import Floats, Ints, open_shop
from training.world.truth import SCENARIO, TRUTH, WORLD, line_ids, line_truth, parcel_ids, parcel_truth, return_truth

T = TypeVar("T", Causes, LineCauses)

PARCEL_TARGETS: tuple[str, ...] = ("late", "failed_attempt", "damaged", "undelivered")
TARGETS: tuple[str, ...] = (*PARCEL_TARGETS, "returned")


class Oracle:
    """All there is to know of one world.

    Args:
        parcels: how many parcels the world was made with.
        seed: its seed.
        scenario: its scenario; default the plain one.

    Raises:
        ValueError: `parcels` is below 1.
    """

    def __init__(self, parcels: int, seed: int = 0, scenario: Scenario | None = None) -> None:
        if parcels < 1:
            raise ValueError(f"parcels is {parcels}, must be at least 1: give the number the world was made with")
        self.size, self.shop = parcels, open_shop(seed, scenario)
        self._known: dict[str, tuple[Causes, LineCauses, list[str]]] = {}

    @staticmethod
    def open(world: str | Path) -> Oracle:
        """The oracle of a world on disk.

        Raises:
            FileNotFoundError: the folder holds no truth.
            ValueError: it was made by a version whose equations were others.
        """
        folder = Path(world) / TRUTH
        if not (folder / WORLD).is_file():
            raise FileNotFoundError(f"{folder} is not there: only what `doorstep world` has made has a truth")
        made = json.loads((folder / WORLD).read_text(encoding="utf-8"))
        oracle = Oracle(made["parcels"], made["seed"], read(folder / SCENARIO))
        d, c, lines, n = next(oracle._blocks())
        now = oracle._risks(c, lines)
        for name, ours in (("parcels", parcel_truth(d, now, n)), ("lines", line_truth(d, now, n))):
            batches = pq.ParquetFile(folder / f"{name}.parquet").iter_batches(len(ours), columns=list(ours.columns))
            theirs = next(batches).to_pandas().astype(ours.dtypes)
            numbers = list(ours.select_dtypes("number"))
            same = ours.iloc[:, 0].equals(theirs.iloc[:, 0])
            # Another machine's mathematics may differ in the last digits.
            if not same or not np.allclose(ours[numbers], theirs[numbers], rtol=1e-9, atol=1e-12):
                raise ValueError(
                    f"{folder} was made by another version of Doorstep: make the shop again with `doorstep world`"
                )
        return oracle

    def parcels(self) -> pd.DataFrame:
        """One row per parcel, in the order of the `parcels` table: parcel_id and the probability of each target."""
        return pd.concat(
            [parcel_truth(d, self._risks(c, lines), n) for d, c, lines, n in self._blocks()], ignore_index=True
        )

    def lines(self) -> pd.DataFrame:
        """One row per line, in the order of the `order_lines` table: line_id, parcel_id, returned (given that the
        parcel is delivered), and one column per return reason; the reasons sum to `returned`."""
        return pd.concat(
            [line_truth(d, self._risks(c, lines), n) for d, c, lines, n in self._blocks()], ignore_index=True
        )

    def causes(self, unit: str) -> pd.DataFrame:
        """What the equations read of every parcel, or of every line and its parcel: a column per cause, indexed by id.

        Raises:
            ValueError: `unit` is neither `parcel` nor `line`.
        """
        if unit not in ("parcel", "line"):
            raise ValueError(f"{unit!r} is no unit; there are parcel and line")
        c, lines, ids = self._units(unit)
        found: list[Causes | LineCauses] = [c, lines] if unit == "line" else [c]
        return pd.DataFrame(
            {f.name: getattr(x, f.name) for x in found for f in fields(x) if f.name in OWNERS}, index=pd.Index(ids)
        )

    def packages(self) -> pd.DataFrame:
        """Potential outcomes of packing: parcel_id, `package` as it was, and P(damaged) in each package type.

        Only the protection changes; goods, void fill, weight, carrier and everything else stay.
        """
        parts = []
        for d, c, lines, n in self._blocks():
            in_each = {
                name: self._risks(replace(c, protection=np.full(BLOCK, float(level))), lines).damaged[:n]
                for level, name in enumerate(PACKAGE_TYPES)
            }
            used = np.array(PACKAGE_TYPES, dtype=object)[d.level[:n]]
            parts.append(pd.DataFrame({"parcel_id": parcel_ids(d, n), "package": used, **in_each}))
        return pd.concat(parts, ignore_index=True)

    def carriers(self, target: str, handed_over_as_it_was: bool = False) -> pd.DataFrame:
        """Potential outcomes of the choice of carrier: parcel_id, `carrier` as it was, P(target) with each carrier.

        The pickup follows the carrier, as carriers collect at their own times; the promise stays. NaN where a carrier
        does not offer the service, or does not serve the region.

        Args:
            target: name of a target of parcels.
            handed_over_as_it_was: the pickup stays the actual carrier's: what the carriers do with the same parcel.

        Raises:
            ValueError: no target of parcels.
        """
        if target not in PARCEL_TARGETS:
            raise ValueError(f"{target!r} is no target of parcels; there are {', '.join(PARCEL_TARGETS)}")
        names = [c.name for c in self.shop.scenario.carriers.carriers]
        parts = []
        for d, _, _, n in self._blocks():
            region = self.shop.lanes.zone_region[d.zone[d.order_row]]
            offered = self.shop.lanes.preference[d.service[d.order_row], region] > 0
            with_each = {}
            for k, name in enumerate(names):
                other = replace(d, carrier=np.full(BLOCK, k))
                if not handed_over_as_it_was:
                    cutoff, day, slack = collection(self.shop, d.node, other.carrier, d.packed, d.planned)
                    other = replace(other, cutoff=cutoff, handover_day=day, slack_minutes=slack)
                probability = getattr(self._risks(*causes(self.shop, other)), target)
                with_each[name] = np.where(offered[:, k], probability, np.nan)[:n]
            used = np.array(names, dtype=object)[d.carrier[:n]]
            parts.append(pd.DataFrame({"parcel_id": parcel_ids(d, n), "carrier": used, **with_each}))
        return pd.concat(parts, ignore_index=True)

    def listings(self, references: int = 8, seed: int = 0) -> pd.DataFrame:
        """Returns by reason, against those of comparable products.

        The same line, sold to the same customer in the same parcel, gets the size, accuracy and make of products of
        other brands in its category, as they would be without any listing's fault.

        Args:
            references: how many other lines each is held against.
            seed: of their draw.

        Returns:
            One row per line, in the order of the `order_lines` table: line_id, the chance of a return for each reason,
            `usual:` and the reason, were it a comparable product, and `planted` (whether a listing's fault meets it).
        """
        without = tuple(f for f in self.shop.scenario.faults if f.team != "listing")
        clean_shop = replace(self.shop, scenario=replace(self.shop.scenario, faults=without))
        named = ("size", "mismatch", "defect")
        blocks, own, clean, category, brand, ids = [], [], [], [], [], []
        for d, c, lines, n in self._blocks():
            k = int(np.searchsorted(lines.parcel, n))
            blocks.append((_rows(c, np.arange(n)), _rows(lines, np.arange(k))))
            own.append(np.stack([getattr(lines, name)[:k] for name in named]))
            clean.append(np.stack([getattr(causes(clean_shop, d)[1], name)[:k] for name in named]))
            category.append(self.shop.products.category[d.sku[:k]])
            brand.append(self.shop.products.brand[d.sku[:k]])
            ids += line_ids(d, n)
        now, every = np.concatenate(own, axis=1), np.concatenate(clean, axis=1)
        kind, label = np.concatenate(category), np.concatenate(brand)
        ends = np.cumsum([0, *(x.shape[1] for x in own)])

        def reasons(terms: Floats) -> Floats:
            parts = [
                self._risks(c, replace(lines, **dict(zip(named, terms[:, a:b], strict=True)))).reasons
                for (c, lines), a, b in zip(blocks, ends[:-1], ends[1:], strict=True)
            ]
            return np.concatenate(parts)

        rng = np.random.default_rng(seed)
        usual = np.zeros((len(ids), len(RETURN_REASONS)))
        for _ in range(references):
            drawn = np.empty_like(every)
            for of_kind in np.unique(kind):
                here = kind == of_kind
                for of_brand in np.unique(label[here]):
                    mine = here & (label == of_brand)
                    others = np.flatnonzero(here & ~mine)
                    pool = others if len(others) else np.flatnonzero(mine)
                    drawn[:, mine] = every[:, rng.choice(pool, int(mine.sum()))]
            usual += reasons(drawn) / references
        return pd.DataFrame(
            {
                "line_id": ids,
                **dict(zip(RETURN_REASONS, reasons(now).T, strict=True)),
                **{f"usual:{r}": usual[:, i] for i, r in enumerate(RETURN_REASONS)},
                "planted": (now != every).any(axis=0),
            }
        )

    def teams(self, target: str, ids: Sequence[str], references: int = 16, seed: int = 0) -> pd.DataFrame:
        """How much of each unit's true probability is whose, against what is usual.

        Shapley values over the owner teams: a coalition's worth is the true probability when its teams' causes are the
        unit's own and the other teams' are those of a reference, averaged over references drawn from the same world
        (Lundberg and Lee, arXiv 1705.07874, with the background breaking the dependence between teams). They add up
        to the unit's probability less the references' mean.

        Args:
            target: name of a target.
            ids: parcel or line ids of this world.
            references: how many references each unit is held against.
            seed: of the draw of references.

        Returns:
            Indexed by id, a column per team of the vocabulary, and `base`, the mean of the references.

        Raises:
            ValueError: an unknown target, or an id that is not in this world.
        """
        if target not in TARGETS:
            raise ValueError(f"{target!r} is no target; there are {', '.join(TARGETS)}")
        c, lines, known = self._units("line" if target == "returned" else "parcel")
        rows = pd.Index(known).get_indexer(pd.Index(ids))
        if (rows < 0).any():
            raise ValueError(f"{ids[int(np.argmin(rows))]!r} is no unit of this world")
        rng = np.random.default_rng(seed)
        n, k = len(rows), len(TEAMS)
        worth = np.zeros((2**k, n))
        for _ in range(references):
            other = rng.integers(len(known), size=n)
            mine, theirs = _take(c, lines, rows), _take(c, lines, other)
            for number, inside in enumerate(itertools.product((False, True), repeat=k)):
                team = {t for t, is_in in zip(TEAMS, inside, strict=True) if is_in}
                mixed = self._risks(_mix(mine[0], theirs[0], team), _mix(mine[1], theirs[1], team))
                worth[number] += getattr(mixed, target) / references
        return pd.DataFrame(_shapley(worth, k), index=pd.Index(ids), columns=list(TEAMS)).assign(base=worth[0])

    def returns(self) -> pd.DataFrame:
        """What came back, whether or not it is known yet: line_id, true_reason."""
        parts = []
        for block, (d, c, lines, n) in enumerate(self._blocks()):
            parts.append(return_truth(d, happen(self.shop, d, self._risks(c, lines), block), n))
        return pd.concat(parts, ignore_index=True)

    def reachable(self) -> pd.DataFrame:
        """What the truth reaches, in expectation over what happens: per target its rate, AUC, log loss, and the log
        loss of the rate alone."""
        parcels, lines = self.parcels(), self.lines()
        rows = {}
        for target in TARGETS:
            p = (lines if target == "returned" else parcels)[target].to_numpy()
            rate = float(p.mean())
            rows[target] = {
                "rate": rate,
                "auc": reachable_auc(p),
                "log_loss": float(_entropy(p).mean()),
                "base_log_loss": float(_entropy(np.array([rate]))[0]),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("target")

    def _risks(self, c: Causes, lines: LineCauses) -> Risks:
        return risks(self.shop.scenario, c, lines)

    def _blocks(self) -> Iterator[tuple[Decisions, Causes, LineCauses, int]]:
        for block in range(-(-self.size // BLOCK)):
            d = draw(self.shop, block)
            yield d, *causes(self.shop, d), min(BLOCK, self.size - d.first)

    def _units(self, unit: str) -> tuple[Causes, LineCauses, list[str]]:
        """Causes and ids of every parcel, or of every line; kept, as drawing a large shop again takes its time."""
        if unit not in self._known:
            parts = list(self._blocks())
            c = _join([c for _, c, _, _ in parts])
            if unit == "parcel":
                ids = [i for d, _, _, n in parts for i in parcel_ids(d, n)]
                self._known[unit] = _rows(c, np.arange(self.size)), _rows(parts[0][2], np.arange(0)), ids
            else:
                lines = _join([replace(x, parcel=x.parcel + at * BLOCK) for at, (_, _, x, _) in enumerate(parts)])
                lines = _rows(lines, np.flatnonzero(lines.parcel < self.size))
                ids = [i for d, _, _, n in parts for i in line_ids(d, n)]
                # Each line gets a parcel of its own, so that two of one parcel can be held against two references.
                self._known[unit] = _rows(c, lines.parcel), replace(lines, parcel=np.arange(len(ids))), ids
        return self._known[unit]


def reachable_auc(probability: Floats) -> float:
    """The AUC to expect of a model that knows the true probabilities: nothing honest can beat it.

    The chance that, of a positive and a negative unit, the positive has the higher probability, when each unit is
    positive with its own probability; ties count half.

    Args:
        probability: true probabilities, shape (n,), not all of them 0 or all 1.
    """
    values, place = np.unique(np.asarray(probability, dtype=np.float64), return_inverse=True)
    positive = np.bincount(place, weights=values[place])
    negative = np.bincount(place, weights=1.0 - values[place])
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2.0)).sum() / (positive.sum() * negative.sum()))


def _entropy(p: Floats) -> Floats:
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return np.asarray(-(p * np.log(p) + (1 - p) * np.log1p(-p)))


def _rows(c: T, at: Ints) -> T:
    return type(c)(**{f.name: getattr(c, f.name)[at] for f in fields(c)})


def _join(parts: Sequence[T]) -> T:
    kind = type(parts[0])
    return kind(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)})


def _take(c: Causes, lines: LineCauses, at: Ints) -> tuple[Causes, LineCauses]:
    return _rows(c, at), replace(_rows(lines, at), parcel=np.arange(len(at))) if len(lines.parcel) else lines


def _mix(mine: T, theirs: T, teams: set[str]) -> T:
    """The causes of some teams are mine, all others theirs."""
    return type(mine)(
        **{f.name: getattr(mine if OWNERS.get(f.name, "") in teams else theirs, f.name) for f in fields(mine)}
    )


def _shapley(worth: Floats, players: int) -> Floats:
    """Shapley values (n, players) of the worth (2**players, n) of coalitions, by bits from the left."""
    n = worth.shape[1]
    out = np.zeros((n, players))
    for number in range(2**players):
        inside = [bool(number >> (players - 1 - p) & 1) for p in range(players)]
        size = sum(inside)
        for p in range(players):
            if inside[p]:
                weight = math.factorial(size - 1) * math.factorial(players - size) / math.factorial(players)
                out[:, p] += weight * (worth[number] - worth[number & ~(1 << (players - 1 - p))])
    return out
