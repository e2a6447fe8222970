"""Where runs and versions are kept: an address, a client of it, and what goes wrong there in sentences."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from training.evaluate.card import home

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["RegistryError", "Store"]

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    # A server that does not answer is reported within two minutes, not after more than a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class RegistryError(ValueError):
    """The registry cannot do what was asked; the message says where, what was found and what to do."""


class Store:
    """A place for runs and versions. Nothing is created or contacted before it is used.

    Args:
        uri: as `training.registry.Registry` takes it.

    Attributes:
        uri: the address in use.
        where: the same for people, without a password.
        artifacts: folder of the files of a database that has no server.
    """

    def __init__(self, uri: str | None = None) -> None:
        given = uri or os.environ.get("DOORSTEP_MLFLOW_URI") or os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or f"sqlite:///{home() / 'mlflow.db'}"
        self.where = re.sub(r"(://[^:/@]+):[^@]*@", r"\1:***@", self.uri)
        if "://" not in self.uri:
            raise RegistryError(
                f"{self.where!r} is no address of a model registry: give http://HOST:PORT of an MLflow server, "
                "or sqlite:///FILE"
            )
        self._file: Path | None = None
        if self.uri.startswith("sqlite:///"):
            self._file = Path(self.uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        self.artifacts = (self._file.parent if self._file else home()) / "artifacts"

    @property
    def absent(self) -> bool:
        """Whether it is a SQLite file that nobody made yet; asking must not make it."""
        return self._file is not None and not self._file.exists()

    @property
    def local(self) -> bool:
        """Whether it is a SQLite file on this machine."""
        return self._file is not None

    @contextmanager
    def alone(self, publish: Path | str | None = None) -> Iterator[None]:
        """Let one at a time per database, and per directory that is published to, change what is current here."""
        with ExitStack() as stack:
            if self._file is not None:
                stack.enter_context(_locked(self.artifacts / ".registry.lock"))
            if publish is not None:
                stack.enter_context(_locked(Path(publish) / ".registry.lock"))
            yield

    @contextmanager
    def client(self) -> Iterator[MlflowClient]:
        """Give a client and turn what goes wrong while it is used into sentences."""
        for key, value in _SETTINGS.items():
            os.environ.setdefault(key, value)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), _quiet("mlflow", "alembic"):
            # What these libraries deprecate of each other is nothing a user of Doorstep can mend.
            warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|alembic|pydantic)\b")
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            try:
                yield MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            except MlflowException as error:
                raise RegistryError(_explained(self.where, error)) from error
            except ImportError as error:
                raise RegistryError(
                    f"{self.where}: a driver is missing ({error}): install it, for PostgreSQL with Doorstep's extra "
                    "`postgres`, or give the address of an MLflow server"
                ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let loggers tell what went wrong and not what went as usual; `MLFLOW_LOGGING_LEVEL` asks for more."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _explained(where: str, error: Exception) -> str:
    text = str(error)
    silent = r"Max retries|Connection refused|Connection aborted|timed out|Failed to establish|OperationalError"
    if re.search(silent, text):
        cause = re.search(r"Caused by \w+\((.*)\)", text, re.DOTALL)
        return (
            f"the model registry at {where} does not answer: check the address (--mlflow-uri, DOORSTEP_MLFLOW_URI) and "
            f"that the server runs. It said: {_short(cause[1].rstrip(')') if cause else text)}"
        )
    return f"the model registry at {where} refused: {_short(text)}"


def _short(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."
