"""A power loss, simulated: what the ledger writes and syncs is recorded, and what a disk may hold after is rebuilt.

Recorded are the writes, syncs, truncations, and the making, removing and renaming of files: those of the journal and of
the signed heads through the ledger's `Disk`, those of SQLite through a VFS of apsw. A state is made from the operations
up to some moment. What was synced is there. Of the rest of each file any part may be: writes are dropped, kept out of
their order, or torn at sectors of 512 bytes, some of which then read as zeros. Names are there once their folder was
synced, else by chance. (SQLite syncs the folder when it syncs a new write-ahead log or rollback journal.)
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from serving.ledger.journal import Disk

SECTOR = 512


@dataclass(frozen=True)
class Op:
    """One operation: what (create, write, truncate, sync, remove, rename, sync_folder or ack) and on which file."""

    what: str
    path: str
    at: int = 0
    data: bytes = b""
    names: tuple[str, ...] = ()


class Log(list[Op]):
    """Operations in order, of all files."""

    def ack(self, *names: str) -> None:
        """What has been acknowledged to somebody from now on."""
        self.append(Op("ack", "", names=names))


class RecordingDisk(Disk):
    """The file system, with every operation recorded."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.files: dict[int, str] = {}

    def create(self, path: Path) -> int:
        file = super().create(path)
        self.files[file] = str(path)
        self.log.append(Op("create", str(path)))
        return file

    def open(self, path: Path) -> int:
        file = super().open(path)
        self.files[file] = str(path)
        return file

    def write(self, file: int, data: bytes, at: int) -> None:
        super().write(file, data, at)
        self.log.append(Op("write", self.files[file], at, bytes(data)))

    def sync(self, file: int) -> None:  # not for real: only what is recorded counts
        self.log.append(Op("sync", self.files[file]))

    def truncate(self, file: int, size: int) -> None:
        super().truncate(file, size)
        self.log.append(Op("truncate", self.files[file], size))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.log.append(Op("remove", str(path)))

    def rename(self, path: Path, to: Path) -> None:
        super().rename(path, to)
        self.log.append(Op("rename", str(path), names=(str(to),)))

    def sync_folder(self, folder: Path) -> None:
        self.log.append(Op("sync_folder", str(folder)))


class _File(apsw.VFSFile):
    def __init__(self, log: Log, base: str, name: Any, flags: list[int]) -> None:
        self.path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.log = log
        new = self.path is not None and not os.path.exists(self.path)
        super().__init__(base, name, flags)
        if new:
            log.append(Op("create", self.path))

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self.log.append(Op("write", self.path, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self.log.append(Op("truncate", self.path, size))

    def xSync(self, flags: int) -> None:
        self.log.append(Op("sync", self.path))
        if self.path.endswith(("-wal", "-journal")):
            self.log.append(Op("sync_folder", os.path.dirname(self.path)))


class _VFS(apsw.VFS):
    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.base = apsw.vfs_names()[0]
        super().__init__(name, self.base)

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        return _File(self.log, self.base, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        super().xDelete(name, sync)
        self.log.append(Op("remove", name))
        if sync:
            self.log.append(Op("sync_folder", os.path.dirname(name)))


class _Cursor:
    """As much of DB-API 2.0 as SQLAlchemy asks for."""

    arraysize = 1

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.cursor = connection.cursor()
        self.cursor.exec_trace = self._trace
        self.description: Any = None
        self.rowcount = self.lastrowid = -1
        self.rows: list[Any] = []

    def _trace(self, cursor: Any, sql: str, bindings: Any) -> bool:
        self.description = cursor.get_description() or None
        return True

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> _Cursor:
        self.rows = list(self.cursor.execute(sql, tuple(parameters)))
        self.description = self.description and [(*d, *(None,) * (7 - len(d))) for d in self.description]
        self.rowcount, self.lastrowid = self.connection.changes(), self.connection.last_insert_rowid()
        return self

    def executemany(self, sql: str, many: Sequence[Sequence[Any]]) -> _Cursor:
        for parameters in many:
            self.execute(sql, parameters)
        return self

    def fetchone(self) -> Any:
        return self.rows.pop(0) if self.rows else None

    def fetchmany(self, size: int = 1) -> list[Any]:
        out, self.rows = self.rows[:size], self.rows[size:]
        return out

    def fetchall(self) -> list[Any]:
        return self.fetchmany(len(self.rows))

    def close(self) -> None:
        self.cursor.close(True)


class _Connection:
    isolation_level = None

    def __init__(self, path: str, vfs: str) -> None:
        self.db = apsw.Connection(path, vfs=vfs)
        self.db.pragma("wal_autocheckpoint", 12)  # often: what a checkpoint leaves behind is to be seen

    def cursor(self) -> _Cursor:
        return _Cursor(self.db)

    def commit(self) -> None:
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    def rollback(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def close(self) -> None:
        self.db.close()

    def create_function(self, *_: Any, **__: Any) -> None:
        pass


class Recorded:
    """A folder in which everything that is done to files is recorded.

    Attributes:
        log: what was done.
        disk: for the ledger.
        connect: for its database.
    """

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.log = Log()
        self.disk = RecordingDisk(self.log)
        name = f"recorded-{id(self)}"
        self._vfs = _VFS(self.log, name)
        path = str(folder / database)
        self.connect: Callable[[], Any] = lambda: _Connection(path, name)


@dataclass
class _Inode:
    durable: bytearray = field(default_factory=bytearray)
    waiting: list[Op] = field(default_factory=list)


def _apply(content: bytearray, op: Op) -> None:
    if op.what == "truncate":
        del content[op.at :]
        content.extend(bytes(op.at - len(content)))
    else:
        content.extend(bytes(max(0, op.at + len(op.data) - len(content))))
        content[op.at : op.at + len(op.data)] = op.data


def _torn(op: Op, chance: random.Random) -> list[Op]:
    """A write of which some sectors are there; a write that made the file longer may leave zeros."""
    if op.what != "write":
        return [op]
    out = []
    at = op.at
    while at < op.at + len(op.data):
        end = min((at // SECTOR + 1) * SECTOR, op.at + len(op.data))
        part = op.data[at - op.at : end - op.at]
        if chance.random() < 0.6:
            out.append(Op("write", op.path, at, part))
        elif chance.random() < 0.3:  # the length is there, and what lay there before, or zeros
            out.append(Op("write", op.path, end - 1, b"") if end > at else op)
        at = end
    return out


def state(log: Sequence[Op], moment: int, chance: random.Random, folder: Path, to: Path) -> set[str]:
    """Make in `to` what the disk may hold of `folder` when the power is lost after `moment` operations.

    Returns:
        What had been acknowledged by then.
    """
    inodes: dict[str, _Inode] = {}
    names: dict[str, _Inode] = {}  # durable names
    changes: list[Op] = []  # of names, not durable yet
    objects: list[_Inode] = []  # what each change of `changes` is about
    acknowledged: set[str] = set()
    for op in log[:moment]:
        match op.what:
            case "create":
                inodes[op.path] = _Inode()
                changes.append(op)
                objects.append(inodes[op.path])
            case "remove" | "rename":
                inode = inodes.pop(op.path, None) or _Inode()
                if op.what == "rename":
                    inodes[op.names[0]] = inode
                changes.append(op)
                objects.append(inode)
            case "write" | "truncate":
                if op.path in inodes:
                    inodes[op.path].waiting.append(op)
            case "sync":
                if op.path in inodes:
                    for waiting in inodes[op.path].waiting:
                        _apply(inodes[op.path].durable, waiting)
                    inodes[op.path].waiting.clear()
            case "sync_folder":
                rest = []
                for change, inode in zip(changes, objects, strict=True):
                    if os.path.dirname(change.path) == op.path:
                        _rename(names, change, inode)
                    else:
                        rest.append((change, inode))
                changes, objects = [c for c, _ in rest], [i for _, i in rest]
            case "ack":
                acknowledged.update(op.names)
    for change, inode in zip(changes, objects, strict=True):
        if chance.random() < 0.5:
            _rename(names, change, inode)
    for path, inode in names.items():
        content = bytearray(inode.durable)
        mode = chance.choice(("none", "all", "some", "prefix", "torn"))
        waiting = inode.waiting
        if mode == "prefix":
            waiting = waiting[: chance.randint(0, len(waiting))]
        for op in waiting if mode != "none" else ():
            if mode == "some" and chance.random() < 0.5:
                continue
            for part in _torn(op, chance) if mode == "torn" else [op]:
                _apply(content, part)
        if mode == "prefix" and len(waiting) and waiting[-1].what == "write":  # and its last write is cut anywhere
            cut = chance.randint(0, len(waiting[-1].data))
            if len(content) == waiting[-1].at + len(waiting[-1].data):
                del content[waiting[-1].at + cut :]
        target = to / Path(path).relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bytes(content))
    return acknowledged


def _rename(names: dict[str, _Inode], change: Op, inode: _Inode) -> None:
    if change.what == "create":
        names[change.path] = inode
    else:
        names.pop(change.path, None)
        if change.what == "rename":
            names[change.names[0]] = inode


def clear(folder: Path) -> None:
    """Remove what a state left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
