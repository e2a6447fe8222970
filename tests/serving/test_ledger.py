"""The ledger, on SQLite and on a real PostgreSQL: delivery, reports, erasure, verification, export."""

import json
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from ledgers.load import NOW, decision, paths

from features.dataset import Dataset
from features.settings import Settings
from serving import ledger
from serving.guard import Refused
from serving.ledger import LedgerError, Paths, Recorder, RecordError, UnavailableError, store
from serving.ledger.export import export
from serving.ledger.journal import Disk
from serving.ledger.schemas import read
from serving.ledger.seals import Heads, Secrets, canonical, chained, digest, genesis
from serving.ledger.store import Database, metadata
from serving.ledger.upkeep import erase, opened, retain
from serving.ledger.verify import verify
from serving.pages.shadow import KINDS, Reader
from serving.schemas import Invalid
from training.check import check
from training.cli import main

OUTCOMES, OVERRIDES, WITHDRAWALS = "/v1/outcomes", "/v1/overrides", "/v1/withdrawals"


class Clock:
    """A clock that goes as it is told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def make(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    """Recorders of one ledger, as its workers have them; they deliver when told."""
    made: list[Recorder] = []
    clock = Clock()

    def one(**options: Any) -> Recorder:
        made.append(Recorder(database_url, paths(tmp_path), clock=options.pop("clock", clock), **options))
        return made[-1]

    yield one
    for recorder in made:
        recorder.close()


def found(recorder: Recorder) -> list[str]:
    """Names of the decisions in the database, in order."""
    return [str(r.decision_id) for r in recorder.database.records() if r.kind == "decision"]


def tell(recorder: Recorder, path: str, **content: Any) -> dict[str, Any]:
    """Report something, as over HTTP."""
    return recorder.report(path, read(path, json.dumps(content).encode(), recorder.clock()))


def happened(recorder: Recorder, key: str, name: str, kind: str, at: str = "2026-03-01T11:00:00Z", **other: Any) -> Any:
    return tell(recorder, OUTCOMES, key=key, decision_id=name, kind=kind, happened_at=at, **other)


def refused(status: int, call: Callable[..., Any], *arguments: Any, **content: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        call(*arguments, **content)
    assert raised.value.status == status, raised.value.detail
    return raised.value


def sound(recorder: Recorder) -> Any:
    verdict = verify(recorder.database, recorder.paths.heads)
    assert verdict.ok, verdict.findings
    return verdict


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


# ---- reports


@pytest.fixture
def told(make: Callable[..., Recorder]) -> Recorder:
    """A recorder with decisions d0 to d4, delivered."""
    recorder = make()
    recorder.record([decision(f"d{i}", f"C-{i}") for i in range(5)])
    recorder.deliver()
    return recorder


def test_the_same_report_gets_the_same_receipt_across_a_restart(told: Recorder, make: Callable[..., Recorder]) -> None:
    first = happened(told, "k1", "d1", "delivered")
    assert set(first) == {"key", "decision_id", "recorded_at", "seq", "hash"}
    assert happened(told, "k1", "d1", "delivered", "2026-03-01T13:00:00+02:00") == first, "the same moment"
    told.close()
    again = make()
    assert happened(again, "k1", "d1", "delivered") == first
    for other, field in (
        ({"kind": "lost"}, "kind"),
        ({"name": "d2"}, "decision_id"),
        ({"at": "2026-03-01T11:00:01Z"}, "happened_at"),
        ({"reason": "left at the door"}, "reason"),
    ):
        said = refused(409, happened, again, **({"key": "k1", "name": "d1", "kind": "delivered"} | other))
        assert field in said.detail and [e["field"] for e in said.errors or []] == [field]
    other = {"key": "k1", "decision_id": "d1", "reason": "r", "at": "2026-03-01T11:00:00Z"}
    said = refused(409, tell, again, OVERRIDES, **other)
    assert "another kind, outcome" in said.detail and [e["field"] for e in said.errors or []] == ["key"]
    assert sound(again).records == 6


def test_a_report_comes_back_the_same_from_two_workers_at_once(told: Recorder, make: Callable[..., Recorder]) -> None:
    receipts: list[Any] = []
    workers = [told, make(), make()]
    threads = [
        threading.Thread(target=lambda w=w: receipts.append(happened(w, "k", "d1", "delivered"))) for w in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 3 and receipts[0] == receipts[1] == receipts[2]


def test_an_unknown_decision_is_told_from_one_that_is_on_its_way(
    told: Recorder, make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WAIT_SECONDS", 0.0)
    assert "no decision 'nix'" in refused(404, happened, told, "k", "nix", "delivered").detail
    other = make()
    other.record([decision("d9")])
    assert refused(404, happened, told, "k", "nix", "delivered")
    waiting = refused(503, happened, told, "k", "d9", "delivered")
    assert "on its way" in waiting.detail and dict(waiting.headers)[b"retry-after"] == b"2"
    other.deliver()
    assert happened(told, "k", "d9", "delivered")["seq"] == 7


CONTRADICTIONS = [
    ("delivered", "lost"),
    ("lost", "delivered"),
    ("delivered", "refused"),
    ("returned_to_sender", "delivered"),
    ("handover_failed", "attempt_failed"),
    ("lost", "returned"),
    ("returned", "refused"),
    ("delivered", "delivered"),
    ("handed_over", "handed_over"),
]


@pytest.mark.parametrize(("first", "second"), CONTRADICTIONS)
def test_a_contradiction_is_refused_and_a_correction_is_not(told: Recorder, first: str, second: str) -> None:
    def line(kind: str) -> dict[str, str]:
        return {"line_id": "l1"} if kind == "returned" else {}

    told.record([decision("again", "C-1", parcel_id="P-d1")])  # the bench asked twice about the parcel
    told.deliver()
    happened(told, "k1", "d1", first, **line(first))
    said = refused(409, happened, told, "k2", "again", second, "2026-03-01T11:30:00Z", **line(second))
    assert first in said.detail and "'k1'" in said.detail and said.errors
    happened(told, "k2", "again", second, "2026-03-01T11:30:00Z", corrects="k1", **line(second))
    assert refused(409, happened, told, "k3", "d1", first, "2026-03-01T11:31:00Z", **line(first))
    wrong = refused(409, happened, told, "k3", "d1", first, corrects="k1", **line(first))
    assert "still counts" in wrong.detail


def withdraw(recorder: Recorder, key: str, name: str, wrong: str) -> Any:
    return tell(recorder, WITHDRAWALS, key=key, decision_id=name, withdraws=wrong, reason="another parcel's")


def test_a_wrong_report_is_withdrawn_and_no_longer_counts(
    told: Recorder, make: Callable[..., Recorder], tmp_path: Path
) -> None:
    happened(told, "k1", "d1", "lost")
    tell(told, OVERRIDES, key="o1", decision_id="d1", action=None, reason="r", at="2026-03-01T11:00Z")
    receipt = withdraw(told, "w1", "d1", "k1")
    assert withdraw(told, "w1", "d1", "k1") == receipt
    told.close()
    again = make()
    assert withdraw(again, "w1", "d1", "k1") == receipt, "across a restart"
    assert [e["field"] for e in refused(409, withdraw, again, "w1", "d1", "o1").errors or []] == ["withdraws"]
    assert happened(again, "k1", "d1", "lost")["key"] == "k1", "what was recorded stays so"
    # What is not of this parcel, was never reported, is withdrawn or is itself a withdrawal cannot be withdrawn.
    for name, wrong in (("d2", "o1"), ("d1", "nix"), ("d1", "k1"), ("d1", "w1")):
        said = refused(409, withdraw, again, "w2", name, wrong)
        assert [e["field"] for e in said.errors or []] == ["withdraws"] and "still counts" in said.detail
    assert refused(409, happened, again, "k2", "d1", "delivered", corrects="k1"), "nor corrected"
    assert "no decision" in refused(404, withdraw, again, "w2", "nix", "k1").detail
    happened(again, "k2", "d1", "delivered")
    withdraw(again, "w2", "d1", "o1")
    happened(again, "k3", "d1", "done", action="add_fill")
    # With the report that is withdrawn goes what it had corrected.
    happened(again, "k4", "d2", "lost")
    happened(again, "k5", "d2", "delivered", corrects="k4")
    withdraw(again, "w3", "d2", "k5")
    written = export(again.database, tmp_path / "out")
    assert (written.rows["events"], written.gone) == (1, 0)
    events = pd.read_parquet(tmp_path / "out" / "events.parquet")
    assert events[["parcel_id", "kind"]].to_numpy().tolist() == [["P-d1", "delivered"]]
    decisions = pd.read_parquet(tmp_path / "out" / "decisions.parquet").set_index("decision_id")
    assert decisions.loc["d1", "done"] == "add_fill"
    verdict = sound(again)
    assert verdict.records == 14
    assert erase(again.database, again.paths, ("customer", "C-1"), again.clock()) == 7, "withdrawals are erased, too"
    sound(again)


def test_what_cannot_have_come_of_the_decision_is_refused(told: Recorder) -> None:
    told.record([decision("lines", lines=["l1", "l2"])])
    told.deliver()
    for at in ("2025-03-01T11:00:00Z", "1970-01-01T00:00:00Z", "2026-02-28T11:58:59Z"):
        said = refused(409, happened, told, "k", "d1", "delivered", at)
        (error,) = said.errors or []
        assert (error["field"], error["message"]) == ("happened_at", "cannot have come of this decision")
        assert "the decision was at 2026-03-01T11:59:00.000000Z" in error["allowed"]
    content = {"key": "k", "decision_id": "d1", "reason": "r"}
    assert (refused(409, tell, told, OVERRIDES, **content, at="2020-01-01T00:00Z").errors or [])[0]["field"] == "at"
    happened(told, "early", "d1", "handed_over", "2026-02-28T12:00:00Z")
    said = refused(409, happened, told, "k", "lines", "returned", "2020-03-01T11:00:00Z", line_id="l3")
    assert [e["field"] for e in said.errors or []] == ["happened_at", "line_id"]
    assert (said.errors or [])[1]["allowed"] == "l1 or l2" and "is no line of this parcel" in said.detail
    happened(told, "k", "lines", "returned", line_id="l2")
    told.clock.now += timedelta(days=3000)  # type: ignore[attr-defined]
    assert refused(409, happened, told, "late", "d1", "delivered", "2029-03-01T11:00:00Z").errors
    happened(told, "late", "d1", "delivered", "2028-03-01T11:00:00Z")


def test_what_agrees_is_accepted(told: Recorder) -> None:
    for i, kind in enumerate(("handed_over", "in_transit", "out_for_delivery", "attempt_failed", "damaged")):
        happened(told, f"a{i}", "d1", kind)
    happened(told, "b1", "d1", "attempt_failed", "2026-03-01T11:40:00Z")
    happened(told, "b2", "d1", "delivered", "2026-03-01T11:50:00Z")
    for line in ("l1", "l2"):
        happened(told, line, "d1", "returned", line_id=line, reason="wrong_size")
    assert "already" in refused(409, happened, told, "l3", "d1", "returned", line_id="l1").detail
    happened(told, "c1", "d2", "refused")
    happened(told, "c2", "d2", "returned_to_sender")


def test_what_was_done_is_said_once(told: Recorder) -> None:
    def override(key: str, name: str, action: str | None, **other: Any) -> Any:
        content = {"key": key, "decision_id": name, "action": action, "reason": "none left", "at": "2026-03-01T11:00Z"}
        return tell(told, OVERRIDES, **content, **other)

    override("o1", "d1", "package:box l")
    assert "overridden once" in refused(409, override, "o2", "d1", None).detail
    assert refused(409, happened, told, "o3", "d1", "done", action="add_fill")
    happened(told, "o4", "d1", "done", action="package:box l")
    override("o5", "d2", None)
    assert "something else" in refused(409, happened, told, "o6", "d2", "done", action="add_fill").detail
    happened(told, "o7", "d2", "done", action="add_fill", corrects="o5")
    assert refused(409, override, "o8", "d2", None)
    assert refused(409, happened, told, "o9", "d2", "delivered", corrects="o7"), "not what was done"


def fault(path: str, **content: Any) -> dict[str, Any]:
    whole = {"key": "k", "decision_id": "d"}
    whole |= (
        {"kind": "delivered", "happened_at": "2026-03-01T11:00Z"}
        if path == OUTCOMES
        else {"reason": "r", "at": "2026-03-01T11:00Z"}
    )
    body = {k: v for k, v in (whole | content).items() if v != "absent"}
    with pytest.raises(Invalid) as raised:
        read(path, json.dumps(body).encode(), NOW)
    assert raised.value.errors[0]["field"] in raised.value.detail
    return raised.value.errors[0]


@pytest.mark.parametrize(
    ("path", "content", "field", "message"),
    [
        (OUTCOMES, {"key": "absent"}, "key", "is missing"),
        (OUTCOMES, {"decision_id": ""}, "decision_id", "is empty"),
        (OUTCOMES, {"decision_id": 7}, "decision_id", "is of the wrong type"),
        (OUTCOMES, {"kind": "Delivered"}, "kind", "is not a known code"),
        (OUTCOMES, {"kind": None}, "kind", "is not a known code"),
        (OUTCOMES, {"happened_at": "2026-03-01T12:03Z"}, "happened_at", "is in the future"),
        (OUTCOMES, {"happened_at": "2026-03-01T12:00"}, "happened_at", "has no zone"),
        (OUTCOMES, {"happened_at": "absent"}, "happened_at", "is missing"),
        (OUTCOMES, {"kind": "returned"}, "line_id", "is missing"),
        (OUTCOMES, {"line_id": "l"}, "line_id", "does not go with kind delivered"),
        (OUTCOMES, {"action": "add_fill"}, "action", "does not go with kind delivered"),
        (OUTCOMES, {"kind": "done", "action": "add_fil"}, "action", "is no action"),
        (OUTCOMES, {"kind": "done", "action": "package:"}, "action", "is no action"),
        (OUTCOMES, {"reson": "x"}, "reson", "is not a known field"),
        (OUTCOMES, {"reason": "x" * 201}, "reason", "is out of bounds"),
        (OVERRIDES, {"reason": None}, "reason", "is of the wrong type"),
        (OVERRIDES, {"at": "2099-01-01T00:00Z"}, "at", "is in the future"),
        (OVERRIDES, {"kind": "lost"}, "kind", "is not a known field"),
        (WITHDRAWALS, {"at": "absent"}, "withdraws", "is missing"),
        (WITHDRAWALS, {"withdraws": "k", "reason": "absent", "at": "absent"}, "reason", "is missing"),
    ],
)
def test_a_report_that_is_wrong_is_refused_by_field(path: str, content: Any, field: str, message: str) -> None:
    said = fault(path, **content)
    assert (said["field"], said["message"]) == (field, message)
    assert said["allowed"]


def test_clocks_may_differ_a_little() -> None:
    late = fault(OUTCOMES, happened_at="2026-03-01T12:03Z")
    assert late["allowed"] == "until 2026-03-01T12:02:00.000000Z, 2 minutes after the service's clock"
    body = json.dumps({"key": "k", "decision_id": "d", "kind": "delivered", "happened_at": "2026-03-01T12:01:30Z"})
    assert read(OUTCOMES, body.encode(), NOW)["happened_at"] == "2026-03-01T12:01:30.000000Z"
    for body in ("[]", "7", "{", '{"key": NaN}'):
        with pytest.raises(Invalid):
            read(OUTCOMES, body.encode(), NOW)


# ---- erasure and retention


def everything(recorder: Recorder, url: str) -> bytes:
    """All the database holds, as bytes: of SQLite its files, of PostgreSQL the rows of all its tables."""
    if url.startswith("sqlite"):
        file = Path(str(recorder.database.url.database))
        return b"".join(p.read_bytes() for p in file.parent.glob(f"{file.name}*"))
    with recorder.database.engine.connect() as connection:
        rows = [tuple(r) for t in metadata.sorted_tables for r in connection.execute(sa.select(t))]
    return b"".join(v if isinstance(v, bytes) else str(v).encode() for row in rows for v in row)


def test_an_erased_customer_is_gone_and_the_chain_verifies(
    told: Recorder, make: Callable[..., Recorder], database_url: str
) -> None:
    told.record([decision("guest", None), decision("mine", "C-7"), decision("too", "C-7")])
    told.deliver()
    happened(told, "k7", "mine", "delivered")
    assert b"C-7" not in everything(told, database_url) and b"P-mine" not in everything(told, database_url)
    with told.database.engine.connect() as connection:
        rows = connection.execute(store.OPENED.where(store.RECORDS.c.decision_id == "mine")).mappings().all()
        sealed = [bytes(r["body"]) for r in rows] + [bytes(rows[0]["wrapped"])]
    assert all(s in everything(told, database_url) for s in sealed)

    late = make()  # a worker that acknowledged a decision of the customer before, and delivers it after
    late.record([decision("late", "C-7")])
    now = told.clock()
    assert erase(told.database, told.paths, ("customer", "C-7"), now) == 3
    assert not any(s in everything(told, database_url) for s in sealed)
    late.deliver()
    told.record([decision("new", "C-7")])
    told.deliver()

    bodies = {(r.kind, r.decision_id): r.body for r in told.database.records()}
    for gone in (("decision", "mine"), ("decision", "too"), ("outcome", "mine"), ("decision", "late")):
        assert bodies[gone] is None
    assert bodies["decision", "new"] == decision("new", "C-7"), "what is decided later is recorded anew"
    assert bodies["decision", "d1"] and bodies["decision", "guest"]
    verdict = sound(told)
    assert (verdict.erased, verdict.expired) == (4, 0)
    assert refused(410, happened, told, "k8", "mine", "lost")
    assert "was erased" in refused(410, happened, told, "k7", "mine", "delivered").detail
    assert erase(told.database, told.paths, ("order", "O-guest"), told.clock()) == 1
    assert erase(told.database, told.paths, ("customer", "nobody"), told.clock()) == 0
    assert sound(told).erased == 5


def test_old_content_passes_away_and_the_chain_verifies(told: Recorder) -> None:
    happened(told, "k1", "d1", "delivered")
    told.clock.now += timedelta(days=30)  # type: ignore[attr-defined]
    told.record([decision("young")])
    told.deliver()
    assert retain(told.database, told.paths, 20, told.clock()) == 6
    assert [r.decision_id for r in told.database.records() if r.body] == ["young"]
    assert refused(410, happened, told, "k2", "d1", "damaged")
    assert retain(told.database, told.paths, 20, told.clock()) == 0
    verdict = sound(told)
    assert (verdict.records, verdict.expired) == (8, 6)
    with pytest.raises(LedgerError, match="1 or more"):
        retain(told.database, told.paths, 0, told.clock())


def test_what_was_not_shown_is_forgotten_with_its_customer_and_with_its_retention(
    told: Recorder, make: Callable[..., Recorder]
) -> None:
    reader = Reader(lambda after: told.database.records(after, KINDS))
    late = make()
    late.record([decision("late", "C-1", shown=False)])
    told.record([decision(f"s{i}", f"C-{i % 2}", shown=False) for i in range(4)])
    told.deliver()
    assert {w.parcel_id for w in reader.read()} == {"P-s0", "P-s1", "P-s2", "P-s3"}
    erase(told.database, told.paths, ("customer", "C-1"), told.clock())
    late.deliver()
    assert {w.parcel_id for w in reader.read()} == {"P-s0", "P-s2"}
    told.clock.now += timedelta(days=30)  # type: ignore[attr-defined]
    told.record([decision("young", "C-1", shown=False)])
    told.deliver()
    assert {w.parcel_id for w in reader.read()} == {"P-s0", "P-s2", "P-young"}
    retain(told.database, told.paths, 20, told.clock())
    assert [w.parcel_id for w in reader.read()] == ["P-young"]
    assert reader.read() == Reader(lambda after: told.database.records(after, KINDS)).read()


# ---- tampering


@pytest.fixture
def small(make: Callable[..., Recorder]) -> Recorder:
    """A small ledger with a record of each kind: five decisions, two reports, an erasure, a retention, a decision."""
    recorder = make()
    recorder.record([decision(f"d{i}", f"C-{i}") for i in range(3)])
    recorder.deliver()
    happened(recorder, "k1", "d1", "delivered")
    tell(recorder, OVERRIDES, key="k2", decision_id="d2", reason="why", at="2026-03-01T11:00Z")
    erase(recorder.database, recorder.paths, ("customer", "C-0"), recorder.clock())
    recorder.clock.now += timedelta(days=10)  # type: ignore[attr-defined]
    recorder.record([decision("d3", "C-2"), decision("d4", None)])
    recorder.deliver()
    retain(recorder.database, recorder.paths, 5, recorder.clock())
    recorder.record([decision("d5", "C-5")])
    recorder.deliver()
    assert sound(recorder).records == 10
    return recorder


def changed(value: Any) -> list[Any]:
    """Values beside the one that was there: a flipped byte at each end and in the middle, emptied, or made up."""
    match value:
        case None:
            return ["2026-01-01T00:00:00.000000Z", 7]
        case int():
            return [value + 1000]
        case bytes():
            places = {0, len(value) - 1}
            return [bytes(b ^ (i == p) for i, b in enumerate(value)) for p in places] + [None]
        case _:
            places = {len(value) // 2} if value else set()
            return ["".join(chr(ord(c) ^ 1) if i == p else c for i, c in enumerate(value)) for p in places]


def test_every_changed_value_is_found_at_its_place(small: Recorder) -> None:
    engine = small.database.engine
    tried = 0
    for table in metadata.sorted_tables:
        (key,) = table.primary_key.columns
        with engine.connect() as connection:
            rows = [dict(r) for r in connection.execute(sa.select(table)).mappings()]
        for row in rows:
            for column in table.columns:
                for value in changed(row[column.name]):
                    if not fits(column, value):
                        continue
                    with engine.begin() as connection:
                        loosened(connection)
                        connection.execute(table.update().where(key == row[key.name]).values({column.name: value}))
                    verdict = verify(small.database, small.paths.heads)
                    case = f"{table.name}.{column.name} of {row[key.name]}: {row[column.name]!r} -> {value!r}"
                    assert not verdict.ok, case
                    if table.name == "records" and column.name != "seq":
                        assert row["seq"] in {f.seq for f in verdict.findings}, (case, verdict.findings)
                    back = value if column is key else row[key.name]
                    with engine.begin() as connection:
                        loosened(connection)
                        connection.execute(table.update().where(key == back).values({column.name: row[column.name]}))
                    tried += 1
    assert tried > 100
    sound(small)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_text_that_is_no_text_any_more_is_found_and_can_be_said(small: Recorder) -> None:
    """SQLite keeps any bytes as text; a flipped one may leave what is no UTF-8."""
    tried = 0
    for table in metadata.sorted_tables:
        (key,) = table.primary_key.columns
        for column in (c for c in table.columns if isinstance(c.type, sa.String)):
            for damaged in ("CAST(x'b87e' AS TEXT)", "x'b87e'", "7"):
                with small.database.engine.begin() as connection:
                    loosened(connection)
                    was = connection.execute(sa.select(key, column).order_by(key.desc())).first()
                    assert was is not None
                    change = f"UPDATE {table.name} SET {column.name} = {damaged} WHERE {key.name} = ?"
                    connection.exec_driver_sql(change, (was[0],))
                verdict = verify(small.database, small.paths.heads)
                assert not verdict.ok, (table.name, column.name, damaged)
                assert all(f.what.encode() for f in verdict.findings)
                with small.database.engine.begin() as connection:
                    loosened(connection)
                    connection.execute(table.update().where(key == was[0]).values({column.name: was[1]}))
                tried += 1
    assert tried > 30
    sound(small)


def fits(column: Any, value: Any) -> bool:
    """Whether a value can be put into the column at all."""
    kind = {str: sa.String, int: sa.Integer, bytes: sa.LargeBinary}.get(type(value))
    return (
        column.nullable
        if value is None
        else isinstance(column.type, kind or ()) or (kind is sa.Integer and isinstance(column.type, sa.BigInteger))
    )


def loosened(connection: sa.Connection) -> None:
    """Whoever tampers does not mind foreign keys."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET session_replication_role = replica"))
    else:
        connection.exec_driver_sql("COMMIT" if connection.connection.dbapi_connection.in_transaction else "SELECT 1")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")


def tampered(small: Recorder, change: Callable[[sa.Connection, sa.Table], None]) -> Any:
    with small.database.engine.begin() as connection:
        loosened(connection)
        change(connection, store.RECORDS)
    verdict = verify(small.database, small.paths.heads)
    assert not verdict.ok
    return verdict


def test_a_deleted_record_is_named(small: Recorder) -> None:
    verdict = tampered(small, lambda c, r: c.execute(r.delete().where(r.c.seq == 4)))
    assert [f.what for f in verdict.findings] == ["record 4 is missing, and was signed", "record 4 is missing"] or {
        f.what for f in verdict.findings
    } == {"record 4 is missing", "record 4 is missing, and was signed"}


def test_swapped_records_are_named(small: Recorder) -> None:
    def swap(connection: sa.Connection, records: sa.Table) -> None:
        for old, new in ((2, -1), (3, 2), (-1, 3)):
            connection.execute(records.update().where(records.c.seq == old).values(seq=new))

    verdict = tampered(small, swap)
    assert {2, 3} <= {f.seq for f in verdict.findings}


@pytest.mark.parametrize("head", [True, False], ids=["with the head", "rows only"])
def test_a_tail_that_was_cut_off_is_named(small: Recorder, head: bool) -> None:
    def cut(connection: sa.Connection, records: sa.Table) -> None:
        last = connection.scalar(sa.select(records.c.hash).where(records.c.seq == 8))
        connection.execute(records.delete().where(records.c.seq > 8))
        if head:
            connection.execute(store.HEAD.update().values(seq=8, hash=last))

    verdict = tampered(small, cut)
    assert any("records 9 to 10 are missing, cut from the tail" in f.what for f in verdict.findings)


def test_a_chain_that_was_computed_anew_is_caught_by_the_signed_heads_alone(small: Recorder) -> None:
    small.paths.heads.rename(small.paths.heads.with_name("kept"))

    def forge(connection: sa.Connection, records: sa.Table) -> None:
        """As somebody with the whole database and its code would: another body, and every hash after it anew."""
        rows = [dict(r) for r in connection.execute(sa.select(records).order_by(records.c.seq)).mappings()]
        name = connection.scalar(sa.select(store.HEAD.c.ledger))
        prev = genesis(str(name))
        for row in rows:
            if row["seq"] == 5:
                row["recorded_at"] = "2026-01-01T00:00:00.000000Z"
            row["prev"] = prev
            row["hash"] = prev = chained(row)
            connection.execute(records.update().where(records.c.seq == row["seq"]).values(row))
        connection.execute(store.HEAD.update().values(hash=prev))

    verdict = tampered(small, forge)
    assert [f.what.split(": ", 1)[1][:16] for f in verdict.findings] == ["no signed heads:"], "sound but for that"
    verdict = verify(small.database, small.paths.heads.with_name("kept"))
    assert verdict.findings[0].seq == 5 and "is not the one that was signed" in verdict.findings[0].what


def test_content_that_is_gone_without_a_record_of_it_is_tampering(small: Recorder) -> None:
    verdict = tampered(small, lambda c, r: c.execute(r.update().where(r.c.seq == 10).values(body=None)))
    assert [(f.seq, f.what) for f in verdict.findings] == [
        (10, "record 10 has lost its content, and no erasure or retention is recorded")
    ]


def test_every_flipped_byte_of_the_heads_is_found(tmp_path: Path) -> None:
    keys, ledger, file = Secrets.load_or_make(tmp_path / "key", Disk()), "0" * 32, tmp_path / "heads"
    for seq in (1, 2):
        Heads(file).append(keys, ledger, seq, digest(b"%d" % seq), "2026-03-01T12:00:00.000000Z")
    whole = file.read_bytes()
    assert [h.fault for h in Heads(file).read(ledger, keys.public)] == ["", ""]
    assert [h.fault for h in Heads(file).read("1" * 32, keys.public)] == ["it is of another ledger"] * 2
    for i in range(len(whole)):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        faults = [h for h in Heads(file).read(ledger, keys.public) if h.fault]
        assert faults and faults[0].line in (whole[:i].count(b"\n") + 1, whole[:i].count(b"\n") + 2), i
    file.write_bytes(whole[:-5])
    assert [h.fault for h in Heads(file).read(ledger, keys.public)] == ["", "is cut short"]


def flipped(recorder: Recorder, step: int) -> int:
    """Flip bytes of the SQLite file, one at a time; each is found, or the rows are what they were."""
    recorder.close()
    file = Path(str(recorder.database.url.database))
    for rest in file.parent.glob(f"{file.name}-*"):
        rest.unlink()
    whole = file.read_bytes()

    def rows() -> Any:
        connection = sqlite3.connect(file)
        try:
            return [connection.execute(f"SELECT * FROM {t}").fetchall() for t in (*metadata.tables, "alembic_version")]
        finally:
            connection.close()

    before, found = rows(), 0
    for i in range(0, len(whole), step):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        database = Database(f"sqlite:///{file}", recorder.secrets)
        verdict = verify(database, recorder.paths.heads)
        database.close()
        for rest in file.parent.glob(f"{file.name}-*"):
            rest.unlink()
        found += not verdict.ok
        if verdict.ok:
            file.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
            assert rows() == before, f"byte {i} changed a row, and was not found"
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_flipped_bytes_of_the_database_file_are_found(small: Recorder) -> None:
    assert flipped(small, 499) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_flipped_byte_of_the_database_file_is_found(small: Recorder) -> None:
    assert flipped(small, 1) > 5_000


# ---- out of it again


def test_an_export_is_part_of_a_dataset(told: Recorder, tmp_path: Path) -> None:
    happened(told, "k1", "d1", "lost", reason="never scanned")
    happened(told, "k2", "d1", "delivered", "2026-03-01T11:30:00Z", corrects="k1")
    happened(told, "k3", "d1", "returned", "2026-03-01T11:40:00Z", line_id="L-d1", reason="wrong_size")
    happened(told, "k4", "d2", "done", action="add_fill")
    happened(told, "k6", "d0", "done", action="package:box_l")
    tell(told, OVERRIDES, key="k5", decision_id="d3", action=None, reason="no time", at="2026-03-01T11:00Z")
    erase(told.database, told.paths, ("customer", "C-4"), told.clock())
    told.record([decision("idle", action=None, arm="none", propensity=1.0, net_benefit=None, bundle=None)])
    told.deliver()
    out = tmp_path / "shop"
    names = ["d0", "d1", "d2", "d3", "idle"]
    ordered = pd.Timestamp("2026-03-01T10:00Z")
    orders = pd.DataFrame({"order_id": [f"O-{n}" for n in names], "ordered_at": ordered})
    parcels = pd.DataFrame({"parcel_id": [f"P-{n}" for n in names], "order_id": orders["order_id"]})
    lines = pd.DataFrame({"line_id": [f"L-{n}" for n in names], "order_id": orders["order_id"], "sku": "s"})
    Dataset.from_frames({"orders": orders, "parcels": parcels, "order_lines": lines}, Settings()).save(out)
    written = export(told.database, out)
    assert (dict(written.rows), written.gone) == ({"decisions": 5, "events": 1, "returns": 1, "changes": 0}, 1)
    report = check(out)
    assert report.ok, report.render()
    assert not [f for f in report.findings if f.table in ("decisions", "returns")], report.render()
    tables = Dataset.open(out).tables
    decisions = tables["decisions"].set_index("decision_id")
    assert decisions["done"].to_dict() == {
        "d0": "package:box_l",
        "d1": None,
        "d2": "add_fill",
        "d3": None,
        "idle": None,
    }
    assert decisions["known_at"].notna().to_dict() == {"d0": True, "d1": False, "d2": True, "d3": True, "idle": False}
    assert decisions["before"].to_dict() == {"d0": "bag", "d1": "0.4", "d2": "0.4", "d3": "0.4", "idle": None}
    assert decisions.loc["d3", "override_reason"] == "no time"
    assert decisions.loc["d0", ["arm", "propensity", "action", "policy"]].tolist() == [
        "act",
        0.9,
        "add_fill",
        "ba9876543210",
    ]
    event = tables["events"].iloc[0]
    assert (event["kind"], event["parcel_id"]) == ("delivered", "P-d1")
    assert event["known_at"].to_pydatetime().replace(microsecond=0) == NOW, "when it was reported"
    assert tables["returns"]["reason"].tolist() == ["wrong_size"]


def test_an_export_of_nothing_has_its_columns(tmp_path: Path) -> None:
    recorder = Recorder(f"sqlite:///{tmp_path}/ledger.db", paths(tmp_path))
    recorder.database.open()
    export(recorder.database, tmp_path / "out")
    recorder.close()
    assert {"parcel_id", "kind", "happened_at"} <= set(pd.read_parquet(tmp_path / "out" / "events.parquet"))


def test_the_commands(told: Recorder, tmp_path: Path, database_url: str) -> None:
    files = ["--key", str(told.paths.key), "--heads", str(told.paths.heads)]

    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(main, ["ledger", *arguments], env={"DOORSTEP_LEDGER": database_url})
        assert done.exit_code == status, done.output
        return done.output

    assert "sound: 5 records (0 erased, 0 past their retention), 1 signed heads" in run("verify", database_url, *files)
    assert json.loads(run("verify", *files, "--json"))["ok"]
    assert "5 decisions, 0 events, 0 returns" in run("export", *files, "--out", str(tmp_path / "out"))
    assert "1 records of this customer lost" in run("erase", *files, "--customer", "C-2")
    assert "is the id right?" in run("erase", *files, "--order", "O-2")
    assert "name one of" in run("erase", *files, status=2)
    assert "4 records older than 1 days lost" in run("retain", *files, "--days", "1")
    assert "1 erased, 4 past" in run("verify", *files)
    with told.database.engine.begin() as connection:
        connection.execute(store.RECORDS.update().where(store.RECORDS.c.seq == 3).values(decision_id="other"))
    assert "record 3 was changed: its hash is not that of its content" in run("verify", *files, status=1)
    assert "key file is not there" in run("verify", "--key", str(tmp_path / "nix"), status=2)
    assert "no such file" in run("verify", f"sqlite:///{tmp_path}/nix.db", *files, status=2)
    assert not (tmp_path / "nix.db").exists()


def test_what_still_lies_in_a_journal_is_told_and_what_a_dead_worker_left_is_delivered(
    told: Recorder, make: Callable[..., Recorder], tmp_path: Path, database_url: str
) -> None:
    files = ["--key", str(told.paths.key), "--heads", str(told.paths.heads), "--journal", str(told.paths.journal)]

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(main, ["ledger", *arguments, database_url, *files, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    living, dead = make(), make()
    living.record([decision("living"), decision("d1", "C-1")])  # d1 is there already: its file was not emptied in time
    dead.record([decision("left-1"), decision("left-2")])
    dead.journal.close()
    assert run("verify")["waiting"] == 3
    said = CliRunner().invoke(main, ["ledger", "verify", database_url, *files])
    assert f"not in it: 3 decisions that still lie in {told.paths.journal}" in said.output and said.exit_code == 0
    out = tmp_path / "out"
    written = run("export", "--out", str(out))
    assert (written["rows"]["decisions"], written["delivered"], written["waiting"]) == (7, 2, 1)
    assert "left-2" in set(pd.read_parquet(out / "decisions.parquet")["decision_id"])
    assert (
        "not in it: 1 decisions"
        in CliRunner().invoke(main, ["ledger", "export", database_url, *files, "--out", str(out)]).output
    )
    living.deliver()
    written = run("export", "--out", str(out))
    assert (written["rows"]["decisions"], written["delivered"], written["waiting"]) == (8, 0, 0)
    assert run("verify")["waiting"] == 0
    sound(told)


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
