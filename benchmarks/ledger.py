"""What the ledger costs, and whether it loses anything when it is killed, on SQLite and on a real PostgreSQL.

    python benchmarks/ledger.py [--seconds 3] [--kills 100] [--json]

First, on the disk of the temporary folder: how long a packer waits for a batch of decisions to be recorded (one write
and one sync, whatever the database), how many decisions a second go from the journal to each database, and how many a
second are verified. Then processes that record without a pause are killed with SIGKILL, one after the other, and so is
PostgreSQL with all its processes under two of them; what was acknowledged is held against what is there. The status is
1 if anything is lost, twice, out of order, or not sound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ledgers.kills import kill_postgres, kill_workers  # noqa: E402
from ledgers.load import decision, paths  # noqa: E402
from ledgers.postgres import postgres  # noqa: E402

from serving.ledger import Recorder  # noqa: E402
from serving.ledger.verify import verify  # noqa: E402


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def waits(url: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Milliseconds until a batch is recorded, by its size; nothing is delivered meanwhile."""
    out: dict[str, Any] = {}
    recorder = Recorder(url, paths(folder))
    for size in (1, 8, 32):
        took: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            batch = [decision(f"w{size}-{len(took)}-{i}", f"C-{i}") for i in range(size)]
            start = time.perf_counter()
            recorder.record(batch)
            took.append(1000 * (time.perf_counter() - start))
        median = statistics.median(took)
        out[str(size)] = {"median_ms": median, "p99_ms": quantile(took, 0.99), "per_second": 1000 * size / median}
    recorder.close()
    return out


def deliveries(url: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Decisions a second from the journal to the database, and through a verification."""
    recorder = Recorder(url, paths(folder))
    took, count = 0.0, 0
    while took < seconds:
        recorder.record([decision(f"d{count + i}", f"C-{(count + i) % 700}") for i in range(2000)])
        start = time.perf_counter()
        recorder.deliver()
        took += time.perf_counter() - start
        count += 2000
    single: list[float] = []
    for i in range(50):
        recorder.record([decision(f"s{i}")])
        start = time.perf_counter()
        recorder.deliver()
        single.append(1000 * (time.perf_counter() - start))
    start = time.perf_counter()
    verdict = verify(recorder.database, recorder.paths.heads)
    checked = time.perf_counter() - start
    recorder.close()
    return {
        "delivered_per_second": count / took,
        "alone_median_ms": statistics.median(single),
        "verified_per_second": verdict.records / checked,
        "sound": verdict.ok,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name, postgres() as server:
        folder = Path(name)
        report["recorded"] = waits(f"sqlite:///{folder}/waits.db", folder / "waits", given.seconds)
        for kind, url in (("sqlite", f"sqlite:///{folder}/ledger.db"), ("postgresql", server.empty())):
            report[kind] = deliveries(url, folder / kind, given.seconds)
        if given.kills:
            report["kills"] = {}
            for kind, url in (("sqlite", f"sqlite:///{folder}/killed.db"), ("postgresql", server.empty())):
                print(f"killing {given.kills} processes that record to {kind}", file=sys.stderr)
                report["kills"][f"workers, {kind}"] = kill_workers(url, folder / f"killed-{kind}", given.kills)
            print(f"killing PostgreSQL {given.kills} times", file=sys.stderr)
            report["kills"]["the database, postgresql"] = kill_postgres(server, folder / "server", given.kills)
    if given.json:
        print(json.dumps(report, indent=1))
        return 0
    print(f"{'decisions in a batch':24}{'median':>10}{'p99':>10}{'a second':>12}")
    for size, r in report["recorded"].items():
        print(f"{size:24}{r['median_ms']:7.2f} ms{r['p99_ms']:7.2f} ms{r['per_second']:12,.0f}")
    for kind in ("sqlite", "postgresql"):
        r = report[kind]
        print(
            f"{kind}: {r['delivered_per_second']:,.0f} decisions a second from journal to database, one alone in "
            f"{r['alone_median_ms']:.1f} ms; {r['verified_per_second']:,.0f} a second verified"
        )
    for what, (acknowledged, records) in report.get("kills", {}).items():
        print(
            f"{what} killed {given.kills} times: {acknowledged:,} acknowledged, {records:,} there, none lost or twice"
        )
    return 0 if all(report[kind]["sound"] for kind in ("sqlite", "postgresql")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
