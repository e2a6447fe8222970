"""Decisions to record, and a writer in a process of its own that says what was acknowledged to it."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.ledger import LedgerError, Paths, Recorder

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def decision(name: str, customer: str | None = "C-1", **other: Any) -> dict[str, Any]:
    """A decision as the service makes them."""
    return {
        "decision_id": name,
        "decided_at": "2026-03-01T11:59:00.000000Z",
        "parcel_id": f"P-{name}",
        "order_id": f"O-{name}",
        "customer_id": customer,
        "inputs": "0" * 64,
        "bundle": "0123456789ab",
        "as_of": "2026-02-28T00:00:00.000000Z",
        "policy": "ba9876543210",
        "degraded": False,
        "probabilities": {"late": 0.125, "damaged": 0.03, "returned": [0.2]},
        "actions": [{"action": "add_fill", "net_benefit": 0.4, "saving": 0.5, "cost": 0.1}],
        "action": "add_fill",
        "arm": "act",
        "propensity": 0.9,
        "net_benefit": 0.4,
        "before": {"package": "bag", "add_fill": "0.4"},
        **other,
    }


def paths(folder: Path) -> Paths:
    """A ledger's files in a folder."""
    return Paths(folder / "journal", folder / "key", folder / "heads")


def main() -> None:
    """Record batches until killed; each acknowledged batch is a line on stdout: first and last number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.003)
    given = parser.parse_args()
    recorder = Recorder(given.url, paths(given.folder))
    recorder.start()
    number = 0
    while True:
        batch = [decision(f"{given.name}-{number + i}", f"C-{i}") for i in range(given.batch)]
        try:
            recorder.record(batch)
        except LedgerError as error:
            print(error, file=sys.stderr)
            continue
        number += given.batch
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        time.sleep(given.pause)


if __name__ == "__main__":
    main()
