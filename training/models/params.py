"""What of a model may be set by hand or by `doorstep tune`, within which bounds, and the file that says it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.models import MODELS, PARAMS, ModelSpec

STEPS = 16.0
"""Trees times learning rate that are tried at most: who learns in smaller steps may take more of them."""


@dataclass(frozen=True)
class Knob:
    """One thing that may be set.

    Attributes:
        name: key in the file.
        low, high: bounds, both allowed.
        usual: what it is where nothing is said.
        whole: it takes whole numbers.
        log: equal ratios are equal steps.
        words: what it does.
    """

    name: str
    low: float
    high: float
    usual: float
    words: str
    whole: bool = False
    log: bool = True

    def check(self, value: Any, where: str) -> float | int:
        """A value of a file.

        Raises:
            ParamsError: no number, or out of bounds.
        """
        kind = "a whole number" if self.whole else "a number"
        wanted = f"{where}: {value!r} given; {kind} from {self.low:g} to {self.high:g} is allowed"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ParamsError(wanted)
        if not self.low <= value <= self.high or (self.whole and value != int(value)):
            raise ParamsError(wanted)
        return int(value) if self.whole else float(value)


_SPEC = ModelSpec("")

KNOBS: dict[str, Knob] = {
    k.name: k
    for k in (
        Knob("learning_rate", 0.01, 0.1, PARAMS["learning_rate"], "how much of each tree is taken"),
        Knob("max_leaves", 4, 31, _SPEC.max_leaves, "most leaves of a tree", whole=True),
        Knob("max_depth", 2, 8, PARAMS["max_depth"], "most conditions to a leaf", whole=True, log=False),
        Knob("tree_positives", 5, 100, _SPEC.tree_positives, "positives for each leaf of a tree: more make it smaller"),
        Knob("leaf_positives", 1, 30, _SPEC.leaf_positives, "positives to be expected in a leaf, at least"),
        Knob("lambda_l2", 0.1, 100, PARAMS["lambda_l2"], "how strongly leaves are drawn to 0"),
        Knob("feature_fraction", 0.2, 1, PARAMS["feature_fraction"], "share of the features a tree sees", log=False),
        Knob("bagging_fraction", 0.5, 1, PARAMS["bagging_fraction"], "share of the rows a tree sees", log=False),
        Knob("max_bin", 15, 255, PARAMS["max_bin"], "values of a feature that are told apart", whole=True),
    )
}
"""Sizes are set in positives, not in rows: what is right for a fold is then right for the whole as well."""


class ParamsError(ValueError):
    """A file of parameters that cannot be used; the message names the key, what was given and what is allowed."""


@dataclass(frozen=True)
class Params:
    """Parameters per target; what is not named stays as it is.

    Attributes:
        targets: `{target: {knob: value}}`.
        source: where they are from, for people.
        seen_until: UTC, what was decided from then on had no say in the choice; None if nobody says.
    """

    targets: Mapping[str, Mapping[str, float | int]]
    source: str = ""
    seen_until: str | None = None

    def spec(self, target: str) -> ModelSpec:
        """How a target is modelled with them."""
        return spec_of(target, self.targets.get(target, {}))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `metrics.json`."""
        return {
            "source": self.source,
            "seen_until": self.seen_until,
            "targets": {n: dict(v) for n, v in self.targets.items()},
        }

    @staticmethod
    def read(path: str | Path) -> Params:
        """Read a file, as `doorstep tune` writes it or by hand: a table `[targets.NAME]` for each target.

        Raises:
            ParamsError: it is no such file.
        """
        path = Path(path)
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ParamsError(f"{path}: no such file; `doorstep tune DATASET` writes one") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ParamsError(f"{path}: is no TOML: {error}") from None
        _only(found, ("targets", "tuned"), str(path))
        targets = found.get("targets", {})
        tuned = found.get("tuned", {})
        if not isinstance(targets, dict) or not isinstance(tuned, dict):
            raise ParamsError(f"{path}: targets and tuned must be tables, like [targets.late]")
        _only(targets, tuple(MODELS), f"{path}: targets")
        read = {}
        for name, values in targets.items():
            where = f"{path}: targets.{name}"
            if not isinstance(values, dict):
                raise ParamsError(f"{where}: {values!r} given; it must be a table, [targets.{name}]")
            _only(values, tuple(KNOBS), where)
            read[name] = {key: KNOBS[key].check(value, f"{where}.{key}") for key, value in values.items()}
        seen = tuned.get("seen_until")
        if seen is not None and not isinstance(seen, str):
            raise ParamsError(f'{path}: tuned.seen_until: {seen!r} given; it must be text, like "2025-05-01T00:00Z"')
        return Params(read, str(path), seen)


def spec_of(target: str, values: Mapping[str, float | int]) -> ModelSpec:
    """How a target is modelled with some knobs turned; nothing else changes.

    Args:
        target: its name.
        values: by knob, within bounds.
    """
    own = ("max_leaves", "tree_positives", "leaf_positives")
    sizes: dict[str, Any] = {k: v for k, v in values.items() if k in own}
    spec = replace(MODELS[target], **sizes)
    spec = replace(spec, params={**spec.params, **{k: v for k, v in values.items() if k not in own}})
    if "learning_rate" in values:
        spec = replace(spec, max_trees=max(200, round(STEPS / values["learning_rate"])))
    return spec


def _only(found: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in allowed:
            raise ParamsError(f"{where}: {key!r} is not known; use {', '.join(allowed)}")
