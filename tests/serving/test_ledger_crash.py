"""What kill -9 and a power loss leave: nothing that was acknowledged is lost, nothing is corrupt, nothing is twice."""

import logging
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ledgers.kills import kill_postgres, kill_workers
from ledgers.load import NOW, decision, paths
from ledgers.powerloss import Log, Recorded, clear, state

from serving.ledger import Recorder, store
from serving.ledger.verify import verify

MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Story:
    """What was done to the files of a ledger, and where they are."""

    log: Log
    folder: Path


@pytest.fixture
def fast(tmp_path: Path) -> Any:
    """A folder in memory, if there is such: thousands of files are made, and syncing them shows nothing here."""
    folder = MEMORY / f"doorstep-{os.getpid()}-{tmp_path.name}" if os.access(MEMORY, os.W_OK) else tmp_path / "fast"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def happens(folder: Path, batches: int = 60, seed: int = 1) -> Story:
    """A worker records, delivers now and then, and takes reports; all it does to files is recorded."""
    folder.mkdir()
    recorded = Recorded(folder, "ledger.db")
    recorder = Recorder(
        f"sqlite:///{folder}/ledger.db", paths(folder), clock=lambda: NOW, disk=recorded.disk, connect=recorded.connect
    )
    recorder.journal.segment = 20_000
    chance = random.Random(seed)
    number = 0
    for batch in range(batches):
        names = [f"d{number + i}" for i in range(chance.randint(1, 6))]
        number += len(names)
        recorder.record([decision(n, f"C-{chance.randint(0, 5)}") for n in names])
        recorded.log.ack(*names)
        if chance.random() < 0.5:
            recorder.deliver()
            if chance.random() < 0.5:
                report = {"key": f"k{batch}", "decision_id": names[0], "kind": "delivered"}
                recorder.report("/v1/outcomes", report | {"happened_at": "2026-03-01T11:59:30.000000Z"})
                recorded.log.ack(f"k{batch}")
    recorder.close()
    return Story(recorded.log, folder)


def after(story: Story, seed: int, to: Path) -> str:
    """What is wrong after a power loss at some moment and a start; empty if nothing is."""
    chance = random.Random(seed)
    moment = chance.randint(0, len(story.log))
    clear(to)
    acknowledged = state(story.log, moment, chance, story.folder, to)
    shutil.copy(story.folder / "key", to / "key")  # made, and synced, before anything was acknowledged
    recorder = Recorder(f"sqlite:///{to}/ledger.db", paths(to), clock=lambda: NOW)
    try:
        recorder.deliver()
        names = [str(r.decision_id) if r.kind == "decision" else r.body["key"] for r in recorder.database.records()]  # type: ignore[index]
        verdict = verify(recorder.database, recorder.paths.heads)
    finally:
        recorder.close()
    lost = sorted(acknowledged - set(names))
    if lost:
        return f"state {seed}, after {moment} operations: lost {lost}"
    if len(names) != len(set(names)):
        return f"state {seed}: something is there twice"
    return "" if verdict.ok else f"state {seed}: {verdict.findings}"


def wrong(story: Story, seeds: range, to: Path) -> list[str]:
    logging.disable(logging.CRITICAL)  # every torn tail is said, as it should be
    try:
        return [found for seed in seeds if (found := after(story, seed, to))]
    finally:
        logging.disable(logging.NOTSET)


def test_a_power_loss_loses_nothing_and_leaves_nothing_corrupt(fast: Path) -> None:
    story = happens(fast / "ledger")
    kinds = {op.what for op in story.log}
    assert kinds == {"create", "write", "truncate", "sync", "remove", "sync_folder", "ack"}
    assert len({op.path for op in story.log if op.path.endswith((".db", "-wal"))}) == 2, "SQLite's writes are recorded"
    assert wrong(story, range(60), fast / "after") == []


def test_the_same_states_lose_decisions_where_sqlite_does_not_sync(fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store.PRAGMAS, "synchronous", 1)  # NORMAL; and the assertion at the start with it
    story = happens(fast / "ledger")
    assert any("lost" in found for found in wrong(story, range(60), fast / "after"))


def test_the_same_states_lose_decisions_where_the_journal_does_not_sync(
    fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ledgers.powerloss import RecordingDisk

    monkeypatch.setattr(RecordingDisk, "sync", lambda self, file: None)
    story = happens(fast / "ledger")
    assert any("lost" in found for found in wrong(story, range(60), fast / "after"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_states_after_a_power_loss(fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(4):
        story = happens(fast / f"ledger-{part}", batches=30 * (part + 1), seed=part)
        assert wrong(story, range(part * 250, part * 250 + 250), fast / "after") == []
    monkeypatch.setitem(store.PRAGMAS, "synchronous", 1)
    lost = [found for found in wrong(happens(fast / "lax"), range(1000), fast / "after") if "lost" in found]
    assert len(lost) > 20


def test_workers_killed_under_load_lose_nothing(database_url: str, tmp_path: Path) -> None:
    acknowledged, records = kill_workers(database_url, tmp_path, 2)
    assert records >= acknowledged > 15


def test_a_database_killed_under_load_loses_nothing(server: Any, tmp_path: Path) -> None:
    acknowledged, records = kill_postgres(server, tmp_path, 1)
    assert records >= acknowledged > 50
