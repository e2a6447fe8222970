"""What becomes of records: erased, out of retention, exported, and what a dead worker left."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from ledgers.load import NOW, decision, paths
from ledgers.recorders import OVERRIDES, happened, refused, sound, tell

from features.dataset import Dataset
from features.settings import Settings
from serving.ledger import LedgerError, Recorder, store
from serving.ledger.export import export
from serving.ledger.store import metadata
from serving.ledger.upkeep import erase, retain
from serving.pages.shadow import KINDS, Reader
from training.check import check
from training.cli import main


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
    # Its key file would lie beside it: what is misspelt is named, not that.
    for command in (["verify"], ["export", "--out", str(tmp_path / "no")]):
        said = run(command[0], f"sqlite:///{tmp_path}/nix.db", *command[1:], status=2)
        assert "nix.db: there is no such file: name the ledger's database" in said
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
