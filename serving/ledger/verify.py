"""Is the ledger what was written? Every record, key and signed head is looked at; what is wrong is named by its place.

What each part shows: a record's own hash, any change of its row; the link to the hash before it, records that are
missing, swapped or put in; the digest and the decryption of a body, any change of it; the log of erasures and
retentions, a body or a key that is gone without one; the signed heads, which lie outside the database, a tail that was
cut off and a chain that was computed anew from some record on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving.ledger import kept
from serving.ledger.base import LedgerError, UnavailableError
from serving.ledger.seals import Head, Heads, chained, decrypt, digest, genesis
from serving.ledger.store import CONTENT, KEYS, RECORDS, VERSION, Database, must_exist, owner, unavailable

MOST = 100
"""Findings that are listed; more are counted."""

_TEXT = ("kind", "recorded_at", "key", "body_digest", "prev", "hash")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        seq: the record it is found at; None where it is no record's.
        what: what is wrong, in words that name the place.
    """

    seq: int | None
    what: str


@dataclass(frozen=True)
class Verdict:
    """What a verification found.

    Attributes:
        records: how many there are.
        heads: signed heads that were held against them.
        unsigned: records after the last signed head; nothing outside the database vouches for them yet.
        erased, expired: bodies that are gone by a recorded erasure, or retention.
        waiting: decisions that still lie in the journals of this machine; they are not verified.
        findings: what is wrong, by record; at most `MOST`.
        count: how many things are wrong.
    """

    records: int
    heads: int
    unsigned: int
    erased: int
    expired: int
    waiting: int
    findings: tuple[Finding, ...]
    count: int

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.count


def verify(database: Database, heads: Path, journal: Path | None = None) -> Verdict:
    """Verify a ledger.

    Args:
        database: with the key file of the ledger. Not opened: a damaged one is looked at as it is.
        heads: the file of signed heads.
        journal: folder of the journals; without it, what waits in them is not counted.

    Raises:
        LedgerError: there is no such file, or PostgreSQL does not answer. What is damaged is a finding.
    """
    must_exist(database.url)
    check = _Check(database, Heads(heads), set() if journal is None else kept(journal))
    try:
        return check.run()
    except (UnavailableError, UnicodeDecodeError) as error:  # SQLite quotes what it stumbles over, in any bytes
        if not database.sqlite:
            raise
        check.add(None, f"the database file cannot be read: {error}")
        return check.verdict()


class _Check:
    def __init__(self, database: Database, heads: Heads, waiting: set[str]) -> None:
        self.database = database
        self.heads = heads
        self.waiting = {database.secrets.pseudonym("decision", name) for name in waiting}
        self.records = self.signatures = self.last = self.unsigned = self.erased = self.expired = 0
        self.found: list[Finding] = []
        self.count = 0

    def add(self, seq: int | None, what: str) -> None:
        self.count += 1
        if len(self.found) < MOST:
            # A finding may quote what is damaged, and has to be said on any terminal.
            self.found.append(Finding(seq, what.encode("utf-8", "backslashreplace").decode()))

    def run(self) -> Verdict:
        with unavailable(self.database.name), self.database.engine.connect() as connection:
            connection = connection.execution_options(stream_results=True)
            if self.database.sqlite:
                # Text that is no UTF-8 any more is a change like any other, to be found at its place.
                connection.connection.dbapi_connection.text_factory = _lenient  # type: ignore[union-attr]
                connection.exec_driver_sql("BEGIN")
            try:
                return self._run(connection)
            finally:
                if self.database.sqlite:
                    connection.connection.dbapi_connection.text_factory = str  # type: ignore[union-attr]
                connection.rollback()

    def _run(self, connection: sa.Connection) -> Verdict:
        if self.database.sqlite:
            self._integrity(connection)
        head = self._head(connection)
        ledger = head.get("ledger") if isinstance(head.get("ledger"), str) else ""
        signed = self._signed(str(ledger))
        keys = self._keys(connection)
        gone = _Gone()
        bodiless: list[Mapping[str, Any]] = []
        prev, before, seq, previous = genesis(str(ledger)), "", 0, None
        for row in self._rows(connection, "records", [c.name for c in RECORDS.columns], "seq"):
            at = row["seq"]
            if not isinstance(at, int):
                self.add(None, f"a record after {seq} has no number")
                continue
            if at != seq + 1:
                self.add(at, _missing(seq + 1, at - 1) if at > seq else f"record {at} is out of its place")
            elif row["prev"] != prev and row["prev"] != before:
                self.add(at, f"record {at} is not chained to record {seq}")
            self._row(row)
            self.waiting.discard(row["key"])
            if row["kind"] in ("erasure", "retention"):
                gone.add(row, self.add)
            if row["body"] is None:
                bodiless.append({k: row[k] for k in ("seq", "kind", "recorded_at", "key_id")})
            elif row["kind"] in CONTENT:
                self._body(row, keys)
            for h in signed.pop(at, ()):
                if h.hash != row["hash"]:
                    self.add(at, f"record {at} is not the one that was signed at {h.at} (line {h.line} of the heads)")
            # A changed hash is one fault, of its own record: the next one is held against what it should be.
            prev, before, seq, previous = row["hash"], _computed(row), at, row
        self._bodiless(bodiless, gone, keys)
        self._destroyed(keys, gone)
        if signed:
            last = max(signed)
            if last > seq:
                self.add(seq + 1, f"{_missing(seq + 1, last)}, cut from the tail: record {last} was signed")
            for at in sorted(x for x in signed if x <= seq):
                self.add(at, f"record {at} is missing, and was signed")
        tail = previous["hash"] if previous is not None else genesis(str(ledger))
        if head and (head.get("seq"), head.get("hash")) != (seq, tail):
            self.add(None, f"the head says the chain ends at record {head.get('seq')!r}, which is not its last")
        if seq and not self.signatures:
            self.add(None, f"{self.heads.path}: no signed heads: a cut tail, or a chain computed anew, would go unseen")
        self.unsigned = max(0, seq - self.last)
        return self.verdict()

    def verdict(self) -> Verdict:
        """What was found so far."""
        of = self.records, self.signatures, self.unsigned, self.erased, self.expired, len(self.waiting)
        return Verdict(*of, tuple(self.found), self.count)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _rows(self, connection: sa.Connection, table: str, names: list[str], order: str) -> Iterator[dict[str, Any]]:
        """Rows as the driver gives them, whatever their types; a damaged page is a finding."""
        try:
            result = connection.exec_driver_sql(f'SELECT {", ".join(names)} FROM {table} ORDER BY "{order}"')
            for row in result:
                if table == "records":
                    self.records += 1
                yield {n: bytes(v) if isinstance(v, memoryview) else v for n, v in zip(names, row, strict=True)}
        except sa.exc.OperationalError as error:
            if not self.database.sqlite:
                raise
            self.add(None, f"{table} cannot be read to the end: {error.orig}")
        except sa.exc.SQLAlchemyError as error:
            self.add(None, f"{table} cannot be read to the end: {getattr(error, 'orig', None) or error}")

    def _integrity(self, connection: sa.Connection) -> None:
        try:
            for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(10)"):
                if line != "ok":
                    self.add(None, f"the database file is damaged: {line}")
            for table, row, *_ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
                self.add(None, f"row {row} of {table} names a key that is not there")
        except sa.exc.SQLAlchemyError as error:
            self.add(None, f"the database file is damaged: {getattr(error, 'orig', None) or error}")

    def _head(self, connection: sa.Connection) -> dict[str, Any]:
        versions = [r["version_num"] for r in self._rows(connection, "alembic_version", ["version_num"], "version_num")]
        if versions != [VERSION]:
            self.add(None, f"the schema's version is {versions}, must be {VERSION!r}")
        rows = list(self._rows(connection, "head", ["id", "ledger", "secrets", "seq", "hash"], "id"))
        if len(rows) != 1 or rows[0]["id"] != 1:
            self.add(None, f"the head has {len(rows)} rows, must have one")
        if rows and rows[0]["secrets"] != self.database.secrets.fingerprint:
            self.add(None, "the ledger was written with another key file, or its mark of it was changed")
        return rows[0] if rows else {}

    def _signed(self, ledger: str) -> dict[int, list[Head]]:
        """Signed heads by record; what is wrong with the file is a finding."""
        out: dict[int, list[Head]] = {}
        try:
            for head in self.heads.read(ledger, self.database.secrets.public):
                self.signatures += 1
                if head.fault:
                    self.add(None, f"line {head.line} of the heads ({self.heads.path}) {head.fault}")
                else:
                    self.last = max(self.last, head.seq)
                    if head.seq:
                        out.setdefault(head.seq, []).append(head)
        except FileNotFoundError:
            pass
        return out

    def _keys(self, connection: sa.Connection) -> dict[int, _Key]:
        """Customers' keys, unwrapped."""
        out: dict[int, _Key] = {}
        for row in self._rows(connection, "keys", [c.name for c in KEYS.columns], "id"):
            number, subject, wrapped, erased_at = (row[c.name] for c in KEYS.columns)
            plain = None
            if wrapped is not None:
                try:
                    plain = self.database.secrets.unwrap(wrapped, owner(number, subject))
                except (LedgerError, TypeError, UnicodeEncodeError):
                    self.add(None, f"key {number} was changed: it does not decrypt")
                if erased_at is not None:
                    self.add(None, f"key {number} is said to be erased at {erased_at}, and is there")
            out[number] = _Key(subject, plain, wrapped is None, erased_at)
        return out

    def _row(self, row: Mapping[str, Any]) -> None:
        if row["hash"] != _computed(row):
            self.add(row["seq"], f"record {row['seq']} was changed: its hash is not that of its content")
        if row["body"] is not None and (
            not isinstance(row["body"], bytes) or digest(row["body"]) != row["body_digest"]
        ):
            self.add(row["seq"], f"record {row['seq']} was changed: its body is not the one that was recorded")

    def _body(self, row: Mapping[str, Any], keys: Mapping[int, _Key]) -> None:
        key = keys.get(row["key_id"])
        if key is None:
            self.add(row["seq"], f"record {row['seq']}: its key {row['key_id']!r} is missing")
        elif key.plain is not None:
            try:
                decrypt(key.plain, row["body"], row["key"])
            except (LedgerError, TypeError, AttributeError, UnicodeEncodeError):
                self.add(row["seq"], f"record {row['seq']}: its body does not decrypt with key {row['key_id']}")

    def _bodiless(self, rows: list[Mapping[str, Any]], gone: _Gone, keys: Mapping[int, _Key]) -> None:
        """Count bodies that are gone by a recorded erasure or retention; any other is a finding."""
        for row in rows:
            at = row["seq"]
            if gone.erased(row):
                self.erased += 1
            elif gone.expired(row):
                self.expired += 1
            else:
                self.add(at, f"record {at} has lost its content, and no erasure or retention is recorded")
            if row["key_id"] not in keys:
                self.add(at, f"record {at}: its key {row['key_id']!r} is missing")

    def _destroyed(self, keys: Mapping[int, _Key], gone: _Gone) -> None:
        for number, key in keys.items():
            recorded = gone.keys.get(number)
            if key.destroyed and recorded is None:
                self.add(None, f"key {number} is gone, and no erasure of it is recorded")
            elif recorded is not None and (key.subject, key.erased_at) != recorded:
                self.add(None, f"key {number} is not as its erasure recorded it")
        for number in gone.keys.keys() - keys.keys():
            self.add(None, f"key {number} was erased by a record, and its row is missing")


@dataclass(frozen=True)
class _Key:
    subject: Any
    plain: bytes | None
    destroyed: bool
    erased_at: Any


class _Gone:
    """What recorded erasures and retentions account for."""

    def __init__(self) -> None:
        self.keys: dict[int, tuple[str, str]] = {}
        self.before = ""

    def add(self, row: Mapping[str, Any], report: Any) -> None:
        try:
            body = json.loads(row["body"])
            if row["kind"] == "erasure":
                self.keys |= {k["id"]: (k["subject"], str(row["recorded_at"])) for k in body["keys"]}
            else:
                self.before = max(self.before, body["before"])
        except (ValueError, KeyError, TypeError):
            report(row["seq"], f"record {row['seq']}: what was erased cannot be read from it")

    def erased(self, row: Mapping[str, Any]) -> bool:
        known = self.keys.get(row["key_id"])
        return row["kind"] in CONTENT and known is not None and str(row["recorded_at"]) <= known[1]

    def expired(self, row: Mapping[str, Any]) -> bool:
        return row["kind"] in CONTENT and str(row["recorded_at"]) < self.before


def _computed(row: Mapping[str, Any]) -> str:
    """The hash a record should have; empty if that cannot be told."""
    if any(not isinstance(row[n], str) for n in _TEXT):
        return ""
    try:
        return chained(row)
    except (TypeError, ValueError):
        return ""


def _missing(first: int, last: int) -> str:
    return f"record {first} is missing" if first == last else f"records {first} to {last} are missing"


def _lenient(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
