"""What advice costs in time: the same service asked about the same parcels with a policy and without, in one run.

    python benchmarks/actions.py [--parcels 20000] [--seconds 6] [--rate 15] [--rounds 3] [--json]

Makes a simulated shop and trains it (once; kept in benchmarks/out/load, shared with benchmarks/load.py) and a policy of
8 packages and 4 carriers, so that a parcel has 7 other packages and up to 3 other carriers to be weighed. Servers with
and without it take turns, each under the two loads of benchmarks/load.py. Figures are the middle of the rounds. The
status is 1 if a request fails, or the answers with advice take more than twice the processor time or twice the median
latency of those without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from load import OUT, closed_loop, measure, prepare, probabilities, server, usable  # noqa: E402

PACKAGES = 8


def policy_of(directory: Path) -> Path:
    """The drafted policy of the shop with so many packages: half-levels between those it has."""
    import tomllib

    import tomli_w

    from features.dataset import Dataset
    from serving.policy import Policy
    from training.policy import draft

    document = tomllib.loads(draft(Dataset.open(directory / "world")))
    packages = document["packages"]
    for name in list(packages)[: PACKAGES - len(packages)]:
        own = packages[name]
        packages[f"{name}_plus"] = own | {k: own[k] + 0.5 for k in ("protection_level", "volume_factor")}
    file = directory / "policy.toml"
    file.write_text(tomli_w.dumps(document), encoding="utf-8")
    policy = Policy.load(file)
    assert len(policy.packages) == PACKAGES and len({c for c, _ in policy.carriers}) >= 4
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parcels", type=int, default=20_000, help="parcels of the simulated shop (default 20000)")
    parser.add_argument("--seconds", type=float, default=6, help="how long each load lasts (default 6)")
    parser.add_argument("--rate", type=float, default=15, help="requests per second of the steady load (default 15)")
    parser.add_argument("--clients", type=int, default=4, help="clients of the closed loop (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default 3)")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    args = parser.parse_args()

    directory = OUT / str(args.parcels)
    OUT.mkdir(parents=True, exist_ok=True)
    if not usable(directory):
        prepare(directory, args.parcels)
    file = policy_of(directory)
    requests = json.loads((directory / "requests.json").read_text())["doorstep"]
    bodies = [json.dumps(r).encode() for r in requests]
    command = [sys.executable, "-c", "from serving.server import run; run(port={port})"]

    figures: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    weighed: dict[str, float] = {}
    for turn in range(args.rounds):
        for name in ("without", "with") if turn % 2 == 0 else ("with", "without"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            env = {
                "DOORSTEP_BUNDLE": str(directory / "run" / "bundle"),
                "DOORSTEP_SNAPSHOT": str(directory / "snapshot"),
                "DOORSTEP_POLICY": str(file) if name == "with" else "",
                "PYTHONPATH": str(ROOT),
                "BENTOML_DO_NOT_TRACK": "true",
            }
            print(f"round {turn + 1}, {name} a policy: {2 * args.seconds:.0f} seconds and a little", file=sys.stderr)
            with server([word.format(port=port) for word in command], port, **env) as (process, _):
                answers = asyncio.run(probabilities(port, "/v1/risk", bodies[:50]))
                if name == "with":
                    weighed = {
                        kind: statistics.mean(sum(o["action"].startswith(kind) for o in a["actions"]) for a in answers)
                        for kind in ("package:", "carrier:", "")
                    }
                    assert not any(a["degraded"] for a in answers) and all(a["packages"] for a in answers)
                asyncio.run(closed_loop(port, "/v1/risk", bodies, clients=args.clients, seconds=1))
                figures[name].append(asyncio.run(measure(process, port, "/v1/risk", bodies, args)))

    middle: dict[str, dict[str, float]] = {
        name: {k: statistics.median(f[k] for f in rounds) for k in rounds[0]} for name, rounds in figures.items()
    }
    times = {k: middle["with"][k] / middle["without"][k] for k in ("processor_ms", "p50_ms", "p95_ms", "p99_ms")}
    times["requests_per_second"] = middle["without"]["requests_per_second"] / middle["with"]["requests_per_second"]
    document: dict[str, Any] = {**middle, "times": times, "weighed": weighed, "rounds": figures}
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        print(f"{'':10}{'requests/s':>12}{'CPU each':>10}{'p50':>10}{'p95':>10}{'p99':>10}{'memory':>10}")
        for name, f in middle.items():
            quantiles = "".join(f"{f[q]:>7.1f} ms" for q in ("p50_ms", "p95_ms", "p99_ms"))
            speed = f"{f['requests_per_second']:>12.1f}{f['processor_ms']:>7.1f} ms"
            print(f"{name:10}{speed}{quantiles}{f['memory_mb']:>7.0f} MB")
        order = ("requests_per_second", "processor_ms", "p50_ms", "p95_ms", "p99_ms")
        print("times     " + "".join(f"{times[k]:>{w}.2f}" for k, w in zip(order, (12, 10, 10, 10, 10), strict=True)))
        print(
            f"weighed per parcel: {weighed['package:']:.1f} other packages, {weighed['carrier:']:.1f} other carriers, "
            f"{weighed['']:.1f} actions in all"
        )
    failed = sum(f["failed"] for rounds in figures.values() for f in rounds)
    return int(bool(failed) or times["processor_ms"] > 2 or times["p50_ms"] > 2)


if __name__ == "__main__":
    sys.exit(main())
