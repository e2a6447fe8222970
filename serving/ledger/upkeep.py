"""What an operator does to a ledger: erase a customer, let old content go. Both are records of it themselves."""

from __future__ import annotations

from datetime import datetime, timedelta

from serving.ledger import Paths, Recorder, kept
from serving.ledger.base import LedgerError, stamp
from serving.ledger.seals import Heads, Secrets
from serving.ledger.store import Change, Database, must_exist, parse_url


def opened(url: str, paths: Paths) -> Database:
    """The database of a ledger, with its key file, which must be there. Raises LedgerError."""
    if not paths.key.exists():  # it lies beside the database, so where that is misspelt, it is what is missing
        must_exist(parse_url(url))
    return Database(url, Secrets.load(paths.key))


def take_over(url: str, paths: Paths) -> int:
    """Deliver what workers that are dead left in the journals of this machine, as a service does when it starts.

    Returns:
        How many decisions were delivered. What workers that live hold is theirs to deliver.

    Raises:
        LedgerError: the database does not answer, or the key file is not there.
    """
    opened(url, paths).close()  # the key file is there; a recorder would make one
    if not kept(paths.journal):
        return 0
    recorder = Recorder(url, paths)
    try:
        return recorder.deliver()
    finally:
        recorder.close()


def erase(database: Database, paths: Paths, subject: tuple[str, str], now: datetime) -> int:
    """Destroy the key of a customer, so that nothing recorded of it can be read again, in no copy made from now on.

    Decisions that are still in a journal are erased as they arrive; what is decided later is recorded anew.

    Args:
        database: of the ledger.
        paths: its files.
        subject: ("customer", id), or ("order", id) of an order without a customer.
        now: what was recorded until then is erased.

    Returns:
        How many records lost their content.

    Raises:
        LedgerError: the database does not answer; nothing is erased.
    """
    with database.change() as change:
        count = change.erase(subject, stamp(now))
    _finish(database, paths, change, now)
    return count


def retain(database: Database, paths: Paths, days: int, now: datetime) -> int:
    """Empty what was recorded more than so many days ago.

    Returns:
        How many records lost their content.

    Raises:
        LedgerError: `days` is below 1, or the database does not answer; nothing is emptied.
    """
    if days < 1:
        raise LedgerError(f"{days} days: must be 1 or more")
    with database.change() as change:
        count = change.retain(stamp(now - timedelta(days=days)), stamp(now))
    _finish(database, paths, change, now)
    return count


def _finish(database: Database, paths: Paths, change: Change, now: datetime) -> None:
    database.forget()
    if change.seq:
        Heads(paths.heads).append(database.secrets, change.ledger, change.seq, change.hash, stamp(now))
