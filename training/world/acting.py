"""Acting in a simulated shop: what every action would do to every parcel, and the shop in which some were done.

The equations know what an action changes, so its potential outcomes are exact (`potential`). `act` lets the shop's year
happen again with the same chance, but for the parcels of a plan: what is not acted on comes out as it did before (the
hours at which the shop learns of it are drawn anew).

    package:<type>        protection of that package; nothing else (as `Oracle.packages`)
    carrier:<name>/<service>  taken by that carrier, at its own pickup; the promise stays (as `Oracle.carriers`)
    add_fill              at least `FILLED` of the empty space filled
    fix_label             label of grade A
    complete_documents    all papers attached
    confirm_address       address quality of at least `CONFIRMED`
    notify_customer       the customer is told in advance for sure
    pickup_point          delivered to a staffed counter: `POINT_ABSENT` on the log-odds of meeting nobody, and a chance
                          `POINT_UNCOLLECTED` that nobody ever collects it
    hold_next_pickup      collected one pickup later than it would be, and that one is never missed
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.contracts import TABLES
from features.settings import TOML
from training.world.decisions import BLOCK, Decisions, collection, draw
from training.world.equations import Causes, LineCauses, Risks, causes, risks
from training.world.oracle import PARCEL_TARGETS, Oracle
from training.world.outcomes import happen
from training.world.scenario import PACKAGE_TYPES, SERVICES
from training.world.shop import Flags, Floats, Ints, Shop
from training.world.tables import block_tables
from training.world.truth import line_ids, parcel_ids

T = TypeVar("T", Decisions, Causes)

FILLED = 0.9
"""Share of the empty space that is filled by `add_fill`."""

CONFIRMED = 0.95
"""Address quality that confirming reaches."""

SIMPLE = (
    "add_fill",
    "fix_label",
    "complete_documents",
    "confirm_address",
    "notify_customer",
    "pickup_point",
    "hold_next_pickup",
)
"""Actions that need no further word."""


@dataclass(frozen=True)
class State:
    """Parcels as they are after an action (or several, each parcel its own).

    Attributes:
        decisions: what the tables show of them.
        causes: what the equations read.
        point: they go to a pickup point.
        service: of each parcel, position in `SERVICES`.
        possible: the action can be done: the carrier offers the service and serves the region.
    """

    decisions: Decisions
    causes: Causes
    point: Flags
    service: Ints
    possible: Flags


@dataclass(frozen=True)
class Potential:
    """True probabilities with each of K actions.

    Attributes:
        actions: their keys; None is doing nothing.
        parcel_id: (n,), in the order of the `parcels` table.
        line_id, line_parcel: (l,), the line's parcel as a position.
        probability: per target (n, K), or (l, K) for `returned`; NaN where the action is not possible.
    """

    actions: tuple[str | None, ...]
    parcel_id: list[str]
    line_id: list[str]
    line_parcel: Ints
    probability: Mapping[str, Floats]


class Acting:
    """A world whose parcels can be acted on.

    Args:
        oracle: the world.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.shop, self.size = oracle.shop, oracle.size
        self._drawn: list[tuple[Decisions, Causes, LineCauses, int]] = []

    def actions(self) -> list[str]:
        """Every action there is in this world."""
        own = [f"carrier:{c.name}/{s}" for c in self.shop.scenario.carriers.carriers for s in c.services]
        return [*(f"package:{name}" for name in PACKAGE_TYPES), *own, *SIMPLE]

    def _blocks(self) -> Iterator[tuple[int, Decisions, Causes, LineCauses, int]]:
        if not self._drawn:
            for block in range(-(-self.size // BLOCK)):
                d = draw(self.shop, block)
                self._drawn.append((d, *causes(self.shop, d), min(BLOCK, self.size - d.first)))
        for block, drawn in enumerate(self._drawn):
            yield (block, *drawn)

    def potential(self, actions: Sequence[str | None]) -> Potential:
        """True probabilities of every parcel and line with each action.

        Raises:
            ValueError: an action this world does not have.
        """
        found: dict[str, list[Floats]] = {t: [] for t in (*PARCEL_TARGETS, "returned")}
        parcels, lines_, owners, first = [], [], [], 0
        for _, d, c, lines, n in self._blocks():
            ids = line_ids(d, n)
            columns: dict[str, list[Floats]] = {t: [] for t in found}
            for action in actions:
                state = after(self.shop, d, c, action)
                now = risks(self.shop.scenario, state.causes, lines, state.point)
                for target in PARCEL_TARGETS:
                    columns[target].append(np.where(state.possible, getattr(now, target), np.nan)[:n])
                columns["returned"].append(np.where(state.possible[lines.parcel], now.returned, np.nan)[: len(ids)])
            for target, each in columns.items():
                found[target].append(np.column_stack(each))
            parcels += parcel_ids(d, n)
            lines_ += ids
            owners.append(lines.parcel[: len(ids)] + first)
            first += n
        stacked = {t: np.concatenate(parts) for t, parts in found.items()}
        return Potential(tuple(actions), parcels, lines_, np.concatenate(owners), stacked)

    def act(self, world: str | Path, out: str | Path, done: Mapping[str, str], decisions: pd.DataFrame) -> Path:
        """Write the dataset of this world in which some parcels were acted on; chance is the same as in the world.

        Args:
            world: folder of the world, for what no action changes.
            out: folder to write; one that is there is replaced.
            done: action by parcel_id; parcels that are not named are left as they were.
            decisions: rows of the table `decisions`; written if there are any.

        Returns:
            `out`. It holds no truth: that of the world no longer is this one's.

        Raises:
            ValueError: an action this world does not have, or one that is not possible for its parcel.
        """
        world, out = Path(world), Path(out)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name in (TOML, "listings.parquet", "orders.parquet", "order_lines.parquet"):
            shutil.copyfile(world / name, out / name)
        parts: dict[str, list[pa.Table]] = {name: [] for name in ("parcels", "events", "returns")}
        for block, d, c, lines, n in self._blocks():
            state = self._mixed(d, c, n, done)
            now: Risks = risks(self.shop.scenario, state.causes, lines, state.point)
            what = happen(self.shop, state.decisions, now, block)
            made = block_tables(self.shop, state.decisions, what, block, n)
            at = made["parcels"].schema.get_field_index("service")
            service = pa.array([SERVICES[s] for s in state.service[:n].tolist()], pa.string())
            made["parcels"] = made["parcels"].set_column(at, "service", service)
            for name, tables in parts.items():
                tables.append(made[name])
        for name, tables in parts.items():
            pq.write_table(pa.concat_tables(tables), out / f"{name}.parquet", compression="zstd")
        if len(decisions):
            decisions[[c for c in TABLES["decisions"].names if c in decisions]].to_parquet(
                out / "decisions.parquet", index=False
            )
        return out

    def _mixed(self, d: Decisions, c: Causes, n: int, done: Mapping[str, str]) -> State:
        """The block with each parcel's own action done."""
        plan = np.array([done.get(i, "") for i in parcel_ids(d, n)] + [""] * (BLOCK - n), dtype=object)
        state = after(self.shop, d, c, None)
        for action in sorted(set(plan.tolist()) - {""}):
            other, mine = after(self.shop, d, c, action), plan == action
            if not other.possible[mine].all():
                first = d.first + int(np.flatnonzero(mine & ~other.possible)[0])
                raise ValueError(f"P{first:09d}: {action} is not possible: the carrier does not serve that")
            state = State(
                _merged(state.decisions, other.decisions, mine, PACKED),
                _merged(state.causes, other.causes, mine, tuple(f.name for f in fields(Causes))),
                np.where(mine, other.point, state.point),
                np.where(mine, other.service, state.service),
                state.possible,
            )
        return state


PACKED = (
    "carrier",
    "cutoff",
    "handover_day",
    "slack_minutes",
    "level",
    "void_fill",
    "grade",
    "documents",
    "address",
)
"""What an action may change of a parcel as packed."""


def after(shop: Shop, d: Decisions, c: Causes, action: str | None) -> State:
    """A block of parcels with an action done to all of them, or with none.

    Args:
        shop: the shop.
        d: the parcels as they were packed.
        c: their causes.
        action: its key; None for nothing.

    Raises:
        ValueError: no such action in this shop.
    """
    n = len(d.packed)
    kind, _, what = (action or "").partition(":")
    other, own = d, d.service[d.order_row]
    possible, point = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    if action is None:
        return State(d, c, point, own, possible)
    if kind == "package" and what in PACKAGE_TYPES:
        other = replace(d, level=np.full(n, PACKAGE_TYPES.index(what)))
    elif kind == "carrier":
        name, _, service = what.partition("/")
        names = [x.name for x in shop.scenario.carriers.carriers]
        if name not in names or service not in SERVICES:
            raise ValueError(f"{action!r} is no action of this shop: carriers are {', '.join(names)}")
        carrier, own = np.full(n, names.index(name)), np.full(n, SERVICES.index(service))
        region = shop.lanes.zone_region[d.zone[d.order_row]]
        possible = shop.lanes.preference[own, region][np.arange(n), carrier] > 0
        cutoff, day, slack = collection(shop, d.node, carrier, d.packed, d.planned)
        service_of_order = np.full(len(d.service), SERVICES.index(service))
        other = replace(
            d, carrier=carrier, service=service_of_order, cutoff=cutoff, handover_day=day, slack_minutes=slack
        )
    elif kind == "add_fill":
        other = replace(d, void_fill=np.maximum(d.void_fill, FILLED))
    elif kind == "fix_label":
        other = replace(d, grade=np.zeros(n, dtype=np.int64))
    elif kind == "complete_documents":
        other = replace(d, documents=np.ones(n, dtype=bool))
    elif kind == "confirm_address":
        other = replace(d, address=np.maximum(d.address, CONFIRMED))
    elif kind == "hold_next_pickup":
        other = replace(d, handover_day=d.handover_day + 1, slack_minutes=d.slack_minutes + 24 * 60.0)
    elif kind == "pickup_point":
        point = np.ones(n, dtype=bool)
    elif kind == "notify_customer":
        return State(d, replace(c, notifies=np.ones(n)), point, own, possible)
    else:
        raise ValueError(f"{action!r} is no action: there are package:<type>, carrier:<name>/<service>, {SIMPLE}")
    return State(replace(other, service=d.service), causes(shop, other)[0], point, own, possible)


def _merged(one: T, other: T, mine: Flags, names: tuple[str, ...]) -> T:
    """`one`, but for some rows of some columns, which are those of `other`."""
    return replace(one, **{name: np.where(mine, getattr(other, name), getattr(one, name)) for name in names})
