"""What the ledger's parts share: what can go wrong, and how a moment is written."""

from __future__ import annotations

from datetime import UTC, datetime


class LedgerError(ValueError):
    """The ledger is not what it should be, or cannot be opened; the message says what to do."""


class UnavailableError(LedgerError):
    """The database does not answer now; nothing is lost, the same again later may work."""


class RecordError(LedgerError):
    """Decisions are not recorded."""


def stamp(moment: datetime) -> str:
    """A moment as the ledger writes it: ISO 8601 in UTC with microseconds, so that text sorts as time does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
