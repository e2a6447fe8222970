"""The whole way, as its users go it: train, register, promote, serve, score, roll back, with nothing said outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from features import Dataset
from features.contracts import TABLES
from serving.store import resolve
from training import train
from training.cli import main
from training.registry import Registry
from training.world import generate

FLAGS = {c.name for t in TABLES.values() for c in t.columns if c.kind == "flag"}


def doorstep(*words: str | Path) -> str:
    done = CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def plain(row: pd.Series, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row of a table as a request gives it."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name in without or pd.isna(value):
            continue
        if isinstance(value, pd.Timestamp):
            out[name] = value.isoformat()
        elif name in FLAGS:
            out[name] = bool(value)
        else:
            out[name] = value.item() if hasattr(value, "item") else value
    return out


def requests_of(folder: Path, most: int) -> list[dict[str, Any]]:
    """The latest parcels of a dataset, as the bench would have asked for them."""
    tables = Dataset.open(folder).tables
    parcels = tables["parcels"].sort_values("packed_at").tail(most)
    orders = tables["orders"].set_index("order_id", drop=False)
    lines = dict(list(tables["order_lines"].groupby("parcel_id")))
    none = tables["order_lines"].iloc[:0]
    return [
        {
            "order": plain(orders.loc[p["order_id"]]),
            "parcel": plain(p, ("order_id",)),
            "lines": [plain(x, ("order_id", "parcel_id")) for _, x in lines.get(p["parcel_id"], none).iterrows()],
        }
        for _, p in parcels.iterrows()
    ]


def test_a_thousand_parcels_get_the_same_answer_from_the_command_and_over_http(
    trained: Any, loaded: Any, tmp_path: Path
) -> None:
    scores = tmp_path / "scores.parquet"
    doorstep("score", trained.dataset, "--bundle", trained.bundle, "--out", scores)
    table = pd.read_parquet(scores)
    said = table.set_index(["target", "unit_id"])["probability"]
    teams = [c for c in table.columns if c.startswith("team_")]
    np.testing.assert_allclose(table["base"] + table[teams].sum(axis=1), table["probability"], rtol=0, atol=1e-9)

    asked = requests_of(trained.dataset, 1000)
    answers = []
    for start in range(0, len(asked), 250):
        reply = loaded.http.post("/v1/risk/batch", json=asked[start : start + 250])
        assert reply.status_code == 200, reply.text[:500]
        answers += reply.json()
    assert len(answers) == 1000
    compared = 0
    for answer in answers:
        assert answer["degraded"] is False
        risks = [((name, answer["parcel_id"]), risk) for name, risk in answer["risks"].items()]
        risks += [(("returned", line["line_id"]), line) for line in answer["returns"]]
        for at, risk in risks:
            assert abs(risk["probability"] - said[at]) <= 1e-12, at
            assert abs(risk["base"] + sum(risk["teams"].values()) - risk["probability"]) < 1e-9
            assert abs(risk["base"] + sum(d["points"] for d in risk["drivers"]) - risk["probability"]) < 1e-9
            compared += 1
    assert compared > 5000


def test_one_parcel_at_a_time_is_the_batch_to_the_last_bit(trained: Any, loaded: Any) -> None:
    asked = requests_of(trained.dataset, 25)
    together = loaded.http.post("/v1/risk/batch", json=asked).json()
    for one, expected in zip(asked, together, strict=True):
        assert loaded.http.post("/v1/risk", json=one).json() == expected


@pytest.fixture(scope="module")
def challenger(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A second training, on a smaller world."""
    folder = tmp_path_factory.mktemp("second")
    data = generate(folder / "shop", parcels=4_000, seed=3)
    return train(Dataset.open(data), out=folder / "run", seed=1)


def test_a_running_service_follows_promote_and_rollback_without_a_failed_request(
    trained: Any, result: Any, challenger: Any, run_service: Any, tmp_path: Path
) -> None:
    uri, store = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "deploy"
    registry = Registry(uri)
    registry.log(result)
    doorstep("promote", "--mlflow-uri", uri, "--publish", store)
    question = requests_of(trained.dataset, 1)[0]
    answered: list[tuple[int, str]] = []
    with run_service(DOORSTEP_BUNDLE=store, DOORSTEP_SNAPSHOT=trained.snapshot) as service:
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as http:
                while not stop.is_set():
                    reply = http.post("/v1/risk", json=question)
                    answered.append((reply.status_code, reply.json().get("bundle", "")))

        def serves(bundle: str) -> None:
            give_up = time.monotonic() + 60
            while answered[-1:] != [(200, bundle)]:
                assert time.monotonic() < give_up, f"{bundle} is not served; last answers {answered[-3:]}"
                time.sleep(0.05)

        first, second = (json.loads((r.bundle_dir / "manifest.json").read_text())["seal"] for r in (result, challenger))
        assert first != second
        names = [_name(r.bundle_dir) for r in (result, challenger)]
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            serves(names[0])
            version = registry.log(challenger).version
            asked = ("promote", str(version), "--mlflow-uri", uri, "--publish", str(store))
            refused = CliRunner().invoke(main, asked)
            assert refused.exit_code == 1, "it has learned from a third as much, in a shop of its own"
            assert f"not promoted: version {version} is " in refused.stderr
            assert "challenger  champion  difference" in refused.stdout
            assert answered[-1] == (200, names[0])
            doorstep(*asked, "--force")
            serves(names[1])
            doorstep("rollback", "--mlflow-uri", uri, "--publish", store)
            serves(names[0])
            assert files(resolve(store)) == files(result.bundle_dir), "the bundle before, bit for bit"
        finally:
            stop.set()
            asking.join()
    assert {status for status, _ in answered} == {200}
    listed = json.loads(doorstep("models", "--mlflow-uri", uri, "--json"))
    assert [(v["aliases"], v["gate"]) for v in listed] == [([], "forced"), (["champion"], "")]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _name(bundle: Path) -> str:
    from serving import Bundle

    return Bundle.load(bundle).name


GUARD = """
import os, socket

HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0")

def _watched(connect):
    def refusing(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in HERE:
            with open(os.environ["OUTSIDE"], "a") as f:
                print(address, file=f)
            raise OSError("outside sockets are refused in tests")
        return connect(self, address, *rest)
    return refusing

socket.socket.connect = _watched(socket.socket.connect)
socket.socket.connect_ex = _watched(socket.socket.connect_ex)
_resolve = socket.getaddrinfo

def getaddrinfo(host, *rest, **more):
    if host not in (None, "", *HERE, socket.gethostname()):
        with open(os.environ["OUTSIDE"], "a") as f:
            print("looked up", host, file=f)
        raise socket.gaierror("outside names are refused in tests")
    return _resolve(host, *rest, **more)

socket.getaddrinfo = getaddrinfo
"""


def test_nothing_phones_home_from_training_to_the_tracking_page(tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    outside = tmp_path / "outside"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOORSTEP_", "BENTOML_", "MLFLOW_"))}
    env = {**kept, "PYTHONPATH": str(guard), "OUTSIDE": str(outside), "HOME": str(tmp_path)}
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "training.cli", *words]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            command,
            env={**env, "PYTHONPATH": f"{guard}{os.pathsep}{root}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    run("world", "shop", "--parcels", "3000")
    run("train", "shop", "--mlflow-uri", uri)
    run("promote", "--mlflow-uri", uri)
    run("snapshot", "shop")

    with _free_port() as port:
        words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        settings = Path(__file__).resolve().parents[2] / "mlflow" / "server.env"
        given = dict(x.split("=", 1) for x in settings.read_text().splitlines() if "=" in x and not x.startswith("#"))
        server = subprocess.Popen(
            words, env={**env, **given}, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            page = _page(f"http://127.0.0.1:{port}/")
            assert "<html" in page.lower()
        finally:
            server.terminate()
            server.wait(30)
    assert not outside.exists(), outside.read_text()


class _free_port:
    """A port that nobody listens on just now."""

    def __enter__(self) -> int:
        import socket

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return int(s.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        return None


def _page(url: str) -> str:
    give_up = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return str(reply.read().decode())
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
