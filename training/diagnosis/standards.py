"""The shop's own standards for its carriers, as a file: what share may fail at most, whatever the parcels were like.

[undelivered]
most = 0.03

[late]
most = 0.05                 # 95 % on time
carriers = { corvus = 0.1 } # another limit for some
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

from training.diagnosis.parcels import TARGETS

SURE = 0.95
"""Probability from which a standard is said to be passed or failed."""


@dataclass(frozen=True)
class Standard:
    """What share of a target may fail: `most`, and another limit for some carriers."""

    most: float
    carriers: Mapping[str, float] = field(default_factory=dict)


def read(path: Path) -> dict[str, Standard]:
    """Read a file of standards.

    Raises:
        ValueError: names what is wrong in it, what is allowed, and where.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    out: dict[str, Standard] = {}
    for target, said in given.items():
        if target not in TARGETS:
            raise ValueError(f"{path}: {target} is no target of parcels; there are {', '.join(TARGETS)}")
        if not isinstance(said, dict) or "most" not in said:
            raise ValueError(f"{path}: [{target}] has no `most`: the share that may fail, such as most = 0.03")
        unknown = sorted(set(said) - {"most", "carriers"})
        if unknown:
            raise ValueError(f"{path}: {target}.{unknown[0]} means nothing here; there are most, carriers")
        carriers = said.get("carriers", {})
        if not isinstance(carriers, dict):
            raise ValueError(f"{path}: {target}.carriers is {carriers!r}; give {{ name = share }}")
        limits = {f"{target}.most": said["most"], **{f"{target}.carriers.{c}": v for c, v in carriers.items()}}
        for place, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ValueError(f"{path}: {place} is {value!r}; it is a share above 0 and below 1, such as 0.03")
        out[target] = Standard(float(said["most"]), {c: float(v) for c, v in carriers.items()})
    return out


def judged(table: pd.DataFrame, standards: Mapping[str, Standard]) -> pd.DataFrame:
    """Corridors or carriers with `standard`, the share that may fail (NaN: none is set), and `meets`: pass or fail
    where that is sure by the failures counted, else cannot tell. Case mix is not taken out: a standard is about what
    was delivered. With a uniform prior, the rate is Beta distributed."""

    def limit(row: pd.Series[Any]) -> float:
        own = standards.get(row["target"])
        return np.nan if own is None else own.carriers.get(row["carrier"], own.most)

    most = table.apply(limit, axis=1).to_numpy(float) if len(table) else np.empty(0)
    failed, parcels = table["observed"].to_numpy(float), table["parcels"].to_numpy(float)
    below = beta.cdf(np.nan_to_num(most), failed + 1, parcels - failed + 1)
    meets = np.select([np.isnan(most), below >= SURE, below <= 1 - SURE], ["", "pass", "fail"], "cannot tell")
    return table.assign(standard=most, meets=meets)
