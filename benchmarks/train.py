"""How long a whole training takes, part by part, and how much memory: every target, its baselines and its judging.

    python benchmarks/train.py [--parcels 1000000] [--json]

The simulated shop is made once and kept in benchmarks/out. The training runs in a process of its own, from reading the
tables to the written bundle, without MLflow. What is known so far lies in benchmarks/out/train-PARCELS.json.

Aim: 1,000,000 parcels, or fewer, in under 10 minutes and 6 GB on two cores. The status is 1 if that is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
AIM_SECONDS, AIM_GB = 600.0, 6.0


def gigabytes() -> float:
    """Most memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Clock:
    """Times the parts of a training by what it says it is doing, those of targets fitted side by side each for itself.

    Args:
        file: what is known so far is written here after every part.
        parcels: size of the shop.
    """

    def __init__(self, file: Path, parcels: int) -> None:
        self.file, self.parcels = file, parcels
        self.parts: list[dict[str, Any]] = []
        self.begun: dict[int, tuple[str, float, float]] = {}
        self.lock = threading.Lock()
        self.start = time.perf_counter()

    def __call__(self, text: str) -> None:
        """A part begins, and with it the one before in this thread ends."""
        name = re.sub(r"\s*\b\d[\d,.]*( of \d+)?", "", text).split(",")[0].strip()
        with self.lock:
            self._end()
            self.begun[threading.get_ident()] = name, time.perf_counter(), time.thread_time()
        print(f"{time.perf_counter() - self.start:7.1f} s  {text}", file=sys.stderr, flush=True)

    def done(self) -> dict[str, Any]:
        """The last part has ended; all figures."""
        with self.lock:
            self._end()
        return self.figures() | {"complete": True}

    def figures(self) -> dict[str, Any]:
        """What is known so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "parcels": self.parcels,
            "complete": False,
            "seconds": time.perf_counter() - self.start,
            "processor_seconds": used.ru_utime + used.ru_stime,
            "peak_gb": gigabytes(),
            "parts": self.parts,
        }

    def _end(self) -> None:
        part = self.begun.pop(threading.get_ident(), None)
        if part is None or part[0].endswith(": fitted"):  # from here on its thread waits
            return
        name, since, used = part
        # Seconds end on the clock of the wall, processor seconds are those of the thread that fits the target.
        spent = {"seconds": time.perf_counter() - since, "thread_seconds": time.thread_time() - used}
        self.parts.append({"part": name, **spent, "peak_gb_so_far": gigabytes()})
        write(self.file, self.figures())


def write(file: Path, figures: dict[str, Any]) -> None:
    """Write the figures whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=2) + "\n")
    os.replace(part, file)


def measure(folder: Path, file: Path, parcels: int) -> None:
    """Train in this process, writing the figures as they come."""
    from features import Dataset
    from training import train

    clock = Clock(file, parcels)
    clock("reading the tables")
    dataset = Dataset.open(folder)
    with tempfile.TemporaryDirectory(dir=file.parent) as out:
        result = train(dataset, out=Path(out) / "run", progress=clock)
        figures = clock.done()
        figures["targets"] = {
            name: {
                "train_rows": target["train"]["rows"],
                "holdout_rows": target["holdout"]["rows"],
                "trees": result.targets[name].params["num_trees"],
                "features": len(target["features"]),
                "auc": target["metrics"]["auc"],
                "log_loss": target["metrics"]["log_loss"],
                "baselines": {b: found["log_loss"]["value"] for b, found in target["baselines"].items()},
            }
            for name, target in result.metrics["targets"].items()
            if target["status"] == "trained"
        }
    write(file, figures)


def shop(parcels: int) -> Path:
    """The simulated shop, made unless it is there."""
    folder = OUT / f"plain-{parcels}"
    if not (folder / "dataset.toml").exists():
        print(f"simulating {parcels:,} parcels", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "training.cli", "world", "-q", str(folder), "--parcels", str(parcels)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parcels", type=int, default=1_000_000, help="parcels (default 1000000)")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    file = OUT / f"train-{args.parcels}.json"
    if args.one:
        measure(args.one, file, args.parcels)
        return 0
    OUT.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", str(shop(args.parcels)), "--parcels", str(args.parcels)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    figures = json.loads(file.read_text())
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        print("\n| part | seconds | of its thread | peak GB so far |\n|---|---:|---:|---:|")
        for part in figures["parts"]:
            print("| {part} | {seconds:.1f} | {thread_seconds:.1f} | {peak_gb_so_far:.2f} |".format(**part))
        print("\n| target | rows | holdout | trees | features | AUC | log loss |\n|---|---:|---:|---:|---:|---:|---:|")
        for name, t in figures["targets"].items():
            print(
                f"| `{name}` | {t['train_rows']:,} | {t['holdout_rows']:,} | {t['trees']} | {t['features']} "
                f"| {t['auc']['value']:.4f} | {t['log_loss']['value']:.5f} |"
            )
        print(
            f"\n{args.parcels:,} parcels: {figures['seconds']:.0f} s, {figures['processor_seconds']:.0f} of the "
            f"processors, {figures['peak_gb']:.2f} GB at most; the aim for 1,000,000 is {AIM_SECONDS:.0f} s and "
            f"{AIM_GB:.0f} GB on two cores"
        )
    aim = AIM_SECONDS * max(1.0, args.parcels / 1e6)  # fewer parcels have more folds: their time is no share of it
    return int(figures["seconds"] > aim or figures["peak_gb"] > AIM_GB)


if __name__ == "__main__":
    sys.exit(main())
