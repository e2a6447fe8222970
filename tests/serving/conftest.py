"""Running services for the tests of the service."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import Service


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
