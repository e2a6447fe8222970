"""The bento: what is deployed carries serving and features only, and runs where no training library is installed."""

import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import TypeAdapter
from services import WATCHED

from serving.schemas import EXAMPLE, Answer

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("mlflow", "shap", "sklearn", "lightgbm", "pandera", "scipy", "matplotlib", "training")

# What Python runs first: such libraries, this checkout and other machines are out of reach.
BARE = f"""
import os, socket, sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.path = [p for p in sys.path if os.path.realpath(p or ".") != {str(ROOT)!r}]
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "") + repr(f)]
sys.meta_path.insert(0, Absent)

{WATCHED}"""


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A bento built as the documentation says, and the environment to run it in."""
    home = tmp_path_factory.mktemp("bentoml")
    (home / "bin").mkdir()
    # `bentoml build` looks for uv, and downloads it if there is none, although it locks nothing here.
    (home / "bin" / "uv").write_text("#!/bin/sh\nexit 1\n")
    (home / "bin" / "uv").chmod(0o755)
    (home / "bare").mkdir()
    (home / "bare" / "sitecustomize.py").write_text(BARE)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOORSTEP_", "PROMETHEUS_", "BENTOML_", "PYTHON"))}
    env = {
        **kept,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "true",
        "OUTSIDE": str(home / "outside"),
        "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]]),
    }
    command = [sys.executable, "-m", "bentoml", "build", str(ROOT), "--output", "tag"]
    built = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    name, _, version = built.stdout.strip().removeprefix("__tag__:").partition(":")
    yield home / "bentos" / name / version, env


def test_it_holds_serving_and_features_and_nothing_else(bento: tuple[Path, dict[str, str]]) -> None:
    path, _ = bento
    there = {p.relative_to(path / "src") for p in (path / "src").rglob("*") if p.is_file()}
    ours = {p.relative_to(ROOT) for package in ("features", "serving") for p in (ROOT / package).rglob("*.py")}
    of_pages = ("static", "templates", "texts")
    ours |= {p.relative_to(ROOT) for part in of_pages for p in (ROOT / "serving" / "pages" / part).iterdir()}
    assert there - ours == {Path("bentofile.yaml"), Path("LICENSE"), Path("constraints.txt")}
    assert ours <= there


def test_it_asks_for_the_base_dependencies_only(bento: tuple[Path, dict[str, str]]) -> None:
    path, _ = bento
    asked = (path / "env" / "python" / "requirements.txt").read_text().splitlines()
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line for line in asked if not line.startswith("bentoml==")] == base
    assert yaml.safe_load((path / "bento.yaml").read_text())["service"] == "serving.service:Doorstep"


def test_it_answers_where_no_training_library_is_installed(bento: tuple[Path, dict[str, str]], trained: Any) -> None:
    path, env = bento
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {
        **env,
        "PYTHONPATH": str(Path(env["BENTOML_HOME"]) / "bare"),
        "DOORSTEP_BUNDLE": str(trained.bundle),
        "DOORSTEP_SNAPSHOT": str(trained.snapshot),
    }
    for module in ABSENT:
        tried = subprocess.run([sys.executable, "-c", f"import {module}"], env=env, cwd=path, capture_output=True)
        assert b"ModuleNotFoundError" in tried.stderr
    command = [sys.executable, "-m", "bentoml", "serve", str(path), "--host", "127.0.0.1", "--port", str(port)]
    log = path.parent / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, cwd=path, stdout=out, stderr=out, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            deadline = time.monotonic() + 60
            while True:
                try:
                    if http.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            response = http.post("/v1/risk", json=EXAMPLE)
            assert response.status_code == 200
            body = response.json()
            TypeAdapter(Answer).validate_python(body)
            assert not body["degraded"]
            # the guard stands in front here too
            assert http.post("/v1/risk", json={}).json()["errors"][0]["field"] == "order"
            assert http.post("/v1/risk", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
            counted = [
                f'doorstep_predictions_total{{bundle="{body["bundle"]}",target="{t}"}} 1.0' for t in body["risks"]
            ]
            assert set(counted) <= set(http.get("/metrics").text.splitlines())
            assert http.get("/docs.json").json()["info"]["version"] == path.name
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    assert not Path(env["OUTSIDE"]).exists()
    assert "Traceback" not in log.read_text()
