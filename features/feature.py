"""What a feature is: one function, one column, with the team that owns it and the words to say it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from features.history import STRENGTH
from features.vocabulary import TARGETS, TEAMS

if TYPE_CHECKING:
    from features.arrays import Array
    from features.rows import Level

Compute = Callable[["Level"], "Array"]


@dataclass(frozen=True)
class Show:
    """How a value is said; in parts, so that another language can put them together otherwise.

    Attributes:
        figure: from the value to its digits, with a comma for thousands and a point, or to its name (`C`, `Monday`).
        unit: what is said with it: a unit of measure, `percent`, or `about` for a rounded number; empty: nothing.
    """

    figure: Callable[[float], str]
    unit: str = ""

    def __call__(self, value: float) -> str:
        """The value in English."""
        figure, unit = self.figure(value), self.unit
        if not unit:
            return figure
        return f"about {figure}" if unit == "about" else f"{figure} {'%' if unit == 'percent' else unit}"


def digits(value: float) -> str:
    """A number in a person's words: three significant digits, no trailing zeros."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


number = Show(digits)
"""Numbers without a unit."""

percent = Show(lambda value: f"{100 * value:.1f}", "percent")
"""Shares as percentages with one decimal."""

yes_no = Show(lambda value: "yes" if value >= 0.5 else "no")
"""Flags."""


def unit(name: str, scale: float = 1.0) -> Show:
    """Numbers followed by a unit, e.g. `unit("kg", 1000)` for grams said in kilograms."""
    return Show(lambda value: digits(value / scale), name)


def one_of(*names: str) -> Show:
    """Grades coded 0, 1, 2 ... by their names."""
    return Show(lambda value: names[min(max(round(value), 0), len(names) - 1)])


@dataclass(frozen=True)
class Feature:
    """One column of the matrix.

    Attributes:
        name: column name.
        level: `parcel` or `line`, the rows it is computed on. A parcel's value holds for each of its lines.
        team: the owner team whose points of risk it counts to.
        text: what it is, as it stands before a value: "Label grade" C.
        help: one sentence of documentation.
        compute: from a level's rows to (n,) float64, NaN where it cannot be known.
        lever: the team can change it before the parcel leaves.
        show: how its value is said.
        aggregate: how a line's feature is summarised for a parcel (`max`, `sum`, `mean`); None: for lines only.
        signs: per target, +1 or -1 where a higher value can only raise or only lower the risk.
        about: the outcome whose past it tells; empty for what the row says itself.
        entity: what that past is counted by (`features.history.ENTITIES`).
    """

    name: str
    level: str
    team: str
    text: str
    help: str
    compute: Compute
    lever: bool = False
    show: Show = number
    aggregate: str | None = None
    signs: Mapping[str, int] = field(default_factory=dict)
    about: str = ""
    entity: str = ""

    def __post_init__(self) -> None:
        """Refuse words that are not in the vocabulary."""
        if self.team not in TEAMS:
            raise ValueError(f"feature {self.name}: team is {self.team!r}, it must be one of {', '.join(TEAMS)}")
        if self.level not in ("parcel", "line"):
            raise ValueError(f"feature {self.name}: level is {self.level!r}, it must be parcel or line")
        if self.aggregate not in (None, "max", "sum", "mean") or (self.aggregate and self.level == "parcel"):
            raise ValueError(
                f"feature {self.name}: aggregate {self.aggregate!r}: a line's feature takes max, sum or mean"
            )
        unknown = set(self.signs) - set(TARGETS)
        if unknown:
            raise ValueError(f"feature {self.name}: signs for {sorted(unknown)}, targets are {', '.join(TARGETS)}")

    def say(self, value: float) -> str:
        """The feature and a value of it: `Label grade C`."""
        return f"{self.text} {self.words(value)}"

    def words(self, value: float) -> str:
        """A value in a person's words; nobody says minus zero."""
        return "not known" if value != value else self.show(value + 0.0)


class Theme:
    """Collects the features of one theme; each module of `features.definitions` has one."""

    def __init__(self, team: str) -> None:
        self.team = team
        self.features: list[Feature] = []

    def __call__(
        self,
        text: str,
        *,
        level: str = "parcel",
        team: str | None = None,
        lever: bool = False,
        show: Show = number,
        aggregate: str | None = None,
        signs: Mapping[str, int] | None = None,
    ) -> Callable[[Compute], Compute]:
        """Register the decorated function as the feature of its name; its docstring is the feature's help."""

        def register(compute: Compute) -> Compute:
            help = " ".join((compute.__doc__ or "").split())
            self.features.append(
                Feature(
                    compute.__name__, level, team or self.team, text, help, compute, lever, show, aggregate, signs or {}
                )
            )
            return compute

        return register

    def rate(
        self,
        outcome: str,
        entity: str,
        text: str,
        *,
        window: int | None = None,
        level: str = "parcel",
        aggregate: str | None = None,
        strength: float = STRENGTH,
    ) -> None:
        """Register the share of an outcome among an entity's mature units, over `window` days or all time.

        Where little is known it is drawn towards the parent entity's share, see `features.history.Lookup.rate`. A
        higher own share can only raise the risk of the same outcome.
        """

        def compute(rows: Level) -> Array:
            return rows.lookup(entity).rate(outcome, window, strength)

        days = f"last {window} days" if window else "all time"
        self.features.append(
            Feature(
                f"{outcome}_rate_{entity}{f'_{window}d' if window else ''}",
                level,
                self.team,
                f"{text}, {days}:",
                f"Share of `{outcome}` among mature units of the same {entity}, {days}, smoothed towards its parent.",
                compute,
                show=percent,
                aggregate=aggregate,
                signs={outcome: 1} if outcome in TARGETS else {},
                about=outcome,
                entity=entity,
            )
        )

    def volume(
        self, outcome: str, entity: str, text: str, *, level: str = "parcel", aggregate: str | None = None
    ) -> None:
        """Register how many mature units an entity's shares stand on (log10 of 1 + n): what is new shows here."""

        def compute(rows: Level) -> Array:
            return np.log10(1 + rows.lookup(entity).count(f"n:{outcome}"))

        self.features.append(
            Feature(
                f"{outcome}_volume_{entity}",
                level,
                self.team,
                text,
                f"How many mature units of the same {entity} are known (log10 of 1 + n), as counted for `{outcome}`.",
                compute,
                show=Show(lambda value: digits(10**value - 1), "about"),
                aggregate=aggregate,
                about=outcome,
                entity=entity,
            )
        )
