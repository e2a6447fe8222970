"""Whatever is changed in a ledger is found, at its place."""

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ledgers.load import decision
from ledgers.recorders import OVERRIDES, happened, sound, tell

from serving.ledger import Recorder, store
from serving.ledger.journal import Disk
from serving.ledger.seals import Heads, Secrets, chained, digest, genesis
from serving.ledger.store import Database, metadata
from serving.ledger.upkeep import erase, retain
from serving.ledger.verify import verify


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
