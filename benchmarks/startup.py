"""How long a person waits for `doorstep --help`, and a container for a worker that answers.

python benchmarks/startup.py [--runs 7]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import click


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("doorstep"), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def ready_seconds(bundle: Path, snapshot: Path) -> float:
    """From the start of the process to its first answer from the model."""
    words = [
        Path(sys.executable).with_name("doorstep"),
        "serve",
        "--port",
        "0",
        "--bundle",
        bundle,
        "--snapshot",
        snapshot,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if "Doorstep answers on " in line:
                url = line.split("Doorstep answers on ")[1].split(",")[0].split(" ")[0].rstrip(".\n")
                break
        question = {"order": {"order_id": "1", "ordered_at": "2025-03-01T08:10:00Z"}, "parcel": {"parcel_id": "1"}}
        request = urllib.request.Request(
            f"{url}/v1/risk", data=json.dumps(question).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply)["degraded"] is False
        return time.perf_counter() - start
    finally:
        process.terminate()
        process.communicate()


@click.command()
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Runs after one warm-up.")
def main(runs: int) -> None:
    """Median start-up times; the aims are 0.25 s and 3 s."""
    from features import Dataset
    from features.snapshot import Snapshot
    from training import train
    from training.world import generate

    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    with tempfile.TemporaryDirectory() as work:
        click.echo("training a small world", err=True)
        data = Dataset.open(generate(Path(work) / "shop", parcels=12_000, seed=7))
        result = train(data, out=Path(work) / "run")
        Snapshot.from_dataset(data).save(Path(work) / "snapshot")
        for name, aim, measure in (
            ("doorstep --help", 0.25, help_seconds),
            ("first answer of doorstep serve", 3.0, lambda: ready_seconds(result.bundle_dir, Path(work) / "snapshot")),
        ):
            taken = [measure() for _ in range(runs + 1)][1:]
            spread = f"from {min(taken):.2f} to {max(taken):.2f}; aim {aim} s"
            click.echo(f"{name:32} median {statistics.median(taken):.2f} s  ({spread})")


if __name__ == "__main__":
    main()
