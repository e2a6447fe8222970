"""Parcels that wait to be packed: announced by the shop's system, found by the code that is scanned.

One SQLite file, shared by the workers of a machine. It holds requests as they were announced, customers' ids included,
and forgets each after some days: at the next announcement or start, and while parcels are scanned about every hour.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic_core import to_json

DAYS = 14
"""How long a parcel waits, unless told otherwise."""
FORGET = timedelta(hours=1)
"""How often what waits too long is looked for where nothing is announced."""
BUSY_SECONDS = 2.0
"""How long an announcement waits for another worker's writing."""


class WaitingError(OSError):
    """The file of waiting parcels cannot be used; says which and why."""


class Waiting:
    """The parcels that wait.

    Args:
        path: of the file; made if it is not there, readable by its owner only.
        days: a parcel is forgotten so many days after it was last announced.
        clock: the time.

    Raises:
        WaitingError: the file cannot be made or is no such file.
    """

    def __init__(
        self, path: Path | str, days: float = DAYS, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.path = Path(path)
        self.days = days
        self._clock = clock
        self._forgotten = clock()
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            why = f"{error.strerror}: DOORSTEP_WAITING names a file to keep parcels in"
            raise WaitingError(f"{self.path}: {why}") from None
        self._lock = threading.Lock()
        with self._unavailable():
            # One connection, kept: closing the last one empties the write-ahead log, which a scan would wait for.
            self._connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        until = time.monotonic() + BUSY_SECONDS
        while True:  # unlike others, this change does not wait by itself for workers that start at the same time
            try:
                with self._change() as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                break
            except WaitingError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
        with self._change() as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS waiting (parcel_id TEXT PRIMARY KEY, announced_at TEXT NOT NULL, "
                "request BLOB NOT NULL) WITHOUT ROWID"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS waiting_since ON waiting (announced_at)")
            self._forget(connection, self._forgotten)

    @contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise WaitingError(f"{self.path}: {error}") from None

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """The connection, to one thread at a time; what is done with it is done whole or not at all."""
        with self._lock, self._unavailable(), self._connection as connection:
            yield connection

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def announce(self, requests: Sequence[Mapping[str, Any]]) -> int:
        """Keep requests, all or none; one of a parcel that waits already replaces it. Forgets what is too old.

        Args:
            requests: validated, see `serving.schemas.Rules.many`.

        Returns:
            How many parcels wait now.

        Raises:
            WaitingError: nothing is kept.
        """
        now = self._clock()
        rows = [(r["parcel"]["parcel_id"].strip(), now.isoformat(), to_json(r)) for r in requests]
        with self._change() as connection:
            self._forget(connection, now)
            connection.executemany("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?)", rows)
            return int(connection.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def find(self, code: str) -> bytes | None:
        """The request of a parcel that waits, as JSON; None if none of this code does. Raises WaitingError."""
        query = "SELECT request FROM waiting WHERE parcel_id = ? AND announced_at >= ?"
        now = self._clock()
        with self._change() as connection:
            row = connection.execute(query, (code, self._oldest(now))).fetchone()
        if now - self._forgotten >= FORGET:
            self._forget_unless_busy(now)
        return None if row is None else bytes(row[0])

    def _forget_unless_busy(self, now: datetime) -> None:
        """Forget what is too old, unless somebody is writing: a scan does not wait for that, the next one forgets."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._connection.execute("PRAGMA busy_timeout = 0")
            with self._connection as connection:
                self._forget(connection, now)
            self._forgotten = now
        except sqlite3.Error:
            pass  # what is too old is not found in any case
        finally:
            with suppress(sqlite3.Error):
                self._connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
            self._lock.release()

    def _forget(self, connection: sqlite3.Connection, now: datetime) -> None:
        connection.execute("DELETE FROM waiting WHERE announced_at < ?", (self._oldest(now),))

    def _oldest(self, now: datetime) -> str:
        return (now - timedelta(days=self.days)).isoformat()
