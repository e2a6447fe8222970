"""How often something happens in the end, from units that are watched for some time only: by the textbook, in loops."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def kaplan_meier(spells: Sequence[tuple[float, bool]], age: float) -> Fraction:
    """Share of units to which it has happened by an age (Kaplan and Meier, 1958).

    Args:
        spells: per unit how long it was watched, and whether that ended because it happened.
        age: at which the share is asked for; what happens at that very age counts.
    """
    kept = Fraction(1)
    for moment in sorted({length for length, happened in spells if happened and length <= age}):
        at_risk = sum(1 for length, _ in spells if length >= moment)
        events = sum(1 for length, happened in spells if happened and length == moment)
        kept *= 1 - Fraction(events, at_risk)
    return 1 - kept
