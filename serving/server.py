"""How `doorstep serve` runs the service: uvicorn, one open port, no control port, and limits against slow clients.

`bentoml serve` runs the same guarded application, but opens a second, unauthenticated control port on loopback and
binds every interface unless told otherwise; anywhere but on a trusted network use this runner.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

MAX_CONNECTIONS = 512
"""Open connections of one worker; more are answered 503."""
MAX_HEADERS = 16_384
"""Bytes of a request's line and headers."""
HEADER_SECONDS = 5.0
"""How long a new connection may take to send its headers."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than the proxies in front, so that they close first."""
STOP_SECONDS = 10
"""How long requests in flight may take when the server is told to stop."""


class ServeError(OSError):
    """The server cannot start; says what was asked for and what to do."""


class _Protocol(H11Protocol):
    """uvicorn waits for ever for the headers of a new connection; this does not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.scope is None and not self.transport.is_closing():
            self.transport.close()


def run(
    host: str = "127.0.0.1",
    port: int = 3000,
    workers: int = 1,
    bundle: str | os.PathLike[str] | None = None,
    snapshot: str | os.PathLike[str] | None = None,
    policy: str | os.PathLike[str] | None = None,
    ledger: str | None = None,
    diagnosis: str | os.PathLike[str] | None = None,
    waiting: str | os.PathLike[str] | None = None,
    *,
    out: TextIO | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        host: address to listen on; 0.0.0.0 for every interface.
        port: port to listen on; 0 takes a free one.
        workers: processes; each holds its own bundle and snapshot, whose large tables are mapped from the same files.
        bundle: a bundle, or a store of published ones; default `DOORSTEP_BUNDLE`. Without one, base rates are served.
        snapshot: likewise, default `DOORSTEP_SNAPSHOT`.
        policy: a policy's file; default `DOORSTEP_POLICY`. Without one, nothing is advised.
        ledger: URL of the database that decisions are recorded in; default `DOORSTEP_LEDGER`. Without, none are.
        diagnosis: a diagnosis, as `doorstep diagnose` writes it; default `DOORSTEP_DIAGNOSIS`. Without one, its
            pages say how to make one.
        waiting: a file to keep announced parcels in, made where it is not there; default `DOORSTEP_WAITING`. Without,
            the packing station finds no parcel.
        out: where to say what is served and how to ask it; default stderr.

    Raises:
        ServeError: the address cannot be used.
        serving.ledger.LedgerError: the URL is no ledger's.
    """
    out = sys.stderr if out is None else out
    for name, value in (
        ("DOORSTEP_BUNDLE", bundle),
        ("DOORSTEP_SNAPSHOT", snapshot),
        ("DOORSTEP_POLICY", policy),
        ("DOORSTEP_DIAGNOSIS", diagnosis),
        ("DOORSTEP_WAITING", waiting),
    ):
        if value is not None:
            os.environ[name] = os.path.abspath(value)
    if ledger is not None:
        os.environ["DOORSTEP_LEDGER"] = ledger
    recorded = _ledger()
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    with _shared_directory(), _listen(host, port) as listening:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        threading.Thread(target=_announce, args=(url, workers, recorded, out), daemon=True).start()
        config = uvicorn.Config(
            "serving.service:asgi",
            factory=True,
            workers=workers,
            loop="asyncio",
            http=_Protocol,
            ws="none",
            interface="asgi3",
            lifespan="on",
            log_config=_LOGGING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADERS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        # uvicorn raises the signal that ended it once more: let that end this function, not the process.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if workers > 1:
                Multiprocess(config, sockets=[listening]).run()
                return
            server = uvicorn.Server(config)
            server.run(sockets=[listening])
            if not server.started:
                raise ServeError("the service did not start; the lines above say why")
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"doorstep": {"level": "INFO"}},
}


def _ledger() -> str | None:
    """The ledger that is kept, without its password; None if none is. Raises LedgerError."""
    if not (url := os.environ.get("DOORSTEP_LEDGER")):
        return None
    from serving.ledger.store import parse_url

    return parse_url(url).render_as_string(hide_password=True)


@contextlib.contextmanager
def _shared_directory() -> Iterator[None]:
    """Where the workers share their Prometheus figures and, without a ledger, count the day's capacity.

    Must be named before prometheus_client is imported.
    """
    directory = tempfile.mkdtemp(prefix="doorstep-")
    shared = {"PROMETHEUS_MULTIPROC_DIR": os.path.join(directory, "metrics")}
    if not os.environ.get("DOORSTEP_LEDGER"):
        shared["DOORSTEP_CAPACITY"] = os.path.join(directory, "capacity.sqlite")
    ours = {name: path for name, path in shared.items() if not os.environ.get(name)}
    os.environ.update(ours)
    os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for name in ours:
            del os.environ[name]


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServeError."""
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(MAX_CONNECTIONS)
    except OSError as e:
        if listening is not None:
            listening.close()
        raise ServeError(
            f"cannot listen on {host} port {port}: {e.strerror}; name a free port with --port (0 finds one)"
        ) from e
    listening.set_inheritable(True)
    return listening


def _states(host: str, port: int) -> dict[str, str]:
    """What became of what is configured, by its name, as the service tells in its metrics; empty if it does not."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    shown = re.findall(r'^doorstep_published\{state="(\w+)",what="(\w+)"\} 1\.0$', text, re.MULTILINE)
    return {what: state for state, what in shown}


def _announce(url: str, workers: int, ledger: str | None, out: TextIO) -> None:
    """Say that the service answers, once it does, and with what."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    address = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    for _ in range(600):
        connection = http.client.HTTPConnection(address, int(port), timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                break
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    else:
        return
    states = _states(address, int(port))
    for name, without in (
        ("bundle", "base rates only"),
        ("snapshot", "base rates only"),
        ("policy", "no advice"),
        ("diagnosis", "its pages say how to make one"),
        ("waiting", "the packing station finds no parcel"),
    ):
        path = os.environ.get(f"DOORSTEP_{name.upper()}")
        if not path:
            said = f"none: {without}"
        elif states.get(name) == "refused":
            said = f"refused: {path}: {without}; the error above says why"
        elif states.get(name) == "absent":
            said = f"not there: {path}: {without}, until something is published there"
        else:
            said = path
        print(f"{name}: {said}", file=out)
    print(f"ledger: {ledger or 'none: decisions are not recorded'}", file=out)
    processes = f", {workers} workers" if workers > 1 else ""
    print(f"Doorstep answers on {url}{processes}. Ask it, with the worked example of {url}/docs.json:", file=out)
    print(
        f"  curl -s {url}/v1/risk -H 'Content-Type: application/json' "
        """-d '{"order": {"order_id": "1", "ordered_at": "2025-03-01T08:10:00Z"}, "parcel": {"parcel_id": "1"}}'""",
        file=out,
        flush=True,
    )
