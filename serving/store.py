"""Directories that are published whole and taken up while the service runs.

A store holds finished versions, each in a directory named by the digest of its content, and a small file `current` that
says which one counts. A version is complete on disk before `current` is replaced, in one step, so a reader finds either
the old one or the new one and never half of one. Bundles and snapshots are both published this way.

    STORE/
      current            {"digest": "3f9a...", "version": "7", ...}
      3f9a0c.../         the bundle
      b81d44.../         the one before, kept for rolling back
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MANIFEST = "manifest.json"
"""The file that makes a directory a bundle or a snapshot."""
POINTER = "current"
KEPT = 5
"""Versions a store keeps, the current one included."""
RETRY_SECONDS = 30.0
"""A version that could not be loaded is tried again after this long: the fault may have been the disk's."""

logger = logging.getLogger("doorstep.store")


STATES = ("loaded", "refused", "absent")
"""Of what is published at a path; absent: nothing is, or no path is watched."""


class StoreError(ValueError):
    """A path is no bundle, no snapshot and no store of them; says what was found and what to do."""


def publish(source: Path | str, store: Path | str, *, info: Mapping[str, Any]) -> Path:
    """Copy the directory `source` into `store` and make it the current version.

    Publishing what is already there only moves the pointer, so rolling back is publishing an older version again.

    Args:
        source: a finished bundle or snapshot directory.
        store: directory of the store; made if it is absent.
        info: what else the pointer shall say, such as `version` and `published_at`. JSON values.

    Returns:
        The directory of the published version.

    Raises:
        StoreError: `source` has no manifest.
    """
    source, store = Path(source), Path(store)
    if not (source / MANIFEST).is_file():
        raise StoreError(
            f"{source} cannot be published: it has no {MANIFEST}, so it is neither a bundle nor a snapshot"
        )
    store.mkdir(parents=True, exist_ok=True)
    with _lock(store):
        digest = _digest(source)
        target = store / digest[:16]
        if not target.is_dir() or _digest(target) != digest:
            _copy(source, target)
        os.utime(target)  # the order of publishing, for pruning
        pointer = {**info, "digest": digest, "directory": target.name}
        _write(store / POINTER, json.dumps(pointer, indent=2, sort_keys=True, default=str).encode() + b"\n")
        _prune(store, keep=target)
    return target


def resolve(path: Path | str, manifest: str = MANIFEST) -> Path:
    """The directory `path` stands for: itself if it has a manifest, or the current version if it is a store.

    Args:
        path: the directory.
        manifest: the file that makes a directory what is looked for.

    Raises:
        StoreError: it is neither.
    """
    path = Path(path)
    if (path / manifest).is_file():
        return path
    pointer = path / POINTER
    try:
        content = json.loads(pointer.read_bytes())
        name = content["directory"]
    except FileNotFoundError:
        found = "a directory" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise StoreError(
            f"{path}: expected a directory with {manifest}, or a store with a {POINTER} file; found {found}"
        ) from None
    except (ValueError, TypeError, KeyError) as e:
        raise StoreError(f"{pointer}: expected JSON with `directory`; {type(e).__name__}: {e}") from None
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
        raise StoreError(f"{pointer}: `directory` must name a directory beside it; given: {name!r}")
    target = path / name
    if not (target / manifest).is_file():
        raise StoreError(f"{pointer} points to {target}, which has no {manifest}; publish a version again")
    return target


class Watcher(Generic[T]):
    """Holds the last good version of what is published at a path, and takes up new ones off the request path.

    Reading `value` is one attribute access; a new version replaces it whole. A version that does not load is refused,
    with one line in the log, and the last good one stays.

    Args:
        path: a bundle or snapshot directory, or a store of them, or a file; None if none is configured.
        load: directory or file -> value. Whatever it raises refuses that version.
        name: what it is, for the log.
        on_change: called after `value` was replaced or a version refused, in the thread that looked.
        manifest: the file that makes a directory what is watched for.

    Attributes:
        value: the last version that loaded, or None.
        problem: why the version now published is not `value`; None if it is, or if nothing is published.
    """

    def __init__(
        self,
        path: Path | str | None,
        load: Callable[[Path], T],
        *,
        name: str,
        on_change: Callable[[], None] = lambda: None,
        manifest: str = MANIFEST,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.value: T | None = None
        self.problem: str | None = None
        self._load = load
        self._name = name
        self._on_change = on_change
        self._manifest = manifest
        self._seen: object = None
        self._tried_at = 0.0
        self._stop = threading.Event()

    def check(self) -> bool:
        """Look once; load and swap if something new is published. True if `value` was replaced."""
        if self.path is None:
            return False
        seen = self._signature()
        retry = self.problem is not None and time.monotonic() - self._tried_at > RETRY_SECONDS
        if seen == self._seen and not retry:
            return False
        self._tried_at = time.monotonic()
        if not any(seen):
            self._seen, self.problem = seen, None
            logger.warning("no %s is published at %s, %s", self._name, self.path, self._without())
            return False
        try:
            directory = self.path if self.path.is_file() else resolve(self.path, self._manifest)
            value = self._load(directory)
        except Exception as e:
            self._seen = seen
            problem = f"{type(e).__name__}: {e}"
            if problem != self.problem:
                logger.error("%s at %s was refused, %s. %s", self._name, self.path, self._without(), problem)
                self.problem = problem
                self._on_change()
            return False
        self.value = value
        self.problem = None
        self._seen = seen
        logger.info("%s taken up from %s", self._name, directory)
        self._on_change()
        return True

    def _without(self) -> str:
        return "the last good one stays in use" if self.value is not None else "answering without one"

    @property
    def state(self) -> str:
        """Of what is published now, one of `STATES`."""
        return "refused" if self.problem is not None else "absent" if self.value is None else "loaded"

    def start(self, interval: float = 1.0) -> None:
        """Look every `interval` seconds from a daemon thread, until `stop`."""
        if self.path is not None:
            threading.Thread(target=self._run, args=(interval,), name=f"watch-{self._name}", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its present look."""
        self._stop.set()

    def _run(self, interval: float) -> None:
        while not self._stop.wait(interval):
            try:
                self.check()
            except Exception:  # a bug in on_change must not end the watching
                logger.exception("watching the %s at %s", self._name, self.path)

    def _signature(self) -> tuple[object, ...]:
        """What changes whenever something new is published, at the price of a few stat calls."""
        assert self.path is not None
        found: list[object] = []
        for path in (self.path,) if self.path.is_file() else (self.path / self._manifest, self.path / POINTER):
            try:
                s = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((s.st_ino, s.st_mtime_ns, s.st_size))
        return tuple(found)


@contextmanager
def _lock(store: Path) -> Iterator[None]:
    """One publisher at a time; released by the system if the process dies."""
    with open(store / ".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def _digest(directory: Path) -> str:
    """SHA-256 over every file's path and content."""
    total = hashlib.sha256()
    for path in _files(directory):
        with open(path, "rb") as f:
            content = hashlib.file_digest(f, "sha256").hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy so that `target` appears complete, and on disk, or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        temporary.chmod(0o755)
        for path in [*_files(temporary), *(p for p in temporary.rglob("*") if p.is_dir()), temporary]:
            _sync(path)
        if target.is_dir():  # same name, other content: damaged since it was published
            os.replace(target, temporary.with_name(f"{temporary.name}-damaged"))
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        for left in target.parent.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}-new")
    with open(temporary, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(store: Path, *, keep: Path) -> None:
    versions = [p for p in store.iterdir() if p != keep and (p / MANIFEST).is_file()]
    versions.sort(key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for path in versions[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
