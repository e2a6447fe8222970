"""Return reasons as a shop writes them, read as reasons that have an owner.

A code is read, in this order, as what `[codes.reason]` in `dataset.toml` says; as the shop's own reason of that name,
if `[reasons]` declares one; as Doorstep's reason of that name; as what the code means in the systems shops export from
(`reason_codes.toml`), where all systems that know it agree. Anything else is nothing that can be learned from: it is
counted and read as "not stated".
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

import numpy as np
import pandas as pd

from features.arrays import Array
from features.settings import Settings
from features.vocabulary import RETURN_REASONS

NOT_STATED = -1


def owners(settings: Settings) -> dict[str, str]:
    """Every return reason of a shop, and the team that owns it: Doorstep's first, then the shop's own."""
    return {r.name: r.team for r in RETURN_REASONS.values()} | dict(settings.reasons)


@lru_cache(maxsize=1)
def known_codes() -> Mapping[str, str]:
    """What the codes of known systems mean, by the code in lower case; empty where it says nothing.

    Codes that mean different things in different systems are left out: only the shop knows which it uses.
    """
    systems = tomllib.loads(files("features").joinpath("reason_codes.toml").read_text(encoding="utf-8"))
    meanings: dict[str, set[str]] = {}
    for system in systems.values():
        for code, reason in system["codes"].items():
            meanings.setdefault(code.strip().casefold(), set()).add(reason)
    return {code: next(iter(found)) for code, found in meanings.items() if len(found) == 1}


def read(codes: Array, settings: Settings) -> tuple[Array, dict[str, int]]:
    """Read a column of return reasons.

    Args:
        codes: (n,) object array of str or None, as the dataset's reader gives it (`[codes.reason]` applied).
        settings: the shop's.

    Returns:
        (n,) int8 positions in `owners(settings)`, `NOT_STATED` where nothing is stated or the code is not known; and
        the codes that are not known with their number of rows, most frequent first.
    """
    place = {reason: i for i, reason in enumerate(owners(settings))}
    numbers, uniques = pd.factorize(codes)
    meaning = np.full(len(uniques) + 1, NOT_STATED, dtype=np.int8)  # the last place stands for missing
    counts = np.bincount(numbers[numbers >= 0], minlength=len(uniques))
    unknown: dict[str, int] = {}
    for i, code in enumerate(uniques):
        reason = code if code in place else known_codes().get(str(code).strip().casefold())
        if reason is None:
            unknown[str(code)] = int(counts[i])
        elif reason:
            meaning[i] = place[reason]
    return meaning[numbers], dict(sorted(unknown.items(), key=lambda pair: (-pair[1], pair[0])))
