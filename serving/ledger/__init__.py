"""The ledger: an append-only, tamper-evident record of every decision, of overrides and of outcomes.

    journal   what a worker has acknowledged, durable on its own disk before the answer leaves
    store     the database behind it: one hash chain on SQLite or PostgreSQL; `migrations` is its schema
    seals     the chain's hash, customers' keys, pseudonyms, signed heads
    schemas   what a report of an outcome or an override may hold
    reports   how it is recorded, and what contradicts what
    verify    is it what was written? and if not, where
    export    decisions, events and returns as tables of a dataset

A service without `DOORSTEP_LEDGER` imports none of it. Nothing here imports the database's libraries until a ledger is
opened.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.ledger.base import LedgerError, RecordError, UnavailableError, stamp
from serving.ledger.journal import Disk, Journal, undelivered

if TYPE_CHECKING:
    from serving.ledger.seals import Secrets
    from serving.ledger.store import Database, Entry

__all__ = ["LedgerError", "Paths", "RecordError", "Recorder", "UnavailableError"]

BATCH = 500
"""Entries delivered in one transaction."""
GATHER_SECONDS = 1.0
"""How long the deliverer lets entries gather, unless a report waits for one: a transaction, and a signed head, cost
about the same for one and for fifty."""
LOOK_SECONDS = 5.0
"""How often journals of dead workers are looked for."""
WAIT_SECONDS = 1.0
"""How long a report waits for its decision to be delivered."""
RETRY_SECONDS = (0.25, 10.0)
"""First and longest pause while the database does not answer."""

_DECISION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

logger = logging.getLogger("doorstep.ledger")


def _clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Paths:
    """Where a ledger's files lie, outside its database.

    Attributes:
        journal: folder of the workers' journals, on a local disk.
        key: the key file.
        heads: the file of signed heads.
    """

    journal: Path
    key: Path
    heads: Path

    @staticmethod
    def of(url: str, *, journal: str | None = None, key: str | None = None, heads: str | None = None) -> Paths:
        """What is given, else what `DOORSTEP_JOURNAL`, `DOORSTEP_LEDGER_KEY` and `DOORSTEP_LEDGER_HEADS` name, else
        beside the SQLite file, or in ./ledger.

        Raises:
            LedgerError: `url` is no ledger's.
        """
        from serving.ledger.store import parse_url

        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            base = Path(str(parsed.database)).absolute()
            default = {n: base.with_name(f"{base.stem}.{n}") for n in ("journal", "key", "heads")}
        else:
            default = {n: Path("ledger").absolute() / n for n in ("journal", "key", "heads")}
        names = {"journal": "DOORSTEP_JOURNAL", "key": "DOORSTEP_LEDGER_KEY", "heads": "DOORSTEP_LEDGER_HEADS"}
        given = {"journal": journal, "key": key, "heads": heads}
        return Paths(**{n: Path(given[n] or os.environ.get(names[n]) or default[n]) for n in names})


class Recorder:
    """Records decisions, durably and at once, and delivers them to the database, in order and once.

    One per worker process. A decision is acknowledged when it is in the journal; a thread takes it to the database from
    there, whenever that answers. What a killed worker has acknowledged is delivered by whoever starts or lives next.

    Args:
        url: the database: sqlite:///path or postgresql://user@host/database.
        paths: where the files lie; default `Paths.of`.
        clock: the time, for `recorded_at`.
        disk: file operations.
        connect: how to connect to the database, for tests.

    Raises:
        LedgerError: the URL or the key file is not usable, or the database promises too little. A database that only
            does not answer is no error here.
    """

    def __init__(
        self,
        url: str,
        paths: Paths | None = None,
        *,
        clock: Callable[[], datetime] = _clock,
        disk: Disk | None = None,
        connect: Callable[[], Any] | None = None,
    ) -> None:
        from serving.ledger.seals import Heads, Secrets
        from serving.ledger.store import Database

        self.paths = paths or Paths.of(url)
        self.clock = clock
        disk = disk or Disk()
        self.secrets: Secrets = Secrets.load_or_make(self.paths.key, disk)
        self.database: Database = Database(url, self.secrets, connect=connect, disk=disk)
        self.journal = Journal(self.paths.journal, disk=disk)
        self.heads = Heads(self.paths.heads, disk)
        self.recorded = self.failed = 0
        self._condition = threading.Condition()
        self._delivering = threading.Lock()
        self._stopping = self._hurry = False
        self._looked = -LOOK_SECONDS
        self._thread: threading.Thread | None = None
        self._signed = 0
        try:
            self.database.open()
        except UnavailableError as error:
            logger.error("%s: decisions are kept in %s until it answers", error, self.paths.journal)
        except LedgerError:
            self.database.close()
            raise

    @classmethod
    def from_environment(cls) -> Recorder | None:
        """The recorder that `DOORSTEP_LEDGER` asks for, delivering; None if it is not set. Raises LedgerError."""
        url = os.environ.get("DOORSTEP_LEDGER")
        if not url:
            return None
        recorder = cls(url)
        recorder.start()
        return recorder

    # --- recording -------------------------------------------------------------------------------------------------

    def record(self, decisions: Sequence[Mapping[str, Any]]) -> None:
        """Record decisions; they are durable on return. One write and one fsync, however many there are.

        Args:
            decisions: plain data for JSON, each with `decision_id`, `parcel_id` and, where there are such, `order_id`
                and `customer_id`.

        Raises:
            RecordError: none of them is recorded; says why.
        """
        if not decisions:
            return
        at = stamp(self.clock())
        try:
            self.journal.append([_payload(d, at) for d in decisions])
        except (OSError, ValueError, TypeError, KeyError) as error:
            self.failed += len(decisions)
            logger.error("%s decisions are not recorded: %s", len(decisions), error)
            raise RecordError(str(error)) from error
        self.recorded += len(decisions)
        with self._condition:
            self._condition.notify_all()

    def report(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Record an outcome or an override in the database, at once.

        Args:
            path: where it was sent, see `serving.ledger.schemas.PATHS`.
            content: from `serving.ledger.schemas.read`.

        Returns:
            The receipt: the same, whenever the same report comes again.

        Raises:
            serving.guard.Refused: 404 no such decision, 409 it contradicts what is recorded, 410 the decision's content
                is gone, 503 the database does not answer or the decision is not delivered yet.
        """
        from serving.guard import Refused, later
        from serving.ledger import reports

        for last in (False, True):
            try:
                with self.database.change() as change:
                    receipt = reports.report(change, path, content, self.clock())
                    ledger, seq, hash = change.ledger, change.seq, change.hash
            except LookupError:
                # Looked for in the journals first, then once more in the database: it is always in one of the two.
                if last:
                    break
                if not self._arrived(str(content["decision_id"])):
                    raise Refused(
                        503, "The decision is on its way to the database; nothing is lost, try again", headers=later(2)
                    ) from None
            except LedgerError as error:
                logger.error("a report is refused: %s", error)
                raise Refused(
                    503,
                    "The ledger's database does not answer; the report is not recorded, try again",
                    headers=later(2),
                ) from None
            else:
                self._sign(ledger, seq, hash)
                return receipt
        raise Refused(404, f"There is no decision {content['decision_id']!r} in the ledger.")

    def _arrived(self, decision_id: str) -> bool:
        """Whether a decision is in the journal of no worker of this machine; waits a little for it to be delivered."""
        until = time.monotonic() + WAIT_SECONDS
        while decision_id in kept(self.paths.journal):
            if time.monotonic() >= until:
                return False
            self._nudge()
            time.sleep(0.05)
        return True

    # --- delivering ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver, in a thread."""
        self._thread = threading.Thread(target=self._run, name="doorstep-ledger", daemon=True)
        self._thread.start()

    def deliver(self) -> int:
        """Take what is in the journals now to the database: own entries and those of dead workers.

        Returns:
            How many entries were delivered.

        Raises:
            LedgerError: the database does not answer, or is not this ledger's; what is not delivered is kept.
        """
        with self._delivering:
            self.database.open()
            if time.monotonic() >= self._looked + LOOK_SECONDS:
                adopted = self.journal.adopt()
                self._looked = time.monotonic()
                if adopted:
                    logger.warning("delivering %s journals that other workers left behind", adopted)
            count, left = 0, self.journal.waiting
            while batch := self.journal.read(BATCH):
                last = self.database.append([_entry(payload) for payload in batch])
                left -= self.journal.delivered()
                self._sign(*last)
                count += len(batch)
                if left <= 0:  # what has come meanwhile gathers for the next time
                    break
            if not self._signed:  # a crash between a commit and its signature leaves a head unsigned
                self._sign(*self.database.append(()))
            return count

    def _sign(self, ledger: str, seq: int, hash: str) -> None:
        """Add a signed head. What cannot be signed now is covered by the next one."""
        if seq <= self._signed:
            return
        try:
            if not self._signed and seq < self.heads.last():
                logger.error(
                    "%s ends before the last head signed for it (record %s of %s): was an older copy put back?",
                    *(self.database.name, seq, self.heads.last()),
                )
        except FileNotFoundError:
            pass
        try:
            self.heads.append(self.secrets, ledger, seq, hash, stamp(self.clock()))
            self._signed = seq
        except OSError as error:
            logger.error("%s: the ledger's head is not signed: %s", self.paths.heads, error)

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._condition:
                if pause:
                    self._condition.wait_for(lambda: self._stopping or self._hurry, pause)
                elif not (self._stopping or self._hurry or self.pending):
                    self._condition.wait(LOOK_SECONDS)
                if self.pending and not pause:
                    self._condition.wait_for(lambda: self._stopping or self._hurry, GATHER_SECONDS)
                if self._stopping:
                    return
                self._hurry = False
            try:
                self.deliver()
                if pause:
                    logger.warning("the ledger's database answers again: delivered")
                pause = 0.0
            except Exception as error:  # whatever it is, decisions are kept and the bench is answered
                if not pause:
                    logger.error("not delivered, kept in %s: %s", self.paths.journal, error)
                pause = min(max(2 * pause, RETRY_SECONDS[0]), RETRY_SECONDS[1])

    @property
    def pending(self) -> bool:
        """Whether this worker holds decisions that are not delivered."""
        return self.journal.waiting > 0

    def _nudge(self) -> None:
        with self._condition:
            self._hurry = True
            self._condition.notify_all()

    def flush(self, seconds: float) -> bool:
        """Hurry, and wait until all that this worker holds is delivered. False if it is not, in time."""
        until = time.monotonic() + seconds
        while self.pending and time.monotonic() < until:
            self._nudge()
            time.sleep(0.01)
        return not self.pending

    def close(self, seconds: float = 5.0) -> None:
        """Deliver what can be delivered, then stop. What is left is delivered by whoever starts next."""
        if self._thread is not None:
            self.flush(seconds)
            with self._condition:
                self._stopping = True
                self._condition.notify_all()
            self._thread.join(seconds)
        self.journal.close()
        self.database.close()


def kept(folder: Path) -> set[str]:
    """Ids of the decisions in the journals of a folder, whoever writes them; some may have been delivered already."""
    return {json.loads(payload)["body"]["decision_id"] for payload in undelivered(folder)}


def _payload(decision: Mapping[str, Any], at: str) -> bytes:
    """A decision as it stands in the journal."""
    decision_id, parcel_id = decision["decision_id"], decision["parcel_id"]
    if not (isinstance(decision_id, str) and _DECISION_ID.fullmatch(decision_id)):
        raise ValueError(f"decision_id {decision_id!r} is not 1 to 64 letters, digits, _ . : or -")
    if not isinstance(parcel_id, str):
        raise ValueError(f"parcel_id {parcel_id!r} is not text")
    return json.dumps({"recorded_at": at, "body": dict(decision)}, allow_nan=False, ensure_ascii=False).encode()


def _entry(payload: bytes) -> Entry:
    """What the journal holds, as what is to be recorded."""
    from serving.ledger.reports import subject
    from serving.ledger.store import Entry

    content = json.loads(payload)
    body = content["body"]
    name = body["decision_id"]
    return Entry("decision", ("decision", name), content["recorded_at"], body, name, body["parcel_id"], subject(body))
