"""Folders of plain files that can be trusted: a manifest of checksums, verified before anything is parsed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

MANIFEST = "manifest.json"


class ArtefactError(ValueError):
    """A folder is not the artefact it should be; the message says which file, what is wrong and what to do."""


def write_frame(frame: pd.DataFrame, to: Path) -> None:
    """Write a frame as .parquet or .csv (by the ending), whole or not at all."""
    to = Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    if to.suffix == ".csv":
        frame.to_csv(part, index=False)
    else:
        frame.to_parquet(part, index=False)
    os.replace(part, to)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest_of(folder: Path) -> str:
    """Digest of an artefact: the SHA-256 of its manifest, which names the checksum of every file."""
    return _sha256(Path(folder) / MANIFEST)


def seal(part: Path, to: Path, kind: str, protocol: int, meta: Mapping[str, Any]) -> None:
    """Write the manifest of a finished folder and move it to its place; an older one there is replaced."""
    files = {p.relative_to(part).as_posix(): _sha256(p) for p in sorted(part.rglob("*")) if p.is_file()}
    plain = json.loads(json.dumps(dict(meta), allow_nan=False))  # as it will be read: keys are text
    manifest: dict[str, Any] = {"kind": kind, "protocol": protocol, "meta": plain, "files": files}
    manifest["seal"] = _seal(manifest)
    (part / MANIFEST).write_bytes(_text(manifest))
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.exists():
        if not to.is_dir() or (any(to.iterdir()) and not _is(to, kind)):
            raise ArtefactError(f"{to}: is there already and is no {kind}: name another folder")
        old = to.with_name(f".{to.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(to, old)
        os.replace(part, to)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(part, to)


def _is(folder: Path, kind: str) -> bool:
    """Whether a folder says it is an artefact of the kind, sound or not: only such a one may be replaced."""
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["kind"] == kind)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _text(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it is written: one form only, so that its digest names its content."""
    return (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _seal(manifest: Mapping[str, Any]) -> str:
    """Checksum of the manifest itself, so that a changed setting in it is noticed like a changed file."""
    rest = {k: v for k, v in manifest.items() if k != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def verify(folder: Path, kind: str, protocol: int, make: str) -> dict[str, Any]:
    """Check a folder against its manifest, before anything else in it is parsed.

    Args:
        folder: the artefact.
        kind, protocol: what it must be.
        make: the command that makes one, for the message.

    Returns:
        The manifest's `meta`.

    Raises:
        ArtefactError: no such folder, another kind or protocol, a file missing, changed or not in the manifest.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        manifest = json.loads(text)
        found, number = manifest["kind"], manifest["protocol"]
        files, meta = dict(manifest["files"]), dict(manifest["meta"])
        whole = manifest["seal"] == _seal(manifest) and text == _text(manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(f"{folder}: no {kind} here ({MANIFEST} is missing): make one with `{make}`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: not a readable manifest ({error}): make a new {kind} with `{make}`") from None
    if found != kind:
        raise ArtefactError(f"{folder}: is a {found}, where a {kind} is needed")
    if number != protocol:
        raise ArtefactError(
            f"{folder}: {kind} of protocol {number}, this version reads {protocol}: make a new one with `{make}`"
        )
    if not whole:
        raise ArtefactError(f"{path}: was changed after it was written: copy the {kind} again")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    if there != set(files):
        odd = sorted(there ^ set(files))
        raise ArtefactError(f"{folder}: files differ from the manifest ({', '.join(odd[:3])}): copy the {kind} again")
    for name, expected in files.items():
        if _sha256(folder / name) != expected:
            raise ArtefactError(f"{folder / name}: checksum differs from the manifest: copy the {kind} again")
    return meta
