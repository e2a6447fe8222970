"""Processes that record without a pause, and a database, killed with SIGKILL; nothing acknowledged may be missing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ledgers.load import paths
from serving.ledger import Recorder
from serving.ledger.verify import verify

ROOT = Path(__file__).resolve().parents[2]


class Writer:
    """A process that records without a pause; what it was told is recorded is read from its pipe."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.name = name
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ledgers.load", url, str(folder), name],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.acknowledged = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.acknowledged = int(line)

    def wait_for(self, count: int) -> None:
        """Until so many are acknowledged."""
        until = time.monotonic() + 120
        while self.acknowledged < count:
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.002)

    def kill(self) -> set[str]:
        """kill -9; the decisions it was told are recorded."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return {f"{self.name}-{i}" for i in range(self.acknowledged)}


def settled(url: str, folder: Path, acknowledged: set[str]) -> tuple[int, int]:
    """Start once more, and hold the database against what was acknowledged.

    Returns:
        How many decisions were acknowledged, and how many are there.
    """
    recorder = Recorder(url, paths(folder))
    recorder.deliver()
    names = [str(r.decision_id) for r in recorder.database.records()]
    assert not acknowledged - set(names), f"lost: {sorted(acknowledged - set(names))[:5]}"
    assert len(names) == len(set(names)), "something is there twice"
    for writer in {n.rpartition("-")[0] for n in names}:
        numbers = [int(n.rpartition("-")[2]) for n in names if n.rpartition("-")[0] == writer]
        assert numbers == list(range(len(numbers))), "a worker's are in its order"
    verdict = verify(recorder.database, recorder.paths.heads)
    assert verdict.ok, verdict.findings
    recorder.close()
    return len(acknowledged), len(names)


def kill_workers(url: str, folder: Path, times: int) -> tuple[int, int]:
    """Two workers at a time, one after the other killed while it records."""
    acknowledged: set[str] = set()
    chance = random.Random(times)
    living = [Writer(url, folder, "w0")]
    for i in range(1, times + 1):
        living.append(Writer(url, folder, f"w{i}"))
        oldest = living.pop(0)
        oldest.wait_for(chance.randint(5, 400))
        acknowledged |= oldest.kill()
    for writer in living:
        acknowledged |= writer.kill()
    return settled(url, folder, acknowledged)


def kill_postgres(server: Any, folder: Path, times: int) -> tuple[int, int]:
    """Kill the database, with all its processes, under two workers that go on recording."""
    url = server.empty()
    acknowledged: set[str] = set()
    chance = random.Random(times)
    writers = [Writer(url, folder, f"w{i}") for i in range(2)]
    for writer in writers:
        writer.wait_for(5)
    for _ in range(times):
        time.sleep(chance.uniform(0.05, 0.5))
        server.kill()
        seen = writers[0].acknowledged
        writers[0].wait_for(seen + 50)  # the bench is answered while there is no database
        server.start()
    for writer in writers:
        acknowledged |= writer.kill()
    return settled(url, folder, acknowledged)
