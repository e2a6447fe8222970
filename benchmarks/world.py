"""How long a simulated shop takes to make, and how much memory: its tables and its truth.

    python benchmarks/world.py [--parcels 1000000] [--scenario plain] [--json]

Aim: 1,000,000 parcels in under two minutes and 4 GB on two cores. The status is 1 if that is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parcels", type=int, default=1_000_000, help="parcels (default 1000000)")
    parser.add_argument("--scenario", default="plain", help="a shipped scenario or a file (default plain)")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = ["world", "-q", folder, "--parcels", str(args.parcels), "--scenario", args.scenario]
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "training.cli", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - started
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    figures = {"parcels": args.parcels, "seconds": seconds, "peak_gb": gigabytes, "on_disk_mb": size / 1e6}
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        print(
            f"{args.parcels:,} parcels, tables and truth: {seconds:.1f} s, {gigabytes:.2f} GB of memory at most, "
            f"{size / 1e6:.0f} MB on disk"
        )
    return int(seconds > 120 * args.parcels / 1e6 + 5 or gigabytes > 4)


if __name__ == "__main__":
    sys.exit(main())
