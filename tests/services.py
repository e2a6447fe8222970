"""Running services for the tests: real processes, asked over HTTP, with outside sockets refused."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]

WATCHED = """
def watched(connect):
    def refusing(self, address, *rest):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            with open(os.environ["OUTSIDE"], "a") as f:
                print(address, file=f)
            raise OSError("outside sockets are refused in tests")
        return connect(self, address, *rest)
    return refusing

socket.socket.connect = watched(socket.socket.connect)
socket.socket.connect_ex = watched(socket.socket.connect_ex)
"""
"""Code that refuses sockets to other machines and writes down who was asked for; needs os and socket, and OUTSIDE."""

LAUNCH = f"""
import os, socket, sys

if __name__ == "__main__":
{textwrap.indent(WATCHED, "    ")}
    from serving.server import run
    run(port=0, workers=int(os.environ.get("WORKERS", "1")))
"""


class Service:
    """A running service.

    Attributes:
        url: where it answers.
        http: a client of it.
        log: what it wrote to stderr so far.
        outside: file that lists attempts to reach another machine.
    """

    def __init__(self, process: subprocess.Popen[str], outside: Path) -> None:
        self.process = process
        self.outside = outside
        self.log = ""
        self.url = ""
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if "Doorstep answers on " in line:
                self.url = line.split("Doorstep answers on ")[1].split(",")[0].split(" ")[0].rstrip(".\n")
                self.ready.set()
        self.ready.set()  # it ended

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def metrics(self) -> dict[str, float]:
        """Every Prometheus sample, by its name with labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


@contextmanager
def running(directory: Path, first: str = "", **env: Any) -> Iterator[Service]:
    """A service with these settings; ends it, and checks that it ended well unless it was killed.

    `first` is run in each of its processes before it starts.
    """
    directory.mkdir(parents=True, exist_ok=True)
    launcher = directory / "launch.py"
    launcher.write_text(first + LAUNCH)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOORSTEP_", "PROMETHEUS_", "BENTOML_"))}
    process = subprocess.Popen(
        [sys.executable, str(launcher)],
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OUTSIDE": str(directory / "outside"),
            "BENTOML_HOME": str(directory / "bentoml"),
            **{k: str(v) for k, v in env.items()},
        },
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
    )
    service = Service(process, directory / "outside")
    try:
        assert service.ready.wait(60), f"no answer within a minute:\n{service.log}"
        assert service.url, f"the service did not start:\n{service.log}"
        with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as service.http:
            yield service
    finally:
        killed = process.poll() == -signal.SIGKILL
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        service.reader.join()
        assert process.stderr is not None
        process.stderr.close()
    assert code == 0 or killed, service.log
