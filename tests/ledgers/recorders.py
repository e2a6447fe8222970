"""Recorders of a ledger whose clock goes as it is told, and what tests do with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ledgers.load import NOW, paths
from serving.guard import Refused
from serving.ledger import Recorder
from serving.ledger.schemas import read
from serving.ledger.verify import verify

OUTCOMES, OVERRIDES, WITHDRAWALS = "/v1/outcomes", "/v1/overrides", "/v1/withdrawals"
CHANGES = "/v1/changes"


class Clock:
    """A clock that goes as it is told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@contextmanager
def recorders(url: str, folder: Path) -> Iterator[Callable[..., Recorder]]:
    """Recorders of one ledger, as its workers have them; they deliver when told."""
    made: list[Recorder] = []
    clock = Clock()

    def one(**options: Any) -> Recorder:
        made.append(Recorder(url, paths(folder), clock=options.pop("clock", clock), **options))
        return made[-1]

    yield one
    for recorder in made:
        recorder.close()


def found(recorder: Recorder) -> list[str]:
    """Names of the decisions in the database, in order."""
    return [str(r.decision_id) for r in recorder.database.records() if r.kind == "decision"]


def tell(recorder: Recorder, path: str, **content: Any) -> dict[str, Any]:
    """Report something, as over HTTP."""
    return recorder.report(path, read(path, json.dumps(content).encode(), recorder.clock()))


def happened(recorder: Recorder, key: str, name: str, kind: str, at: str = "2026-03-01T11:00:00Z", **other: Any) -> Any:
    return tell(recorder, OUTCOMES, key=key, decision_id=name, kind=kind, happened_at=at, **other)


def refused(status: int, call: Callable[..., Any], *arguments: Any, **content: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        call(*arguments, **content)
    assert raised.value.status == status, raised.value.detail
    return raised.value


def sound(recorder: Recorder) -> Any:
    verdict = verify(recorder.database, recorder.paths.heads)
    assert verdict.ok, verdict.findings
    return verdict
