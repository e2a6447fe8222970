"""The ledger's database: one chain of records, appended to by any number of workers, on SQLite or PostgreSQL.

Every change of the ledger is one transaction that holds the lock of the chain's head: BEGIN IMMEDIATE on SQLite, a lock
on the head's row on PostgreSQL. What a commit promises is asserted when a connection is opened: on SQLite write-ahead
logging with synchronous FULL, on PostgreSQL fsync and synchronous commit.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from serving.ledger.base import LedgerError, UnavailableError
from serving.ledger.journal import Disk
from serving.ledger.seals import Secrets, canonical, chained, decrypt, digest, encrypt, genesis, new_key

VERSION = "v0001"
"""The newest revision of `migrations/versions`."""
PRAGMAS: dict[str, str | int] = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
"""What holds on every connection to SQLite; synchronous 2 is FULL."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "local", "remote_write", "remote_apply"),
}
"""What PostgreSQL must say of itself."""
Row = Any
"""A row of a result: a mapping of its columns."""
FORMS = "sqlite:///path/to/ledger.db or postgresql://user@host/database"
BUSY_SECONDS = 5
"""How long SQLite waits for another writer, and PostgreSQL for a connection or a lock."""

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)
_seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")

HEAD = sa.Table(
    "head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("ledger", sa.String(32), nullable=False),
    sa.Column("secrets", sa.String(64), nullable=False),
    sa.Column("seq", _seq, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
KEYS = sa.Table(
    "keys",
    metadata,
    sa.Column("id", _seq, primary_key=True, autoincrement=False),
    sa.Column("subject", sa.String(64), nullable=False, index=True),
    sa.Column("wrapped", sa.LargeBinary),
    sa.Column("erased_at", sa.String(27)),
)
RECORDS = sa.Table(
    "records",
    metadata,
    sa.Column("seq", _seq, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("recorded_at", sa.String(27), nullable=False, index=True),
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("decision_id", sa.String(64)),
    sa.Column("parcel", sa.String(64), index=True),
    sa.Column("key_id", _seq, sa.ForeignKey("keys.id", name="fk_records_key_id"), index=True),
    sa.Column("body_digest", sa.String(64), nullable=False),
    sa.Column("body", sa.LargeBinary),
    sa.Column("prev", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
OPENED = sa.select(RECORDS, KEYS.c.subject, KEYS.c.wrapped).join_from(RECORDS, KEYS, isouter=True)
"""Records with the keys of their bodies."""
CONTENT = ("decision", "override", "outcome", "withdrawal")
"""Kinds whose bodies are encrypted; those of erasure and retention name nobody and stay."""


@dataclass(frozen=True)
class Entry:
    """Something to be recorded.

    Attributes:
        kind: decision, override, outcome, withdrawal, erasure or retention.
        name: what makes it the same entry when it comes again, such as ("decision", its id); stands in the database
            as a pseudonym.
        recorded_at: when it was acknowledged, ISO 8601 in UTC with microseconds.
        body: plain data for JSON.
        decision_id: the decision it is or belongs to.
        parcel_id: the parcel it is about; stands in the database as a pseudonym.
        listing: the product whose listing it is about, in the place of a parcel; likewise.
        subject: whose key the body is encrypted with, ("customer", id) or ("order", id); None: it is not encrypted.
    """

    kind: str
    name: tuple[str, ...]
    recorded_at: str
    body: Mapping[str, Any]
    decision_id: str | None = None
    parcel_id: str | None = None
    subject: tuple[str, str] | None = None
    listing: str | None = None


@dataclass(frozen=True)
class Record:
    """A record as it stands in the chain, opened.

    Attributes:
        seq, kind, recorded_at, decision_id, hash: as in its row.
        body: what was recorded; None where it was erased, has passed its retention, or was not asked for.
    """

    seq: int
    kind: str
    recorded_at: str
    decision_id: str | None
    hash: str
    body: dict[str, Any] | None


def parse_url(text: str) -> URL:
    """The URL of a ledger's database, with the driver we use.

    Raises:
        LedgerError: it is none, of another database, or of SQLite in memory.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise LedgerError(f"{text!r} is no database URL: give {FORMS}") from None
    match url.get_backend_name():
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise LedgerError(f"{text}: a ledger in memory would be lost: give {FORMS}")
            return url.set(drivername="sqlite")
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+psycopg")
        case other:
            raise LedgerError(f"{url.render_as_string()}: a ledger is not kept on {other}: give {FORMS}")


def must_exist(url: URL) -> None:
    """Raises LedgerError if the URL is that of an SQLite file that does not exist. Of a server nothing is asked."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise LedgerError(f"{url.render_as_string()}: there is no such file: name the ledger's database")


class Database:
    """The chain and the customers' keys.

    Args:
        url: see `parse_url`.
        secrets: the ledger's key file.
        connect: how to connect, for tests that stand between SQLite and the disk.
        disk: file operations.
    """

    def __init__(
        self, url: str, secrets: Secrets, *, connect: Callable[[], Any] | None = None, disk: Disk | None = None
    ) -> None:
        self.url = parse_url(url)
        self.secrets = secrets
        self.disk = disk or Disk()
        self.name = self.url.render_as_string(hide_password=True)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._ready = False
        self._opening = threading.Lock()
        options: dict[str, Any] = {"creator": connect} if connect is not None else {}
        if self.sqlite:
            options |= {} if connect else {"connect_args": {"timeout": BUSY_SECONDS}}
        else:
            lost = {"tcp_user_timeout": 2000 * BUSY_SECONDS, "keepalives_idle": BUSY_SECONDS, "keepalives_count": 2}
            options["connect_args"] = {"connect_timeout": BUSY_SECONDS, **lost}  # a server that is gone without a word
            options["pool_pre_ping"] = True
        try:
            self.engine = sa.create_engine(self.url, **options)
        except (ImportError, NoSuchModuleError) as error:
            raise LedgerError(
                f"{self.name}: its driver is not installed ({error}): pip install 'psycopg[binary]'"
            ) from None
        sa.event.listen(self.engine, "connect", self._connected)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    # --- opening ---------------------------------------------------------------------------------------------------

    def _connected(self, connection: Any, _: Any) -> None:
        try:
            self._promised(connection)
        except BaseException:
            connection.close()
            raise

    def _promised(self, connection: Any) -> None:
        """Set and assert what a commit has to promise."""
        cursor = connection.cursor()
        if self.sqlite:
            connection.isolation_level = None  # transactions begin and end where we say so
            found: dict[str, Any] = {}
            for name, value in PRAGMAS.items():
                cursor.execute(f"PRAGMA {name} = {value}")
                cursor.execute(f"PRAGMA {name}")
                found[name] = cursor.fetchone()[0]
            if found != PRAGMAS:
                raise LedgerError(
                    f"{self.name}: SQLite has {found}, the ledger needs {PRAGMAS}: put the file on a local disk"
                )
        else:
            for name, allowed in SETTINGS.items():
                cursor.execute(f"SHOW {name}")
                value = cursor.fetchone()[0]
                if value not in allowed:
                    raise LedgerError(f"{self.name}: PostgreSQL has {name} = {value}, the ledger needs {allowed[0]}")
            cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
            connection.commit()
        cursor.close()

    def open(self) -> None:
        """Connect, bring the schema up to date, and see that the key file is this ledger's. Once; else nothing.

        Raises:
            UnavailableError: the database does not answer.
            LedgerError: it is not a ledger, a newer one, another key file's, or promises too little.
        """
        with self._opening:
            if self._ready:
                return
            if self.sqlite:
                self._make_file()
            with self._transaction() as connection:
                self._migrate(connection)
                self._claim(connection)
            self._ready = True

    def _make_file(self) -> None:
        """An empty file for SQLite to fill, its owner's only, its name durable."""
        path = Path(str(self.url.database)).absolute()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(self.disk.create(path))
            self.disk.sync_folder(path.parent)

    def _migrate(self, connection: sa.Connection) -> None:
        if not self.sqlite:  # so that of several workers that start at once one makes the tables
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7266277)")
        names = set(sa.inspect(connection).get_table_names())
        version = None
        if "alembic_version" in names:
            version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        elif names & set(metadata.tables):
            raise LedgerError(f"{self.name}: holds other tables of these names: give the ledger a database of its own")
        if version == VERSION:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LedgerError(
                f"{self.name}: its schema is {version}, this version of Doorstep knows {VERSION} ({error}): "
                "use the version that wrote it, or a newer one"
            ) from None

    def _claim(self, connection: sa.Connection) -> None:
        head = connection.execute(sa.select(HEAD)).mappings().one()
        if not head["secrets"]:
            ledger = os.urandom(16).hex()
            connection.execute(
                HEAD.update().values(ledger=ledger, secrets=self.secrets.fingerprint, hash=genesis(ledger))
            )
        elif head["secrets"] != self.secrets.fingerprint:
            raise LedgerError(
                f"{self.name}: was written with another key file: name the one it was made with (DOORSTEP_LEDGER_KEY)"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """A connection in a transaction for writing; committed if nothing is raised."""
        with unavailable(self.name), self.engine.connect() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    # --- changing --------------------------------------------------------------------------------------------------

    @contextmanager
    def change(self) -> Iterator[Change]:
        """A transaction that holds the lock of the chain; all of it is kept, durably, or nothing.

        Raises:
            UnavailableError: the database does not answer, or not in time.
        """
        self.open()
        with self._transaction() as connection:
            yield Change(connection, self.secrets)

    def append(self, entries: Sequence[Entry]) -> tuple[str, int, str]:
        """Record what is not recorded already, in order.

        Returns:
            The ledger's id, and the number and the hash of the last record of the chain.
        """
        with self.change() as change:
            change.append(entries)
            return change.ledger, change.seq, change.hash

    def forget(self) -> None:
        """See that what was erased is gone from the database's files as well, not only from its tables."""
        with unavailable(self.name), self.engine.connect() as connection:
            if self.sqlite:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()
            else:
                plain = connection.execution_options(isolation_level="AUTOCOMMIT")
                for table in ("keys", "records"):
                    plain.exec_driver_sql(f"VACUUM {table}")

    # --- reading ---------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection with one view of the whole ledger."""
        self.open()
        with unavailable(self.name), self.engine.connect() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection
            connection.rollback()

    def records(self, after: int = 0, kinds: Sequence[str] = (*CONTENT, "change")) -> Iterator[Record]:
        """Every record of these kinds with a number above `after`, in the order of the chain, opened.

        Without `kinds` every decision and report. Raises LedgerError.
        """
        with self.reading() as connection:
            opener = Opener(self.secrets)
            query = OPENED.where(RECORDS.c.kind.in_(kinds), RECORDS.c.seq > after).order_by(RECORDS.c.seq)
            for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                yield opener.record(row)

    def changes(self, sku: str) -> list[Record]:
        """The changes of a product's listing and their withdrawals, in the order of the chain. Raises LedgerError."""
        with self.reading() as connection:
            return _changes(connection, self.secrets, Opener(self.secrets), sku)


class Opener:
    """Opens what records say; a customer's key is unwrapped once."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._known: dict[int, bytes] = {}

    def body(self, row: Row) -> dict[str, Any] | None:
        """What a row of `OPENED` says; None if that is gone. Raises LedgerError."""
        plain, key_id = row["body"], row["key_id"]
        if plain is None or (key_id is not None and row["wrapped"] is None):
            return None
        if key_id is not None:
            if key_id not in self._known:
                self._known[key_id] = self._secrets.unwrap(row["wrapped"], owner(key_id, row["subject"]))
            plain = decrypt(self._known[key_id], plain, row["key"])
        out: dict[str, Any] = json.loads(plain)
        return out

    def record(self, row: Row) -> Record:
        """A row of `OPENED` as a record. Raises LedgerError."""
        try:
            body = self.body(row)
        except LedgerError as error:
            raise LedgerError(f"record {row['seq']} {error}: run `doorstep ledger verify`") from None
        names = ("seq", "kind", "recorded_at", "decision_id", "hash")
        return Record(**{n: row[n] for n in names}, body=body)


class Change:
    """The ledger in a transaction that holds the lock of the chain.

    Attributes:
        ledger: the ledger's id.
        seq, hash: the last record of the chain.
    """

    def __init__(self, connection: sa.Connection, secrets: Secrets) -> None:
        self._connection = connection
        self._secrets = secrets
        self._opener = Opener(secrets)
        head = connection.execute(sa.select(HEAD).with_for_update()).mappings().one()
        self.ledger: str = head["ledger"]
        self.seq: int = head["seq"]
        self.hash: str = head["hash"]

    def append(self, entries: Sequence[Entry]) -> None:
        """Add what is not there already to the end of the chain."""
        named = {self._secrets.pseudonym(*e.name): e for e in entries}
        there = set(self._connection.scalars(sa.select(RECORDS.c.key).where(RECORDS.c.key.in_(named))))
        new = {key: e for key, e in named.items() if key not in there}
        if not new:
            return
        keys = self._keys_for(new)
        rows = []
        for key, entry in new.items():
            body: bytes | None = canonical(entry.body)
            key_id = None
            if entry.subject is not None:
                key_id, secret = keys[key]
                # What arrives after its customer was erased is chained, and not kept: nobody has this key.
                sealed = encrypt(secret or new_key(), body or b"", key)
                body, body_digest = sealed if secret is not None else None, digest(sealed)
            else:
                body_digest = digest(body or b"")
            row: dict[str, Any] = {
                "prev": self.hash,
                "seq": self.seq + 1,
                "kind": entry.kind,
                "recorded_at": entry.recorded_at,
                "key": key,
                "decision_id": entry.decision_id,
                "parcel": self._about(entry),
                "key_id": key_id,
                "body_digest": body_digest,
            }
            row["hash"] = chained(row)
            rows.append({**row, "body": body})
            self.seq, self.hash = row["seq"], row["hash"]
        self._connection.execute(RECORDS.insert(), rows)
        self._connection.execute(HEAD.update().values(seq=self.seq, hash=self.hash))

    def _about(self, entry: Entry) -> str | None:
        if entry.listing is not None:
            return self._secrets.pseudonym("listing", entry.listing)
        return None if entry.parcel_id is None else self.parcel(entry.parcel_id)

    def parcel(self, parcel_id: str) -> str:
        """The pseudonym of a parcel."""
        return self._secrets.pseudonym("parcel", parcel_id)

    def _keys_for(self, entries: Mapping[str, Entry]) -> dict[str, tuple[int, bytes | None]]:
        """For each entry that is encrypted the number of its key, and the key unless it was destroyed since."""
        subjects = {k: self._secrets.pseudonym(*e.subject) for k, e in entries.items() if e.subject is not None}
        rows = self._connection.execute(sa.select(KEYS).where(KEYS.c.subject.in_(set(subjects.values()))))
        found: dict[str, list[Row]] = {}
        for row in rows.mappings():
            found.setdefault(row["subject"], []).append(row)
        new: list[dict[str, Any]] = []
        out: dict[str, tuple[int, bytes | None]] = {}
        for name, subject in subjects.items():
            have = found.setdefault(subject, [])
            at = entries[name].recorded_at
            erased = [k for k in have if k["erased_at"] is not None and at <= k["erased_at"]]
            live: list[Any] = [k for k in have if k["erased_at"] is None]
            if erased:
                out[name] = erased[0]["id"], None
                continue
            if not live:
                number = new[-1]["id"] + 1 if new else self._next_key()
                wrapped = self._secrets.wrap(new_key(), owner(number, subject))
                new.append({"id": number, "subject": subject, "wrapped": wrapped, "erased_at": None})
                live = new[-1:]
                have += live
            out[name] = live[0]["id"], self._secrets.unwrap(live[0]["wrapped"], owner(live[0]["id"], subject))
        if new:
            self._connection.execute(KEYS.insert(), new)
        return out

    def _next_key(self) -> int:
        return int(self._connection.scalar(sa.select(sa.func.coalesce(sa.func.max(KEYS.c.id), 0)))) + 1  # type: ignore[arg-type]

    def find(self, *name: str) -> Record | None:
        """The record of an entry of that name, if it is recorded."""
        named = self._secrets.pseudonym(*name)
        row = self._connection.execute(OPENED.where(RECORDS.c.key == named)).mappings().one_or_none()
        return None if row is None else self._opener.record(row)

    def reports(self, parcel_id: str) -> list[Record]:
        """Overrides, outcomes and withdrawals about a parcel, in the order of the chain."""
        query = OPENED.where(RECORDS.c.parcel == self.parcel(parcel_id), RECORDS.c.kind != "decision")
        rows = self._connection.execute(query.order_by(RECORDS.c.seq)).mappings()
        return [self._opener.record(row) for row in rows]

    def changes(self, sku: str) -> list[Record]:
        """The changes of a product's listing and their withdrawals, in the order of the chain."""
        return _changes(self._connection, self._secrets, self._opener, sku)

    def erase(self, subject: tuple[str, str], at: str) -> int:
        """Destroy the key of a customer (or order), and record that. Returns how many records lost their content."""
        pseudonym = self._secrets.pseudonym(*subject)
        live = KEYS.c.subject == pseudonym, KEYS.c.erased_at.is_(None)
        ids = list(self._connection.scalars(sa.select(KEYS.c.id).where(*live)))
        if not ids:  # what is still on its way is refused its place by this row
            ids = [self._next_key()]
            self._connection.execute(KEYS.insert().values(id=ids[0], subject=pseudonym))
        mine = RECORDS.c.key_id.in_(ids), RECORDS.c.body.is_not(None)
        count = int(self._connection.scalar(sa.select(sa.func.count()).where(*mine)) or 0)
        self._connection.execute(RECORDS.update().where(*mine).values(body=None))
        self._connection.execute(KEYS.update().where(KEYS.c.id.in_(ids)).values(wrapped=None, erased_at=at))
        body = {"keys": [{"id": i, "subject": pseudonym} for i in ids], "records": count}
        self.append([Entry("erasure", ("erasure", pseudonym, at), at, body)])
        return count

    def retain(self, before: str, at: str) -> int:
        """Empty bodies recorded before a moment, and record that. Returns how many."""
        old = RECORDS.c.recorded_at < before, RECORDS.c.kind.in_(CONTENT), RECORDS.c.body.is_not(None)
        count = int(self._connection.scalar(sa.select(sa.func.count()).where(*old)) or 0)
        if count:
            self._connection.execute(RECORDS.update().where(*old).values(body=None))
            self.append([Entry("retention", ("retention", before, at), at, {"before": before, "records": count})])
        return count


def _changes(connection: sa.Connection, secrets: Secrets, opener: Opener, sku: str) -> list[Record]:
    about = secrets.pseudonym("listing", sku)
    query = OPENED.where(RECORDS.c.parcel == about, RECORDS.c.kind == "change").order_by(RECORDS.c.seq)
    return [opener.record(row) for row in connection.execute(query).mappings()]


def owner(key_id: int, subject: str) -> str:
    """What a customer's wrapped key is bound to."""
    return f"{key_id} {subject}"


@contextmanager
def unavailable(name: str) -> Iterator[None]:
    """Turn what a database throws when it cannot answer into UnavailableError."""
    try:
        yield
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise UnavailableError(f"{name}: {said[0] if said else type(error).__name__}") from error
