"""What commands share: the voice they speak with, clear errors, options, dates."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from features.dataset import Dataset
    from serving.bundle import Bundle

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
BUNDLES, SNAPSHOTS = "deploy/bundle", "deploy/snapshot"


class Voice:
    """What the command says beside its data: progress on a terminal, hints, all on stderr.

    Args:
        verbosity: -1 nothing but errors, 0 progress on a terminal, 1 progress anywhere, with times.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.started = time.monotonic()
        self._open = False

    @property
    def _live(self) -> bool:
        return self.verbosity >= 0 and sys.stderr.isatty()

    def progress(self, what: str) -> None:
        """Say what is being done: one line that is overwritten on a terminal, kept lines with -v, else nothing."""
        if self.verbosity > 0:
            click.echo(f"[{time.monotonic() - self.started:6.1f} s] {what}", err=True)
        elif self._live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            click.echo(f"\r\x1b[2K{what[:width]}", err=True, nl=False)
            self._open = True

    def close(self) -> None:
        """End the progress line."""
        if self._open:
            click.echo("\r\x1b[2K", err=True, nl=False)
            self._open = False

    def next(self, *lines: str) -> None:
        """Say what to do next."""
        self.close()
        if self.verbosity >= 0:
            for line in lines:
                click.secho(f"next: {line}", err=True, dim=True)


class Group(click.Group):
    """Turns what users can mend into one clear message with exit status 2, and keeps the order of the commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of a user's day."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (ValueError, OSError) as error:
            raise _said(ctx, error) from error


def _said(ctx: click.Context, error: Exception) -> click.ClickException:
    voice = ctx.find_object(Voice)
    if voice is not None:
        voice.close()
        if voice.verbosity > 0:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
    return _Failure(str(error), getattr(error, "exit_code", 2))


class _Failure(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def _verbosity(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    voice = ctx.ensure_object(Voice)
    if value:
        voice.verbosity = 1 if param.name == "verbose" else -1
    return value


def voiced(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command -v, -q and, as its first argument, the voice."""
    command = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_verbosity, help="Say every step, with times."
    )(
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_verbosity, help="Say errors only.")(
            command
        )
    )
    return click.make_pass_decorator(Voice, ensure=True)(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
dataset_argument = click.argument("dataset", type=click.Path(path_type=Path))
as_of_option = click.option(
    "--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken]."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    envvar="DOORSTEP_BUNDLE",
    default=BUNDLES,
    show_default=True,
    help="A bundle, or where one is published.",
)
mlflow_option = click.option(
    "--mlflow-uri",
    metavar="URI",
    envvar="DOORSTEP_MLFLOW_URI",
    help="MLflow tracking store or server [default: SQLite in the checkout's folder mlflow].",
)


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="FEATURE",
    help="Train although this feature alone tells an outcome too well to be honest; may be repeated.",
)


def dump(data: Any) -> None:
    """Print as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))


def opened(path: Path, voice: Voice) -> Dataset:
    """The dataset in a folder."""
    from features.dataset import Dataset

    voice.progress(f"reading {path}")
    return Dataset.open(path)


def bundled(path: Path) -> Bundle:
    """The bundle in a folder, or published there. Raises StoreError, BundleError."""
    from serving.bundle import Bundle
    from serving.store import StoreError, resolve

    try:
        return Bundle.load(resolve(path))
    except StoreError as error:
        todo = "name a bundle, such as --bundle runs/NAME/bundle of a training, or publish one with `doorstep promote`"
        raise StoreError(f"{error}\n    to do: {todo}") from None


def zoned(value: str | None, dataset: Dataset) -> Any:
    """A moment from the command line: without a zone it is on the shop's clock."""
    import pandas as pd

    if value is None:
        return None
    try:
        stamp = pd.Timestamp(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no date: give one like 2025-05-01 or 2025-05-01T06:00+07:00") from None
    return stamp if stamp.tz is not None else stamp.tz_localize(dataset.settings.timezone)
