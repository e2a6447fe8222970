"""The ledger: what it delivers, what it opens, and the seals of its chain."""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ledgers.load import decision, paths
from ledgers.recorders import found, happened, refused, sound

from serving.ledger import LedgerError, Paths, Recorder, RecordError, UnavailableError, store
from serving.ledger.journal import Disk
from serving.ledger.seals import Secrets, canonical, chained, digest
from serving.ledger.store import metadata
from serving.ledger.upkeep import opened
from serving.ledger.verify import verify

# ---- delivery


def test_decisions_are_delivered_in_order_and_once(make: Callable[..., Recorder]) -> None:
    recorder = make()
    for i in range(0, 12, 3):
        recorder.record([decision(f"d{j}", f"C-{j % 5}") for j in range(i, i + 3)])
    assert recorder.pending and found(recorder) == []
    recorder.deliver()
    assert found(recorder) == [f"d{i}" for i in range(12)] and not recorder.pending
    recorder.record([decision("d3", "C-3"), decision("d12")])  # as when a trimming was lost with the power
    recorder.deliver()
    assert found(recorder) == [f"d{i}" for i in range(13)]
    bodies = {r.decision_id: r.body for r in recorder.database.records()}
    assert bodies["d7"] == decision("d7", "C-2")
    verdict = sound(recorder)
    assert (verdict.records, verdict.unsigned) == (13, 0)


def test_the_thread_delivers_by_itself(make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.start()
    recorder.record([decision("d1")])
    assert recorder.flush(20)
    recorder.record([decision("d2")])
    recorder.close(20)
    assert found(make()) == ["d1", "d2"]


def test_what_a_dead_worker_acknowledged_is_delivered_by_the_next(make: Callable[..., Recorder]) -> None:
    dead, heir = make(), make()
    dead.record([decision("d1"), decision("d2")])
    dead.journal.close()  # its lock is free, its file is there
    heir.record([decision("d3")])
    heir.deliver()
    assert found(heir) == ["d1", "d2", "d3"]


def test_several_workers_at_once_make_one_chain(make: Callable[..., Recorder]) -> None:
    workers = [make() for _ in range(3)]
    failures: list[BaseException] = []

    def work(number: int, recorder: Recorder) -> None:
        try:
            for i in range(8):
                recorder.record([decision(f"w{number}-{i}-{j}", f"C-{i}") for j in range(4)])
                recorder.deliver()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=x) for x in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    names = found(workers[0])
    assert len(names) == len(set(names)) == 96
    for number in range(3):
        mine = [n for n in names if n.startswith(f"w{number}-")]
        assert mine == [f"w{number}-{i}-{j}" for i in range(8) for j in range(4)], "each worker's in its order"
    assert sound(workers[0]).records == 96


def test_while_the_database_is_down_decisions_are_kept_and_later_delivered_in_order(
    make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make()
    recorder.record([decision("d0")])
    recorder.deliver()
    with monkeypatch.context() as down:
        down.setattr(recorder.database.engine, "connect", raising(sa.exc.OperationalError("", {}, OSError("down"))))
        recorder.record([decision("d1")])
        with pytest.raises(UnavailableError, match="down"):
            recorder.deliver()
        recorder.record([decision("d2")])
        later = refused(503, happened, recorder, "k", "d0", "delivered")
        assert dict(later.headers)[b"retry-after"] == b"2" and "try again" in later.detail
    recorder.deliver()
    assert found(recorder) == ["d0", "d1", "d2"]
    assert happened(recorder, "k", "d0", "delivered")["seq"] == 4
    sound(recorder)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_service_starts_without_its_database(tmp_path: Path) -> None:
    recorder = Recorder(f"postgresql://nobody@/nothing?host={tmp_path}", paths(tmp_path))
    recorder.record([decision("d1")])
    assert recorder.pending
    recorder.close()
    url = f"sqlite:///{tmp_path}/other.db"  # what was kept is delivered wherever the ledger is then
    recorder = Recorder(url, paths(tmp_path))
    recorder.deliver()
    assert found(recorder) == ["d1"]
    recorder.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"decision_id": "a\0b"},
        {"decision_id": "x" * 65},
        {"decision_id": 7},
        {"parcel_id": None},
        {"net_benefit": float("nan")},
        {"order_id": "\ud800"},
        pytest.param({"customer_id": object()}, id="no JSON"),
    ],
    ids=str,
)
def test_what_could_never_be_delivered_is_refused_at_once(tmp_path: Path, bad: dict[str, Any]) -> None:
    recorder = Recorder(f"sqlite:///{tmp_path}/ledger.db", paths(tmp_path))
    with pytest.raises(RecordError):
        recorder.record([decision("d1"), decision("d2") | bad])
    assert not recorder.pending
    recorder.close()


def test_a_journal_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    class Full(Disk):
        def write(self, file: int, data: bytes, at: int) -> None:
            raise OSError(28, "No space left on device")

    recorder = Recorder(f"sqlite:///{tmp_path}/ledger.db", paths(tmp_path))
    recorder.journal.disk = Full()
    with pytest.raises(RecordError, match="No space left on device"):
        recorder.record([decision("d1")])
    recorder.journal.disk = Disk()
    recorder.record([decision("d2")])
    recorder.deliver()
    assert found(recorder) == ["d2"]
    recorder.close()


# ---- what is opened, and how


def test_where_the_files_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.of("sqlite:///a/shop.db") == Paths(
        *(tmp_path / "a" / f"shop.{n}" for n in ("journal", "key", "heads"))
    )
    assert Paths.of("postgresql://x@y/z") == Paths(*(tmp_path / "ledger" / n for n in ("journal", "key", "heads")))
    monkeypatch.setenv("DOORSTEP_JOURNAL", "/j")
    assert Paths.of("postgresql://x@y/z", key="/k").journal == Path("/j")
    assert Paths.of("postgresql://x@y/z", key="/k").key == Path("/k")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ledger.db", "is no database URL: give sqlite:///path/to/ledger.db or postgresql://"),
        ("sqlite://", "would be lost"),
        ("sqlite:///:memory:", "would be lost"),
        ("mysql://a@b/c", "not kept on mysql"),
    ],
)
def test_a_url_of_something_else_is_refused(url: str, says: str) -> None:
    with pytest.raises(LedgerError, match=says):
        Paths.of(url)


def test_the_migrations_make_the_tables_that_the_code_uses(make: Callable[..., Recorder]) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    recorder = make()
    with recorder.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_schema_of_a_newer_version_is_refused(make: Callable[..., Recorder]) -> None:
    recorder = make()
    with recorder.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v0099'"))
    with pytest.raises(LedgerError, match="schema is v0099"):
        make()


def test_tables_of_somebody_else_are_left_alone(make: Callable[..., Recorder], database_url: str) -> None:
    engine = sa.create_engine(store.parse_url(database_url))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE records (what TEXT)"))
    engine.dispose()
    with pytest.raises(LedgerError, match="give the ledger a database of its own"):
        make()


def test_another_key_file_is_refused(make: Callable[..., Recorder], tmp_path: Path, database_url: str) -> None:
    make()
    with pytest.raises(LedgerError, match="another key file"):
        Recorder(database_url, paths(tmp_path / "other"))
    os.chmod(tmp_path / "key", 0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        make()
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key").write_text("{}")
    with pytest.raises(LedgerError, match="no key file"):
        make()
    (tmp_path / "key").unlink()
    with pytest.raises(LedgerError, match="not there"):
        opened(database_url, paths(tmp_path))


def test_sqlite_promises_are_asserted_on_every_connection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    recorder = Recorder(url, paths(tmp_path))
    with recorder.database.engine.connect() as connection:
        said = {p: connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in store.PRAGMAS}
    assert said == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    recorder.close()
    for file in ("ledger.db", "key", "heads"):
        if (tmp_path / file).exists():
            assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600

    class Deaf(sqlite3.Connection):
        """A build of SQLite, or a file system, that will not do as it is told."""

        def cursor(self, *a: Any, **k: Any) -> Any:
            class Cursor(sqlite3.Cursor):
                def execute(self, sql: str, *a: Any) -> Any:
                    return super().execute(sql.replace("synchronous = 2", "synchronous = 1"), *a)

            return super().cursor(Cursor)

    with pytest.raises(LedgerError, match="'synchronous': 1"):
        Recorder(url, paths(tmp_path), connect=lambda: sqlite3.connect(tmp_path / "ledger.db", factory=Deaf))


def test_postgresql_promises_are_asserted(server: Any, tmp_path: Path) -> None:
    url = server.empty()
    server.execute("ALTER DATABASE postgres SET synchronous_commit = off")
    with pytest.raises(LedgerError, match="synchronous_commit = off, the ledger needs on"):
        Recorder(url, paths(tmp_path))
    server.execute("ALTER DATABASE postgres RESET synchronous_commit")


# ---- seals


def test_secrets_are_made_once_whoever_starts_first(tmp_path: Path) -> None:
    made: list[Secrets] = []
    threads = [
        threading.Thread(target=lambda: made.append(Secrets.load_or_make(tmp_path / "key", Disk()))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({s.fingerprint for s in made}) == 1 and len(made) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_the_hash_of_a_record_is_what_the_guide_says() -> None:
    """An independent statement of the chain: anybody can recompute it with a few lines."""
    import hashlib

    row = {"prev": "p", "seq": 3, "kind": "decision", "recorded_at": "t", "key": "k", "decision_id": None}
    row |= {"parcel": "x", "key_id": 7, "body_digest": "b"}
    text = '["p",3,"decision","t","k",null,"x",7,"b"]'
    assert chained(row) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(canonical({"b": 1, "a": "é"})) == hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()


@pytest.mark.parametrize("left", [lambda line: line[:40], lambda line: line[:99] + bytes(len(line) - 100) + b"\n"])
def test_a_torn_line_of_the_heads_is_mended_by_the_next(told: Recorder, left: Callable[[bytes], bytes]) -> None:
    whole = told.paths.heads.read_bytes()
    told.paths.heads.write_bytes(whole + left(whole))
    assert not verify(told.database, told.paths.heads).ok
    happened(told, "k", "d1", "delivered")
    assert sound(told).heads == 2


def test_an_older_copy_of_the_database_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    recorder = Recorder(url, paths(tmp_path))
    recorder.record([decision("d1")])
    recorder.deliver()
    recorder.close()
    old = (tmp_path / "ledger.db").read_bytes()
    recorder = Recorder(url, paths(tmp_path))
    recorder.record([decision("d2")])
    recorder.deliver()
    recorder.close()
    (tmp_path / "ledger.db").write_bytes(old)
    recorder = Recorder(url, paths(tmp_path))
    recorder.deliver()
    recorder.close()
    assert "ends before the last head signed for it (record 1 of 2)" in caplog.text
    assert any("record 2 is missing, cut" in f.what for f in verify(recorder.database, tmp_path / "heads").findings)
