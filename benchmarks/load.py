"""Doorstep against what one would write instead (benchmarks/peer), asked about the same parcels in one run.

    python benchmarks/load.py [--parcels 20000] [--seconds 10] [--rate 50] [--clients 4] [--json]

Makes a simulated shop and trains it (once; kept in benchmarks/out/load), then starts each server as one process and
puts two loads on it from this one, all sharing the same cores: a closed loop of a few clients, each asking again as
soon as it is answered (requests per second), and a steady rate whatever the answers take, each request timed from when
it was due, so that a server that stalls is charged for everybody who would have waited. On a machine that is busy with
other things look at the processor time per request, which suffers least. The peer runs as it comes, and once more with
LightGBM told to use one thread (`tuned`), which it should be for single rows. The status is 1 if the probabilities
differ by more than 1e-6, if a request fails, or if Doorstep does not answer five times as many as the peer as it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

OUT = ROOT / "benchmarks" / "out" / "load"
ASKED = 500
"""Parcels that are asked about, the newest ones, round and round."""


class Client:
    """One kept-alive HTTP/1.1 connection: little more than the socket, to leave the cores to the server."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "

    async def open(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        self.writer.write(f"{self.head}{len(body)}\r\n\r\n".encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)

    def close(self) -> None:
        self.writer.close()


async def closed_loop(port: int, path: str, bodies: list[bytes], *, clients: int, seconds: float) -> dict[str, float]:
    """Requests per second that `clients` get out of the server."""
    until = time.perf_counter() + seconds
    done = failed = 0

    async def one(first: int) -> None:
        nonlocal done, failed
        client = await Client(port, path).open()
        i = first
        while time.perf_counter() < until:
            status, _ = await client.ask(bodies[i % len(bodies)])
            done += status == 200
            failed += status != 200
            i += clients
        client.close()

    start = time.perf_counter()
    await asyncio.gather(*(one(i) for i in range(clients)))
    return {"requests_per_second": done / (time.perf_counter() - start), "answered": done, "failed": failed}


async def steady(port: int, path: str, bodies: list[bytes], *, rate: float, seconds: float) -> dict[str, float]:
    """Latency in milliseconds at `rate` requests per second."""
    idle: list[Client] = [await Client(port, path).open() for _ in range(4)]
    latencies: list[float] = []
    failed = 0

    async def one(due: float, body: bytes) -> None:
        nonlocal failed
        client = idle.pop() if idle else await Client(port, path).open()
        try:
            status, _ = await client.ask(body)
        except (asyncio.IncompleteReadError, ConnectionError):  # it was idle for so long that the server closed it
            client = await Client(port, path).open()
            status, _ = await client.ask(body)
        latencies.append((time.perf_counter() - due) * 1000)
        failed += status != 200
        idle.append(client)

    start = time.perf_counter()
    tasks = []
    for i in range(int(rate * seconds)):
        due = start + i / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due, bodies[i % len(bodies)])))
    await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    latencies.sort()
    quantiles = {f"p{q}_ms": latencies[min(len(latencies) - 1, len(latencies) * q // 100)] for q in (50, 95, 99)}
    return {**quantiles, "failed": failed}


def prepare(directory: Path, parcels: int) -> None:
    """A trained world, the peer's models, and the same parcels as each service wants to be asked for them."""
    import joblib
    import lightgbm
    import numpy as np
    from sklearn.preprocessing import LabelEncoder

    from features.dataset import Dataset
    from features.matrix import values
    from features.rows import Rows
    from features.snapshot import Snapshot
    from serving.bundle import REASON, Bundle
    from serving.score import _tables
    from serving.windows import NAME as WINDOW
    from serving.windows import PARTS
    from training.pipeline import train
    from training.world import generate

    print(f"preparing a simulated shop of {parcels:,} parcels and its models, some minutes", file=sys.stderr)
    part = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    dataset = Dataset.open(generate(part / "world", parcels=parcels, seed=1))
    snapshot = Snapshot.from_dataset(dataset)
    snapshot.save(part / "snapshot")
    bundle = Bundle.load(train(dataset, out=part / "run", seed=0).bundle_dir)

    def fitted(model: Any, name: str, objective: str, classes: int = 0) -> Any:
        """A scikit-learn model of LightGBM's with the trees of a model text of the bundle."""
        text = (part / "run" / "bundle" / "models" / f"{name}.txt").read_text()
        if objective == "binary" and "\nobjective=" not in text:  # fitted by a loss of its own, it would give scores
            text = text.replace("\nfeature_names=", "\nobjective=binary sigmoid:1\nfeature_names=", 1)
        booster = lightgbm.Booster(model_str=text)
        model._Booster, model._objective, model.fitted_ = booster, objective, True
        model._n_features = model._n_features_in = booster.num_feature()
        if classes:
            model._classes, model._n_classes = np.arange(classes), classes
            model._le = LabelEncoder().fit(range(classes))
        return model

    models: dict[str, Any] = {
        "targets": {
            name: (
                model.features.unit,
                model.features.names,
                fitted(lightgbm.LGBMClassifier(), name, "binary", 2),
            )
            for name, model in bundle.targets.items()
        },
        "reasons": None,
        "window": None,
    }
    if bundle.reasons is not None:
        k = len(bundle.reasons.reasons)
        classifier = fitted(lightgbm.LGBMClassifier(), REASON, "multiclass", k)
        models["reasons"] = list(bundle.reasons.reasons), bundle.reasons.features.names, classifier
    if bundle.window is not None:
        quantiles = [fitted(lightgbm.LGBMRegressor(), f"{WINDOW}_{of}", "quantile") for of in PARTS]
        models["window"] = bundle.window.features.names, quantiles
    joblib.dump(models, part / "peer.joblib")
    each = [model for _, _, model in models["targets"].values()]
    each += [models["reasons"][2]] if models["reasons"] else []
    for model in each + (models["window"][1] if models["window"] else []):
        model.n_jobs = 1
    joblib.dump(models, part / "peer-tuned.joblib")

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        times = {k: v.isoformat() for k, v in row.items() if hasattr(v, "isoformat") and v == v}
        return {k: times.get(k, v) for k, v in row.items() if v is not None and v == v}

    tables = {name: dataset.tables[name].to_dict("records") for name in ("orders", "parcels", "order_lines")}
    flags = {"is_business", "documents_complete"}
    rows = [{k: bool(v) if k in flags else v for k, v in plain(r).items()} for r in tables["parcels"]]
    orders = {r["order_id"]: {k: bool(v) if k in flags else v for k, v in plain(r).items()} for r in tables["orders"]}
    lines: dict[str, list[dict[str, Any]]] = {}
    for r in tables["order_lines"]:
        lines.setdefault(r["parcel_id"], []).append(plain(r))
    newest = sorted((r for r in rows if "packed_at" in r), key=lambda r: r["packed_at"])[-ASKED:]
    requests = [{"order": orders[r["order_id"]], "parcel": r, "lines": lines.get(r["parcel_id"], [])} for r in newest]

    peers = []
    for request in requests:
        joined = Rows(_tables([request], snapshot), snapshot)
        peer: dict[str, Any] = {"parcel": {}, "lines": [{} for _ in request["lines"]]}
        for unit in ("parcel", "line"):
            every = bundle.columns(unit)
            for i, row in enumerate(values(joined, every).tolist()):
                features = {k: None if math.isnan(v) else v for k, v in zip(every.names, row, strict=True)}
                (peer["parcel"] if unit == "parcel" else peer["lines"][i]).update(features)
        peers.append(peer)
    calibration = {n: (m.slope, m.intercept) for n, m in bundle.targets.items()}
    (part / "requests.json").write_text(json.dumps({"doorstep": requests, "peer": peers, "calibration": calibration}))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(part, directory)


def usable(directory: Path) -> bool:
    """Whether `prepare` was here, with features that still compute the same."""
    from features.files import ArtefactError
    from serving.bundle import Bundle

    try:
        Bundle.load(directory / "run" / "bundle")
    except ArtefactError:
        return False
    return (directory / "peer-tuned.joblib").exists()


@contextmanager
def server(command: list[str], port: int, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A server process, and the seconds from its start to its first answer."""
    start = time.perf_counter()
    log = OUT / f"{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stdout=out, stderr=out)
    try:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                if process.poll() is not None or time.perf_counter() - start > 120:
                    raise SystemExit(f"the server did not start:\n{log.read_text()}") from None
                time.sleep(0.02)
            finally:
                connection.close()
        yield process, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def memory(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of the process in MB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS")


def processor(process: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time the process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(
    process: subprocess.Popen[bytes], port: int, path: str, bodies: list[bytes], args: argparse.Namespace
) -> dict[str, float]:
    """All figures of one server."""
    await closed_loop(port, path, bodies, clients=args.clients, seconds=2)  # warm
    before = processor(process)
    closed = await closed_loop(port, path, bodies, clients=args.clients, seconds=args.seconds)
    used = 1000 * (processor(process) - before) / closed.pop("answered")
    held = await steady(port, path, bodies, rate=args.rate, seconds=args.seconds)
    failed = closed.pop("failed") + held.pop("failed")
    return {**closed, "processor_ms": used, **held, "memory_mb": memory(process), "failed": failed}


async def probabilities(port: int, path: str, bodies: list[bytes]) -> list[dict[str, Any]]:
    """The answers to the bodies."""
    client = await Client(port, path).open()
    answers = [json.loads((await client.ask(body))[1]) for body in bodies]
    client.close()
    return answers


def disagreement(ours: list[Any], theirs: list[Any], calibration: dict[str, tuple[float, float]]) -> float:
    """Largest difference between the served probabilities and the peer's, which are calibrated here."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        pairs = [(name, risk["probability"], b[name]["probability"]) for name, risk in a["risks"].items()]
        for line, other in zip(a["returns"], b.get("returned", []), strict=True):
            pairs.append(("returned", line["probability"], other["probability"]))
        for name, p, raw in pairs:
            slope, intercept = calibration[name]
            z = intercept + slope * math.log(raw / (1 - raw))
            worst = max(worst, abs(p - 1 / (1 + math.exp(-z))))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parcels", type=int, default=100_000, help="parcels of the simulated shop (default 100000)")
    parser.add_argument("--seconds", type=float, default=10, help="how long each load lasts (default 10)")
    parser.add_argument("--rate", type=float, default=50, help="requests per second of the steady load (default 50)")
    parser.add_argument("--clients", type=int, default=4, help="clients of the closed loop (default 4)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes of Doorstep (default 1); memory is the first's"
    )
    parser.add_argument("--fresh", action="store_true", help="make the shop and its models anew")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    args = parser.parse_args()

    directory = OUT / str(args.parcels)
    OUT.mkdir(parents=True, exist_ok=True)
    if args.fresh or not usable(directory):
        prepare(directory, args.parcels)
    made = json.loads((directory / "requests.json").read_text())
    bodies = {name: [json.dumps(r).encode() for r in made[name]] for name in ("doorstep", "peer")}

    peer = [
        "-m",
        "uvicorn",
        "--app-dir",
        "benchmarks/peer",
        "service:app",
        "--log-level",
        "warning",
        "--port",
        "{port}",
    ]
    ours = ["-c", f"from serving.server import run; run(port={{port}}, workers={args.workers})"]
    figures: dict[str, dict[str, float]] = {}
    answers: dict[str, list[Any]] = {}
    for name, command, path in (("peer", peer, "/risk"), ("tuned", peer, "/risk"), ("doorstep", ours, "/v1/risk")):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        env = {
            "PEER_MODELS": str(directory / ("peer-tuned.joblib" if name == "tuned" else "peer.joblib")),
            "DOORSTEP_BUNDLE": str(directory / "run" / "bundle"),
            "DOORSTEP_SNAPSHOT": str(directory / "snapshot"),
            "PYTHONPATH": str(ROOT),
            "BENTOML_DO_NOT_TRACK": "true",
        }
        asked = bodies["doorstep" if name == "doorstep" else "peer"]
        for attempt in range(3):
            print(f"{name}: answering for {2 * args.seconds:.0f} seconds and a little", file=sys.stderr)
            line = [sys.executable, *(word.format(port=port) for word in command)]
            try:
                with server(line, port, **env) as (process, ready):
                    answers[name] = asyncio.run(probabilities(port, path, asked[:50]))
                    if name == "doorstep" and any(a["degraded"] for a in answers[name]):
                        raise SystemExit(f"doorstep served base rates: {answers[name][0]['warnings']}")
                    figures[name] = {"ready_seconds": ready, **asyncio.run(measure(process, port, path, asked, args))}
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                # The peer's process now and then dies under load, in native code; ours may not.
                if name == "doorstep" or attempt == 2:
                    raise
                print(f"{name}: the server died under load; once more", file=sys.stderr)

    worst = disagreement(answers["doorstep"], answers["peer"], made["calibration"])
    times = {
        name: figures["doorstep"]["requests_per_second"] / figures[name]["requests_per_second"]
        for name in ("peer", "tuned")
    }
    document = {**figures, "times_as_many": times, "largest_disagreement": worst}
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        print(f"{'':10}{'ready':>8}{'requests/s':>12}{'CPU each':>10}{'p50':>10}{'p95':>10}{'p99':>10}{'memory':>10}")
        for name, f in figures.items():
            quantiles = "".join(f"{f[q]:>7.1f} ms" for q in ("p50_ms", "p95_ms", "p99_ms"))
            speed = f"{f['requests_per_second']:>12.1f}{f['processor_ms']:>7.1f} ms"
            print(f"{name:10}{f['ready_seconds']:>6.1f} s{speed}{quantiles}{f['memory_mb']:>7.0f} MB")
        print(f"requests/s from {args.clients} clients; quantiles at {args.rate:g} requests/s held steady")
        print(
            f"Doorstep answers {times['peer']:.1f} times as many as the peer, {times['tuned']:.1f} times the tuned one;"
        )
        print(f"the probabilities differ by at most {worst:.1e}")
    failed = sum(f["failed"] for f in figures.values())
    return int(bool(failed) or worst > 1e-6 or times["peer"] < 5)


if __name__ == "__main__":
    sys.exit(main())
