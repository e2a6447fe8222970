"""The ledger behind the service: decisions are durable before the answer leaves, reports over HTTP, restarts, kills."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ledgers.load import paths
from oracles.dataset import shop
from pydantic import TypeAdapter

from serving.ledger import Recorder
from serving.ledger.verify import verify
from serving.schemas import Problem, Receipt
from training.policy import draft

OUTCOME = {"kind": "delivered", "happened_at": "2025-03-03T10:00:00Z"}


def request(parcel: str) -> dict[str, Any]:
    return {"order": {"order_id": "o", "ordered_at": "2025-03-01T08:10:00Z"}, "parcel": {"parcel_id": parcel}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy; without a model it decides that nothing is worth doing, which is a decision, too."""
    file = tmp_path_factory.mktemp("policy") / "policy.toml"
    file.write_text(draft(shop(1, 60, extras=False)), encoding="utf-8")
    return file


def settings(folder: Path, url: str, policy: Path) -> dict[str, str]:
    files = paths(folder)
    names = {
        "DOORSTEP_POLICY": policy,
        "DOORSTEP_LEDGER": url,
        "DOORSTEP_JOURNAL": files.journal,
        "DOORSTEP_LEDGER_KEY": files.key,
    }
    return {k: str(v) for k, v in (names | {"DOORSTEP_LEDGER_HEADS": files.heads}).items()}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    document: dict[str, Any] = response.json()
    TypeAdapter(Problem).validate_python(document)
    return document


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_decisions_and_reports_over_http_and_across_a_restart(
    run_service: Callable[..., Any], tmp_path: Path, database_url: str, policy: Path
) -> None:
    env = settings(tmp_path, database_url, policy)
    with run_service(**env) as service:
        post = service.http.post
        p1, p2 = (post("/v1/risk", json=request(p)).json() for p in ("p1", "p2"))
        batch = post("/v1/risk/batch", json=[request(f"b{i}") for i in range(40)]).json()
        assert not [w for a in (p1, p2, *batch) for w in a["warnings"] if "recorded" in w]
        ids = [a["advice"]["decision_id"] for a in (p1, p2, *batch)]
        outcome = OUTCOME | {"decision_id": ids[0]}
        first = post("/v1/outcomes", json={"key": "k1", **outcome})
        assert first.status_code == 200, first.text
        TypeAdapter(Receipt).validate_python(first.json())
        override = {
            "key": "k2",
            "decision_id": ids[1],
            "action": None,
            "reason": "no fill",
            "at": OUTCOME["happened_at"],
        }
        assert post("/v1/overrides", json=override).status_code == 200

        said = problem(post("/v1/outcomes", json={"key": "k3", **outcome, "decision_id": "nix"}), 404)
        assert "nix" in said["detail"]
        said = problem(post("/v1/outcomes", json={"key": "k1", **outcome, "kind": "lost"}), 409)
        assert said["type"] == "urn:problem-type:doorstep:conflict"
        assert said["errors"][0]["field"] == "kind"
        assert problem(post("/v1/outcomes", json={"key": "k3", **outcome, "kind": "lost"}), 409)["errors"]
        said = problem(post("/v1/outcomes", json={"key": "k3", **outcome, "happened_at": "2199-01-01T00:00Z"}), 400)
        assert said["errors"][0]["message"] == "is in the future"
        assert problem(post("/v1/overrides", json={}), 400)
        withdrawal = {"key": "k4", "decision_id": ids[1], "withdraws": "k2", "reason": "another station's"}
        assert TypeAdapter(Receipt).validate_python(post("/v1/withdrawals", json=withdrawal).json())["key"] == "k4"
        metrics = service.metrics()
        assert metrics["doorstep_recorded_total"] == 42
        assert metrics['doorstep_refused_total{status="409"}'] == 2
        docs = service.http.get("/docs.json").json()["paths"]
        assert f"ledger: {database_url}\n" in service.log
        assert docs["/v1/outcomes"]["post"]["requestBody"]["content"]["application/json"]["example"]["kind"]
    with run_service(**env, WORKERS="2") as service:
        again = service.http.post("/v1/outcomes", json={"key": "k1", **outcome})
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert "Traceback" not in service.log
    recorder = Recorder(database_url, paths(tmp_path))
    recorded = {str(r.decision_id): r.body for r in recorder.database.records() if r.kind == "decision"}
    assert list(recorded) == ids, "in the order in which they were answered"
    body = recorded[ids[0]]
    assert body is not None and (body["parcel_id"], body["policy"], body["arm"]) == ("p1", p1["policy"], "none")
    assert verify(recorder.database, recorder.paths.heads).ok
    recorder.close()


def test_a_service_without_a_ledger_imports_none_of_it_and_says_so(bare: Any) -> None:
    said = problem(bare.http.post("/v1/outcomes", json={"key": "k", "decision_id": "d", **OUTCOME}), 404)
    assert "DOORSTEP_LEDGER" in said["detail"]
    assert "ledger: none: decisions are not recorded\n" in bare.log
    code = (
        "import sys, serving.service, training.cli; "
        "print([m for m in ('sqlalchemy', 'alembic', 'cryptography', 'psycopg') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HINDERED = """
import os, time
from serving.guard import Refused
from serving.ledger import Recorder, journal

write, report = journal.Disk.write, Recorder.report

def full(self, file, data, at):
    if b'"p2"' in data:
        raise OSError(28, "No space left on device")
    write(self, file, data, at)

def slow(self, path, content):
    if content["decision_id"] != "slow":
        return report(self, path, content)
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.02)
    raise Refused(503, "slow")

journal.Disk.write, Recorder.report = full, slow
"""
"""The disk is full for what is said of p2, and the database keeps reports about the decision `slow` waiting."""


def test_the_packer_is_answered_whatever_becomes_of_the_record(
    run_service: Callable[..., Any], tmp_path: Path, policy: Path
) -> None:
    env = settings(tmp_path, f"postgresql://nobody@/nothing?host={tmp_path}", policy)  # down from the start
    with run_service(**env) as service:
        post = service.http.post
        answer = post("/v1/risk", json=request("p1")).json()
        assert not [w for w in answer["warnings"] if "recorded" in w], "it is kept"
        outcome = {"key": "k", **OUTCOME, "decision_id": answer["advice"]["decision_id"]}
        said = post("/v1/outcomes", json=outcome)
        assert "does not answer" in problem(said, 503)["detail"] and said.headers["retry-after"] == "2"
    env = settings(tmp_path, f"sqlite:///{tmp_path}/ledger.db", policy)
    told: list[str] = []

    def tell(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            told.append(http.post("/v1/outcomes", json={"key": "k", "decision_id": "slow", **OUTCOME}).json()["detail"])

    go = tmp_path / "go"
    with run_service(HINDERED, **env, GO=go) as service:
        post = service.http.post
        answer = post("/v1/risk", json=request("p2"))
        assert answer.status_code == 200
        assert "this decision is not recorded: [Errno 28] No space left on device" in answer.json()["warnings"]
        assert service.metrics()["doorstep_not_recorded_total"] == 1
        assert post("/v1/outcomes", json=outcome).status_code == 200, "p1 was delivered in the meantime"

        # Fewer at once than the guard lets in.
        threads = [threading.Thread(target=tell, args=(service.url,)) for _ in range(50)]
        for thread in threads:
            thread.start()
        while len(told) < 42:  # all but those that wait have been told to come again
            assert post("/v1/risk", json=request("p")).status_code == 200
        go.touch()
        for thread in threads:
            thread.join()
    assert sum("Other reports are waiting" in s for s in told) == 42 and told.count("slow") == 8


def test_a_ledger_that_cannot_be_one_stops_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.cli", "serve", "--port", "0", "--ledger", "mysql://me:secret@b/c"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "a ledger is not kept on mysql: give sqlite:///" in done.stderr
    assert "secret" not in done.stderr and "Traceback" not in done.stderr


def load(url: str, name: str, acknowledged: list[str], stop: threading.Event) -> None:
    """Ask until the service is gone; note whose answers have come."""
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:
        i = 0
        while not stop.is_set():
            try:
                answer = http.post("/v1/risk", json=request(f"{name}-{i}"))
            except httpx.HTTPError:
                return
            if answer.status_code == 200 and "not recorded" not in answer.text:
                acknowledged.append(answer.json()["advice"]["decision_id"])
            i += 1


def kill_the_service(
    run_service: Callable[..., Any], tmp_path: Path, url: str, policy: Path, times: int
) -> tuple[int, int]:
    """Kill the service under load so many times; nothing acknowledged is lost, nothing is there twice.

    Returns:
        How many decisions were acknowledged, and how many there are.
    """
    env = settings(tmp_path, url, policy)
    acknowledged: list[str] = []
    for i in range(times):
        with run_service(**env) as service:
            stop = threading.Event()
            clients = [
                threading.Thread(target=load, args=(service.url, f"{i}-{c}", acknowledged, stop)) for c in range(3)
            ]
            for client in clients:
                client.start()
            seen = len(acknowledged)
            while len(acknowledged) < seen + 20 + 7 * (i % 5):
                stop.wait(0.01)
            service.process.send_signal(signal.SIGKILL)
            service.process.wait()
            stop.set()
            for client in clients:
                client.join()
    recorder = Recorder(url, paths(tmp_path))
    recorder.deliver()
    names = [str(r.decision_id) for r in recorder.database.records()]
    assert len(names) == len(set(names)), "something is there twice"
    assert set(acknowledged) <= set(names), sorted(set(acknowledged) - set(names))[:5]
    assert verify(recorder.database, recorder.paths.heads).ok
    recorder.close()
    return len(acknowledged), len(names)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_killed_service_loses_nothing(
    run_service: Callable[..., Any], tmp_path: Path, database_url: str, policy: Path
) -> None:
    asked, recorded = kill_the_service(run_service, tmp_path, database_url, policy, 1)
    assert recorded >= asked >= 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_service_killed_a_hundred_times_loses_nothing(
    run_service: Callable[..., Any], tmp_path: Path, database_url: str, policy: Path
) -> None:
    asked, recorded = kill_the_service(run_service, tmp_path, database_url, policy, 100)
    assert recorded >= asked >= 2000
