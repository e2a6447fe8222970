"""Refusals in plain words: what was wrong, what was given, and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_NUMBER = 1e12
"""No believable column goes beyond this, either side; larger is a mistake of unit or of key."""
MAX_ERRORS = 20
"""Faults named in one refusal; the rest are counted."""


@dataclass(frozen=True)
class Invalid(Exception):
    """A request that was refused.

    Attributes:
        detail: one sentence naming the first fault and how many there are.
        errors: `field`, `message`, `given` and `allowed` of up to `MAX_ERRORS` faults.
    """

    detail: str
    errors: list[dict[str, Any]]

    @staticmethod
    def of(faults: list[dict[str, Any]]) -> Invalid:
        """The refusal of a request with these faults, of which there is one at least."""
        first = faults[0]
        given = "" if first["message"] == "is missing" else f"; given: {json.dumps(first['given'], ensure_ascii=False)}"
        more = len(faults) - 1
        also = "" if not more else f" (and {more} more)" if more < MAX_ERRORS else " (and more)"
        return Invalid(
            f"{first['field']} {first['message']}{given}; allowed: {first['allowed']}{also}", faults[:MAX_ERRORS]
        )


def fault(loc: Sequence[str | int], message: str, given: Any, allowed: str) -> dict[str, Any]:
    """One thing that is wrong, at a place such as ("lines", 0, "sku"); the empty one is the whole body."""
    return {"field": _path(loc), "message": message, "given": _given(given), "allowed": allowed}


def _given(value: Any) -> Any:
    """`value` as it can be shown in a refusal: short, and valid JSON."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return "an integer beyond 1e12"
    if isinstance(value, str) and len(value) > 80:
        return f"{value[:80]}... ({len(value):,} characters)"
    return value


def _path(loc: Sequence[str | int]) -> str:
    """('lines', 0, 'sku') -> lines[0].sku; the whole body is `body`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "body"
