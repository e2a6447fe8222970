"""A worker's journal: framed entries in a file of its own, durable when `append` returns, read again after a crash.

A frame is the length of its payload and a CRC-32 (both little-endian, 4 bytes), then the payload. Reading stops at the
first frame that is not whole, so a torn tail is never read: what is read is always a prefix of what was appended. One
batch is one write and one fsync. Each file is locked by the process that writes it; a file whose lock is free is a dead
worker's and is taken over. A file is emptied, or removed, when all in it is delivered.

All file operations go through `Disk`, so that tests can record them and rebuild what a power loss may leave.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

SUFFIX = ".journal"
DAMAGED = ".damaged"
SEGMENT = 4 << 20
"""Bytes after which a new file is begun, so that one which is never quite empty can be given back."""

_HEAD = struct.Struct("<II")
_SALT = 0xD00257E9
"""Where the CRC starts: a hole of zeros is no frame."""

logger = logging.getLogger("doorstep.ledger")


class Disk:
    """The operations of the file system that the ledger's durability rests on."""

    def create(self, path: Path) -> int:
        """A new file, readable by its owner only. Raises FileExistsError."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """A file that is there. Raises FileNotFoundError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, file: int, data: bytes, at: int) -> None:
        """All of `data` at an offset."""
        view = memoryview(data)
        while view:
            written = os.pwrite(file, view, at)
            view, at = view[written:], at + written

    def sync(self, file: int) -> None:
        """Return when everything written to the file would outlive a power loss."""
        full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone does not reach the platter
        if full is not None:
            fcntl.fcntl(file, full)
        else:
            os.fsync(file)

    def truncate(self, file: int, size: int) -> None:
        """Cut the file."""
        os.ftruncate(file, size)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file."""
        os.replace(path, to)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in the folder would outlive a power loss."""
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def frame(payload: bytes) -> bytes:
    """A payload as it stands in a file."""
    length = len(payload).to_bytes(4, "little")
    return length + zlib.crc32(payload, zlib.crc32(length, _SALT)).to_bytes(4, "little") + payload


def frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Payloads and where each ends, up to the first frame that is not whole."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if end > len(data):
            return
        payload = data[at + _HEAD.size : end]
        if crc != zlib.crc32(payload, zlib.crc32(data[at : at + 4], _SALT)):
            return
        yield payload, end
        at = end


class _Segment:
    """One file: frames from `start` to `end` are to be delivered."""

    def __init__(self, path: Path, file: int, end: int = 0, *, damaged: bool = False) -> None:
        self.path = path
        self.file = file
        self.start = 0
        self.end = end
        self.damaged = damaged


class Journal:
    """The journal of this process. Safe to use from several threads.

    Args:
        folder: made if it is not there; shared by all workers of the machine. A local disk: locks must work.
        disk: file operations.
        segment: bytes after which a new file is begun.
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None, segment: int = SEGMENT) -> None:
        self.folder = Path(folder)
        self.disk = disk or Disk()
        self.segment = segment
        self._lock = threading.Lock()
        self._old: list[_Segment] = []
        self._current: _Segment | None = None
        self._read: tuple[_Segment, int] | None = None

    def append(self, payloads: Sequence[bytes]) -> None:
        """Add entries, all or none of which are read later; they are durable on return.

        Raises:
            OSError: they are not. They may still be delivered, if this happened while they were being synced.
        """
        data = b"".join(map(frame, payloads))
        with self._lock:
            if self._current is not None and self._current.end >= self.segment:
                self._retire()
            current = self._current = self._current or self._create()
            try:
                self.disk.write(current.file, data, current.end)
                self.disk.sync(current.file)
            except OSError:
                # After a failed fsync nobody knows what of it is on the disk, so the file is not written again. What
                # was acknowledged before lies in front and is still delivered from it.
                with contextlib.suppress(OSError):
                    self.disk.truncate(current.file, current.end)
                self._retire()
                raise
            current.end += len(data)

    def _create(self) -> _Segment:
        """A new file with our lock on it, its name durable."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.disk.sync_folder(self.folder.parent)
        while True:
            path = self.folder / f"{time.time_ns():020}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
            file = self.disk.create(path)
            if _locked(file):  # else somebody took the empty file for a dead worker's in this very moment
                break
            os.close(file)
        try:
            self.disk.sync_folder(self.folder)
        except OSError:
            os.close(file)
            raise
        return _Segment(path, file)

    def _retire(self) -> None:
        assert self._current is not None
        self._old.append(self._current)
        self._current = None

    def adopt(self) -> int:
        """Take over the files of dead workers.

        Returns:
            How many of them hold entries.
        """
        with self._lock:
            own = {s.path for s in (*self._old, self._current) if s is not None}
        found: list[_Segment] = []
        for path in _files(self.folder):
            if path in own:
                continue
            try:
                file = self.disk.open(path)
            except FileNotFoundError:  # another worker was quicker
                continue
            if not _locked(file):
                os.close(file)
                continue
            data = _whole(file)
            end = max((end for _, end in frames(data)), default=0)
            damaged = any(data[end:])
            if damaged:
                logger.error(
                    "journal %s: %s bytes after %s are no whole entry (a write that was cut short, or a damaged disk): "
                    "kept beside it as %s",
                    *(path, len(data) - end, end, path.name + DAMAGED),
                )
            found.append(_Segment(path, file, end, damaged=damaged))
        with self._lock:
            self._old[:0] = found
        return sum(s.end > 0 for s in found)

    def read(self, most: int) -> list[bytes]:
        """The oldest entries that are not delivered, in order, at most `most` of them."""
        with self._lock:
            segments = [*self._old, *([self._current] if self._current is not None else [])]
            for segment in segments:
                if segment.end > segment.start:
                    data = os.pread(segment.file, segment.end - segment.start, segment.start)
                    found = list(islice(frames(data), most))
                    if not found:
                        raise OSError(f"{segment.path}: an entry that was written can no longer be read")
                    self._read = segment, segment.start + found[-1][1]
                    return [payload for payload, _ in found]
                self._empty(segment)
            return []

    def delivered(self) -> int:
        """What `read` gave last is in the database for good. Returns how many bytes of the file that was."""
        with self._lock:
            if self._read is None:
                return 0
            segment, start = self._read
            count = start - segment.start
            segment.start, self._read = start, None
            if segment.start == segment.end:
                self._empty(segment)
            return count

    def _empty(self, segment: _Segment) -> None:
        """Give back a file all of which is delivered. Not synced: what comes back is delivered again, to no effect."""
        if segment is self._current:
            if segment.end:
                self.disk.truncate(segment.file, 0)
                segment.start = segment.end = 0
            return
        if segment.damaged:
            self.disk.rename(segment.path, segment.path.with_name(segment.path.name + DAMAGED))
        else:
            self.disk.remove(segment.path)
        self._old.remove(segment)
        os.close(segment.file)

    @property
    def waiting(self) -> int:
        """Bytes of entries that this process holds and that are not delivered."""
        with self._lock:
            return sum(s.end - s.start for s in (*self._old, self._current) if s is not None)

    def close(self) -> None:
        """Let go of the files; what is not delivered stays, for who starts next."""
        with self._lock:
            for segment in (*self._old, self._current):
                if segment is None:
                    continue
                if segment.end == segment.start and not segment.damaged:
                    with contextlib.suppress(OSError):
                        self.disk.remove(segment.path)
                os.close(segment.file)
            self._old, self._current, self._read = [], None, None


def undelivered(folder: Path) -> Iterator[bytes]:
    """Every entry in every file of a folder, whoever writes it; some may have been delivered already."""
    for path in _files(folder):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        for payload, _ in frames(data):
            yield payload


def _files(folder: Path) -> list[Path]:
    """Journals in a folder, the oldest first: their names begin with when they were made."""
    return sorted(Path(folder).glob(f"*{SUFFIX}"))


def _whole(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _locked(file: int) -> bool:
    """Whether the lock of the file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
