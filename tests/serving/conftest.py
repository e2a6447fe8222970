"""Running services, shops to advise and ledgers for the tests of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from services import Service

if TYPE_CHECKING:
    from ledgers.recorders import Recorder
    from shops import Shop


@pytest.fixture(scope="session")
def loaded(run_service: Callable[..., Any], trained: Any) -> Iterator[Service]:
    """A service with a trained bundle and its snapshot."""
    with run_service(DOORSTEP_BUNDLE=trained.bundle, DOORSTEP_SNAPSHOT=trained.snapshot) as service:
        yield service


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A real PostgreSQL."""
    from ledgers.postgres import postgres

    with postgres() as running_server:
        yield running_server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("server").empty())


@pytest.fixture(scope="module")
def shop(trained: Any) -> Shop:
    """A shop to be advised."""
    from shops import open_shop

    return open_shop(trained)


@pytest.fixture
def make(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    """Makes recorders of one ledger."""
    from ledgers.recorders import recorders

    with recorders(database_url, tmp_path) as one:
        yield one


@pytest.fixture
def told(make: Callable[..., Recorder]) -> Recorder:
    """A recorder with decisions d0 to d4, delivered."""
    from ledgers.load import decision

    recorder = make()
    recorder.record([decision(f"d{i}", f"C-{i}") for i in range(5)])
    recorder.deliver()
    return recorder
