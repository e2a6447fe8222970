"""The command `doorstep`. Heavy libraries are imported inside the commands that need them, so that `--help` is quick.

Data go to stdout, progress and hints to stderr. Exit status: 0 fine, 1 findings, 2 wrong use.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from features.dataset import Dataset
    from training.registry import Registry

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


def _dump(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))


def _open(path: Path, voice: Voice) -> Dataset:
    from features.dataset import Dataset

    voice.progress(f"reading {path}")
    return Dataset.open(path)


def _zoned(value: str | None, dataset: Dataset) -> Any:
    """A moment from the command line: without a zone it is on the shop's clock."""
    import pandas as pd

    if value is None:
        return None
    try:
        stamp = pd.Timestamp(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no date: give one like 2025-05-01 or 2025-05-01T06:00+07:00") from None
    return stamp if stamp.tz is not None else stamp.tz_localize(dataset.settings.timezone)


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(package_name="doorstep", prog_name="doorstep", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Doorstep learns why parcels fail at the door and why goods come back, and tells the team that can change it.

    A first round: doorstep world shop --parcels 10000, then check, train, promote, snapshot, serve.
    """
    ctx.ensure_object(Voice)
    if os.environ.get("NO_COLOR"):
        ctx.color = False


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--parcels", type=click.IntRange(1), default=10_000, show_default=True, help="How many parcels.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--scenario",
    "which",
    metavar="NAME|FILE.toml",
    default="plain",
    show_default=True,
    help="A shipped scenario (see `doorstep scenarios`) or a file of your own.",
)
@voiced
def world(voice: Voice, out: Path, parcels: int, seed: int, which: str) -> None:
    """Make a simulated shop with known causes, as a dataset in OUT.

    The truth behind it (probabilities, reasons, planted faults) goes to OUT/truth, which no training reads.
    """
    from training.world import generate, scenario

    generate(out, parcels=parcels, seed=seed, scenario=scenario(which), progress=voice.progress)
    voice.close()
    click.echo(out)
    voice.next(f"doorstep check {out}")


@main.command()
@click.argument("name", required=False)
@json_option
@voiced
def scenarios(voice: Voice, name: str | None, as_json: bool) -> None:
    """List the simulated shops that `doorstep world` knows, or print all of NAME as TOML.

    A file of your own needs only what differs from the plain shop; `doorstep scenarios plain` shows all there is.
    """
    from training.world import scenario, shipped, to_toml

    if name is not None:
        whole = to_toml(scenario(name))
        if as_json:
            import tomllib

            click.echo(json.dumps(tomllib.loads(whole), indent=2, default=str))
        else:
            click.echo(whole, nl=False)
        return
    known = {s.name: s.words for s in shipped().values()}
    if as_json:
        _dump(known)
        return
    for key, words in known.items():
        click.echo(f"{key:{max(map(len, known))}}  {words}")
    voice.next("doorstep world shop --scenario NAME, or doorstep scenarios NAME > mine.toml for one of your own")


@main.group("import")
def import_() -> None:
    """Turn a marketplace's export into a dataset."""


@import_.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--with-freight", is_flag=True, help="Keep freight columns, which may be adjusted after the fact.")
@json_option
@voiced
def shopee(voice: Voice, file: Path, out: Path, with_freight: bool, as_json: bool) -> None:
    """Read a Shopee seller's order export FILE (.xlsx) and write a dataset to OUT."""
    from training.importers.shopee import import_shopee

    report = import_shopee(file, out, with_freight=with_freight, progress=voice.progress)
    voice.close()
    if as_json:
        _dump(report.to_json())
    else:
        click.echo(str(report))
    voice.next(f"doorstep check {out}")


@main.command()
@dataset_argument
@json_option
@voiced
@click.pass_context
def check(ctx: click.Context, voice: Voice, dataset: Path, as_json: bool) -> None:
    """Check a dataset: every failure at once, with counts and examples. Exit status 1 if it cannot be trained on."""
    from training.check import check as run

    report = run(dataset, progress=voice.progress)
    voice.close()
    if as_json:
        _dump(report.to_dict())
    else:
        click.echo(report.render())
    voice.next(f"doorstep train {dataset}" if report.ok else "mend the errors above, then check again")
    ctx.exit(0 if report.ok else 1)


@main.command()
@dataset_argument
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option(
    "--out", type=click.Path(path_type=Path), default=SNAPSHOTS, show_default=True, help="Where to publish it."
)
@json_option
@voiced
def snapshot(voice: Voice, dataset: Path, as_of: str | None, out: Path, as_json: bool) -> None:
    """Count what is known and publish it: the history and listings a service needs beside the model."""
    import tempfile

    from features.snapshot import Snapshot
    from serving.store import publish

    data = _open(dataset, voice)
    voice.progress("counting history")
    made = Snapshot.from_dataset(data, _zoned(as_of, data))
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "snapshot")
        place = publish(Path(folder) / "snapshot", out, info={"as_of": f"{made.as_of}Z", "dataset": data.settings.name})
    voice.close()
    if as_json:
        _dump({"snapshot": str(place), "as_of": f"{made.as_of}Z", "published_to": str(out)})
    else:
        click.echo(f"{place}  as of {made.as_of}Z")
    voice.next(f"doorstep serve --snapshot {out}   (a running service takes it up by itself)")


@main.command()
@dataset_argument
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option(
    "--holdout-from", metavar="DATE", help="Judge on what was decided from then on [default: the latest quarter]."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results [default: runs/NAME].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@trust_option
@click.option(
    "--params", type=click.Path(path_type=Path), help="Parameters per target, as `doorstep tune` writes them."
)
@click.option("--log/--no-log", default=True, show_default=True, help="Log to MLflow and register the bundle.")
@mlflow_option
@json_option
@voiced
def train(
    voice: Voice,
    dataset: Path,
    as_of: str | None,
    holdout_from: str | None,
    out: Path | None,
    seed: int,
    trust: tuple[str, ...],
    params: Path | None,
    log: bool,
    mlflow_uri: str | None,
    as_json: bool,
) -> None:
    """Train every target DATASET allows, judge it on later data beside three baselines, and log it."""
    from training.params import Params
    from training.pipeline import train as run

    chosen = None if params is None else Params.read(params)  # a mistake in it is told before the data are read
    data = _open(dataset, voice)
    registry = _reached(mlflow_uri, voice) if log else None
    out = out or Path("runs") / dataset.resolve().name
    result = run(
        data,
        as_of=_zoned(as_of, data),
        holdout_from=_zoned(holdout_from, data),
        out=out,
        seed=seed,
        trust=trust,
        params=chosen,
        progress=voice.progress,
    )
    logged, lost = None, None
    if registry is not None:
        voice.progress("logging to MLflow")
        try:
            logged = registry.log(result, progress=voice.progress)
        except ValueError as error:
            lost = error
    voice.close()
    if as_json:
        _dump(result.metrics)
    else:
        from training.report import table

        click.echo(table(result.metrics))
        click.echo(f"\nbundle {result.bundle_dir}, holdout and metrics beside it")
        if logged is not None:
            champion = f"the champion is version {logged.champion}" if logged.champion else "there is no champion yet"
            click.echo(f"registered as doorstep version {logged.version}, alias challenger; {champion}")
    if lost is not None:
        raise ValueError(
            f"not registered, but kept in {out}: {lost}\nThe same command trains and registers it again"
        ) from lost
    voice.next("doorstep promote" if log else f"doorstep serve --bundle {result.bundle_dir}")


def _reached(uri: str | None, voice: Voice) -> Registry:
    """The registry, asked whether it answers before anything is computed for it."""
    from training.registry import Registry, RegistryError

    registry = Registry(uri)
    voice.progress("asking the registry")
    try:
        registry.reach()
    except RegistryError as error:
        raise ValueError(f"{error}\nNothing was computed yet; --no-log does without a registry") from error
    return registry


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


targets_option = click.option(
    "--targets", metavar="NAME,...", callback=_names, help="Only these targets, with commas between [default: all]."
)


@main.command()
@dataset_argument
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option("--origins", type=click.IntRange(2), default=4, show_default=True, help="Moments of the past to go live.")
@targets_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results [default: runs/NAME-backtest].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Seeds whose explanations are compared at the last origin; 1 for none.",
)
@trust_option
@click.option("--log/--no-log", default=True, show_default=True, help="Log to MLflow, with a run per origin.")
@mlflow_option
@json_option
@voiced
def backtest(
    voice: Voice,
    dataset: Path,
    as_of: str | None,
    origins: int,
    targets: tuple[str, ...],
    out: Path | None,
    seed: int,
    seeds: int,
    trust: tuple[str, ...],
    log: bool,
    mlflow_uri: str | None,
    as_json: bool,
) -> None:
    """Train at several moments of the past and judge each on what came then: would it have held up?

    Nothing is registered and no bundle is written; OUT gets backtest.json, predictions.parquet and backtest.png.
    """
    from training.backtest import backtest as run
    from training.backtest import room_for

    out = out or Path("runs") / f"{dataset.resolve().name}-backtest"
    room_for(out)
    data = _open(dataset, voice)
    registry = _reached(mlflow_uri, voice) if log else None
    result = run(
        data,
        as_of=_zoned(as_of, data),
        origins=origins,
        targets=targets,
        seed=seed,
        seeds=seeds,
        trust=trust,
        progress=voice.progress,
    )
    result.save(out)
    logged, lost = None, None
    if registry is not None:
        voice.progress("logging to MLflow")
        try:
            logged = result.log(registry)
        except ValueError as error:
            lost = error
    voice.close()
    if as_json:
        _dump(result.document)
    else:
        from training.backtest_report import table

        click.echo(table(result.document))
        click.echo(f"\n{out / 'backtest.json'}, predictions and a picture beside it")
        if logged is not None:
            click.echo(f"logged as run {logged}")
    if lost is not None:
        raise ValueError(f"not logged, but kept in {out}: {lost}") from lost
    voice.next(f"doorstep train {dataset}")


class _Duration(click.ParamType[float]):
    """Seconds from `90s`, `10m`, `1h30m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        import re

        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(value))
        if isinstance(value, float):
            return value
        if not value or found is None:
            self.fail(f"{value!r} is no time: give one like 90s, 10m or 1h30m", param, ctx)
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(3600 * hours + 60 * minutes + seconds)


@main.command()
@dataset_argument
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option(
    "--holdout-from", metavar="DATE", help="Nothing decided from then on is looked at [default: the latest quarter]."
)
@targets_option
@click.option(
    "--trials", type=click.IntRange(1), default=30, show_default=True, help="Of each target, earlier ones counted."
)
@click.option("--time-budget", type=_Duration(), metavar="10m", help="Begin no further trial after so long.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the tuning [default: runs/NAME-tuning].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@trust_option
@click.option("--log/--no-log", default=True, show_default=True, help="Log to MLflow, with a run per trial.")
@mlflow_option
@json_option
@voiced
@click.pass_context
def tune(
    ctx: click.Context,
    voice: Voice,
    dataset: Path,
    as_of: str | None,
    holdout_from: str | None,
    targets: tuple[str, ...],
    trials: int,
    time_budget: float | None,
    out: Path | None,
    seed: int,
    trust: tuple[str, ...],
    log: bool,
    mlflow_uri: str | None,
    as_json: bool,
) -> None:
    """Look for better parameters on folds before the holdout; interrupted, the same command goes on.

    Writes OUT/params.toml, which `doorstep train --params` takes. The first trial is what is done today.
    """
    from training.tune import tune as run

    out = out or Path("runs") / f"{dataset.resolve().name}-tuning"
    registry = None
    if log:
        from training.registry import Registry

        registry = Registry(mlflow_uri)
    data = _open(dataset, voice)
    try:
        result = run(
            data,
            out=out,
            as_of=_zoned(as_of, data),
            holdout_from=_zoned(holdout_from, data),
            targets=targets,
            trials=trials,
            seconds=time_budget,
            seed=seed,
            trust=trust,
            registry=registry,
            progress=voice.progress,
        )
    except KeyboardInterrupt:
        voice.close()
        click.echo(f"interrupted: the finished trials are kept in {out}; the same command goes on", err=True)
        ctx.exit(130)
    voice.close()
    if as_json:
        _dump(result.document)
    else:
        from training.tune_report import table

        click.echo(table(result.document))
        click.echo(f"\n{out / 'params.toml'}, all trials beside it")
    voice.next(f"doorstep train {dataset} --params {out / 'params.toml'}")
    if result.unlogged:
        click.echo(f"not all trials are logged, and none is lost: {result.unlogged}", err=True)
        click.echo("the same command logs them once the registry answers, or leave it with --no-log", err=True)
        ctx.exit(1)


@main.command()
@dataset_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File for the scores, .parquet or .csv.")
@bundle_option
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option("--decided-from", metavar="DATE", help="Score only what was decided from then on.")
@voiced
def score(voice: Voice, dataset: Path, out: Path, bundle: Path, as_of: str | None, decided_from: str | None) -> None:
    """Score a dataset, a row per target and unit, with points of risk by team and the main drivers in words."""
    import pandas as pd

    from features.files import write_frame
    from features.matrix import chunks
    from features.snapshot import Facts, moment
    from serving.bundle import Bundle
    from serving.score import score as run
    from serving.store import resolve

    if out.suffix not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out}: the scores are written as .parquet or .csv", param_hint="--out")
    loaded = Bundle.load(resolve(bundle))
    data = _open(dataset, voice)
    voice.progress("joining tables and counting history")
    facts = Facts.of(data, _zoned(as_of, data))
    since = _zoned(decided_from, data)
    frames: list[pd.DataFrame] = []
    done, total = 0, facts.rows.parcels.n
    for rows, parcel, _ in chunks(facts):
        frames += run(loaded, rows, None if since is None else moment(since))
        done += len(parcel)
        voice.progress(f"scored {done:,} of {total:,} parcels")
    write_frame(pd.concat(frames, ignore_index=True), out)
    voice.close()
    click.echo(out)
    voice.next(f"read {out}: columns unit_id, target, probability, base, team_* and drivers")


@main.command()
@dataset_argument
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    envvar="DOORSTEP_POLICY",
    metavar="FILE",
    help="Says what each action is judged by and what is expected of it [default: what is usual].",
)
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option(
    "--level",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.05,
    show_default=True,
    help="Chance of being fooled, ever, by any primary target; and as much by all guardrails together.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for effect.json, a picture per action, effects.toml."
)
@json_option
@voiced
def effect(
    voice: Voice,
    dataset: Path,
    policy: Path | None,
    as_of: str | None,
    level: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what the actions do that the policy withholds by lot: one answer each, valid however often you look.

    DATASET needs the table decisions, which `doorstep ledger export` writes. What was not randomized is not estimated.
    """
    from serving.policy import Policy
    from training.effect import effect as run
    from training.effect_report import fragment, pictures, table

    stated = None if policy is None else Policy.load(policy)  # a mistake in it is told before the data are read
    data = _open(dataset, voice)
    voice.progress("judging parcels")
    found = run(data, policy=stated, as_of=_zoned(as_of, data), level=level)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        files = pictures(found) | {
            "effect.json": json.dumps(found.document, indent=2).encode(),
            "effects.toml": fragment(found.document).encode(),
        }
        for name, content in files.items():
            part = out / f".{name}.part"
            part.write_bytes(content)
            os.replace(part, out / name)
    voice.close()
    if as_json:
        _dump(found.document)
    else:
        click.echo(table(found.document))
    told = [a for a, f in found.document["actions"].items() if f["answer"] in ("works", "does harm")]
    if told:
        place = out / "effects.toml" if out else "effects.toml, which --out DIR writes,"
        voice.next(f"paste {place} into the policy")


@main.command()
@dataset_argument
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option("--since", metavar="DATE", help="Only what was decided from then on [default: everything].")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the tables, as CSV.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@json_option
@voiced
def diagnose(
    voice: Voice, dataset: Path, as_of: str | None, since: str | None, out: Path, seed: int, as_json: bool
) -> None:
    """Find where it broke: carriers' corridors, the legs of late parcels, products whose listing misleads.

    Corridors are held against what other carriers would have done with the same parcels, products against comparable
    ones; only outcomes old enough to judge count, and what cannot be told apart is said to be so.
    """
    from training.diagnosis.diagnose import diagnose as run
    from training.diagnosis.diagnose import text, write

    data = _open(dataset, voice)
    found = run(data, as_of=_zoned(as_of, data), since=since, seed=seed, progress=voice.progress)
    write(found, out)
    voice.close()
    if as_json:
        _dump(found.document)
    else:
        click.echo(text(found))
    voice.next(f"the tables are in {out}")


def _bundles_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--publish",
        type=click.Path(path_type=Path),
        default=BUNDLES,
        show_default=True,
        help="Where services look for it.",
    )(command)


@main.command()
@click.argument("version", required=False)
@_bundles_option
@click.option(
    "--gate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What VERSION has to show [default: gate.toml in the checkout's folder mlflow].",
)
@click.option("--dry-run", is_flag=True, help="Compare with the champion, and change nothing.")
@click.option("--force", is_flag=True, help="Promote although the gate refuses; it is recorded.")
@mlflow_option
@json_option
@voiced
def promote(
    voice: Voice,
    version: str | None,
    publish: Path,
    gate: Path | None,
    dry_run: bool,
    force: bool,
    mlflow_uri: str | None,
    as_json: bool,
) -> None:
    """Make VERSION (default: the challenger) the champion and publish its bundle to running services.

    It has to pass the gate first: both are compared on what neither has seen. Status 1 if it does not.
    """
    from training.gate import Rule, judge
    from training.registry import Refused, Registry

    rule = Rule.read(gate) if gate else Rule.usual()
    registry = Registry(mlflow_uri)
    if dry_run:
        voice.progress("comparing")
        decision = registry.compare(version, judge=lambda ours, theirs: judge(ours, theirs, rule))
        voice.close()
        if as_json:
            _dump(decision.to_dict() if decision else None)
        elif decision is None:
            click.echo("there is no other champion to compare with")
        else:
            _compared(decision)
            click.echo("passes" if decision.passed else "does not pass")
        if decision is not None and not decision.passed:
            raise click.exceptions.Exit(1)
        return
    voice.progress("comparing and promoting")
    try:
        done = registry.promote(
            version, judge=lambda ours, theirs: judge(ours, theirs, rule), publish=publish, force=force
        )
    except Refused as refused:
        voice.close()
        if as_json:
            _dump(refused.decision.to_dict())
        else:
            click.echo(refused.decision.table())
        raise
    voice.close()
    if not as_json and done.decision is not None:
        _compared(done.decision)
    _promoted(voice, done, publish, as_json)


def _compared(decision: Any) -> None:
    for said in (decision.table(), decision.why):
        if said:
            click.echo(said)


@main.command()
@_bundles_option
@mlflow_option
@json_option
@voiced
def rollback(voice: Voice, publish: Path, mlflow_uri: str | None, as_json: bool) -> None:
    """Make the champion before the present one the champion again, and publish its bundle."""
    from training.registry import Registry

    voice.progress("rolling back")
    done = Registry(mlflow_uri).rollback(publish=publish)
    _promoted(voice, done, publish, as_json)


def _promoted(voice: Voice, done: Any, publish: Path, as_json: bool) -> None:
    voice.close()
    if as_json:
        _dump(done.to_dict())
    else:
        click.echo(str(done))
    voice.next(f"doorstep serve --bundle {publish}   (a running service takes it up by itself)")


@main.command()
@mlflow_option
@json_option
@voiced
def models(voice: Voice, mlflow_uri: str | None, as_json: bool) -> None:
    """List the registered versions, their aliases and their headline figures."""
    from training.registry import Registry
    from training.report import versions

    voice.progress("reading the registry")
    found = Registry(mlflow_uri).models()
    voice.close()
    if as_json:
        _dump(found)
    else:
        click.echo(versions(found))
    voice.next("doorstep promote VERSION" if found else "doorstep train DATASET")


@main.group()
def policy() -> None:
    """What failures and actions cost, and what is worth doing: a file the service reads."""


@policy.command("init")
@dataset_argument
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("policy.toml"), show_default=True, help="File to write."
)
@voiced
def policy_init(voice: Voice, dataset: Path, out: Path) -> None:
    """Draft a policy with what a dataset has: packages, carriers, corridors, pickups. Costs are guesses to replace."""
    from training.policy import draft

    if out.exists():
        raise ValueError(f"{out} is there already: name another file with --out, or remove it")
    text = draft(_open(dataset, voice))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    voice.next(
        f"replace the guesses in {out}, then doorstep policy check {out} --dataset {dataset}",
        f"doorstep serve --policy {out}",
    )


@policy.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dataset", type=click.Path(path_type=Path), help="Say what of this dataset the policy does not know.")
@json_option
@voiced
@click.pass_context
def policy_check(ctx: click.Context, voice: Voice, file: Path, dataset: Path | None, as_json: bool) -> None:
    """Say everything that is wrong with a policy. Status 1 if the dataset has something it does not know."""
    from serving.policy import Policy
    from training.policy import lacking

    found = Policy.load(file)
    open_ends = [] if dataset is None else lacking(found, _open(dataset, voice))
    voice.close()
    if as_json:
        _dump({"policy": found.digest, "lacking": open_ends})
    else:
        parts = (
            f"{len(found.packages)} packages, {len(found.carriers)} services of carriers, {len(found.actions)} actions"
        )
        click.echo(f"{file} can be used: policy {found.digest}, {parts}, {len(found.specification)} packing rules")
        for line in open_ends:
            click.echo(f"  {line}")
    ctx.exit(1 if open_ends else 0)


@policy.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@dataset_argument
@bundle_option
@click.option("--from", "since", metavar="DATE", help="Parcels decided from then on [default: a quarter before --to].")
@click.option("--to", "until", metavar="DATE", help="... and before then [default: when the youngest can be judged].")
@click.option("--out", type=click.Path(path_type=Path), help="File for the changed decisions, .csv or .parquet.")
@json_option
@voiced
def policy_diff(
    voice: Voice,
    old: Path,
    new: Path,
    dataset: Path,
    bundle: Path,
    since: str | None,
    until: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Decide again about a past period: what would NEW have changed, in decisions, money and capacity?

    Both policies see the risks that the bundle gives by what was known then. Money is expected, not what happened.
    """
    from features.files import write_frame
    from serving.bundle import Bundle
    from serving.policy import Policy
    from serving.store import resolve
    from training.replay import replay, table

    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out}: decisions are written as .csv or .parquet", param_hint="--out")
    before, after = Policy.load(old), Policy.load(new)  # a mistake in them is told before the data are read
    loaded = Bundle.load(resolve(bundle))
    data = _open(dataset, voice)
    found = replay(
        data, before, after, loaded, since=_zoned(since, data), until=_zoned(until, data), progress=voice.progress
    )
    if out is not None:
        write_frame(found.changed, out)
    voice.close()
    if as_json:
        _dump(found.document)
    else:
        click.echo(table(found.document))
    if found.document["capacity"]["new"]:
        voice.next("set least_benefit where an action is short, and compare again")


@main.group()
def ledger() -> None:
    """The record of decisions, overrides and outcomes. URL is that of its database, default DOORSTEP_LEDGER."""


def ledger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the ledger's URL and where its files lie."""
    for name, what in (("heads", "File of signed heads"), ("key", "Key file")):
        command = click.option(
            f"--{name}",
            type=click.Path(),
            help=f"{what}; default DOORSTEP_LEDGER_{name.upper()}, else beside the SQLite file or in ./ledger.",
        )(command)
    return click.argument("url", envvar="DOORSTEP_LEDGER", help="Where the ledger's database is.")(command)


@ledger.command("verify")
@ledger_options
@json_option
@voiced
@click.pass_context
def ledger_verify(ctx: click.Context, voice: Voice, url: str, key: str, heads: str, as_json: bool) -> None:
    """Is the ledger what was written? Names the place of every change. Status 1 if there is one."""
    from dataclasses import asdict

    from serving.ledger import Paths
    from serving.ledger.upkeep import opened
    from serving.ledger.verify import verify

    paths = Paths.of(url, key=key, heads=heads)
    with closing(opened(url, paths)) as database:
        found = verify(database, paths.heads)
    voice.close()
    if as_json:
        _dump({"ok": found.ok, **asdict(found)})
    else:
        for finding in found.findings:
            click.echo(finding.what)
        if found.count > len(found.findings):
            click.echo(f"... and {found.count - len(found.findings):,} more")
        gone = f"{found.erased:,} erased, {found.expired:,} past their retention"
        click.echo(
            f"{'sound' if found.ok else 'NOT sound'}: {found.records:,} records ({gone}), {found.heads:,} signed "
            f"heads, {found.unsigned:,} records after the last of them"
        )
    ctx.exit(0 if found.ok else 1)


@ledger.command("export")
@ledger_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the three files.")
@json_option
@voiced
def ledger_export(voice: Voice, url: str, key: str, heads: str, out: Path, as_json: bool) -> None:
    """Write decisions.parquet, and reported outcomes as events.parquet and returns.parquet, for a dataset."""
    from serving.ledger import Paths
    from serving.ledger.export import export
    from serving.ledger.upkeep import opened

    with closing(opened(url, Paths.of(url, key=key, heads=heads))) as database:
        written = export(database, out)
    voice.close()
    if as_json:
        _dump({"rows": dict(written.rows), "gone": written.gone})
    else:
        click.echo(f"{out}: {', '.join(f'{n:,} {table}' for table, n in written.rows.items())}")
        if written.gone:
            click.echo(f"{written.gone:,} records are left out: their content is erased or past its retention")


@ledger.command("erase")
@ledger_options
@click.option("--customer", help="The customer_id to forget.")
@click.option("--order", help="The order_id to forget, of an order that names no customer.")
@voiced
def ledger_erase(voice: Voice, url: str, key: str, heads: str, customer: str | None, order: str | None) -> None:
    """Destroy a customer's key: what was recorded of them cannot be read again. The chain still verifies."""
    from datetime import UTC, datetime

    from serving.ledger import Paths
    from serving.ledger.upkeep import erase, opened

    if (customer is None) == (order is None):
        raise click.UsageError("name one of --customer and --order")
    subject = ("customer", customer) if customer is not None else ("order", str(order))
    paths = Paths.of(url, key=key, heads=heads)
    with closing(opened(url, paths)) as database:
        count = erase(database, paths, subject, datetime.now(UTC))
    voice.close()
    click.echo(f"{count:,} records of this {subject[0]} lost their content" + ("" if count else ": is the id right?"))


@ledger.command("retain")
@ledger_options
@click.option("--days", type=click.IntRange(min=1), required=True, help="Keep what was recorded in the last N days.")
@voiced
def ledger_retain(voice: Voice, url: str, key: str, heads: str, days: int) -> None:
    """Empty what was recorded more than N days ago. The chain still verifies."""
    from datetime import UTC, datetime

    from serving.ledger import Paths
    from serving.ledger.upkeep import opened, retain

    paths = Paths.of(url, key=key, heads=heads)
    with closing(opened(url, paths)) as database:
        count = retain(database, paths, days, datetime.now(UTC))
    voice.close()
    click.echo(f"{count:,} records older than {days} days lost their content")


@main.command()
@bundle_option
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    envvar="DOORSTEP_SNAPSHOT",
    default=SNAPSHOTS,
    show_default=True,
    help="A snapshot, or where one is published.",
)
@click.option(
    "--policy", type=click.Path(path_type=Path), envvar="DOORSTEP_POLICY", help="A policy [default: none, no advice]."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@voiced
def serve(voice: Voice, bundle: Path, snapshot: Path, policy: Path | None, host: str, port: int, workers: int) -> None:
    """Serve risks, explanations and advice over HTTP. Without a model it answers base rates, and says so."""
    from serving.server import run

    run(host=host, port=port, workers=workers, bundle=bundle, snapshot=snapshot, policy=policy)


@main.command()
@click.argument("name", required=False)
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    envvar="DOORSTEP_DATASET",
    default=".",
    show_default="this folder",
    help="The dataset.",
)
@click.option("--parcel", metavar="ID", help="Look at this parcel.")
@click.option("--line", metavar="ID", help="Look at this order line.")
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@json_option
@voiced
def feature(
    voice: Voice,
    name: str | None,
    dataset: Path,
    parcel: str | None,
    line: str | None,
    as_of: str | None,
    as_json: bool,
) -> None:
    """Look at a feature NAME: its value for one parcel and the facts that made it. Without NAME, list all features."""
    from training.report import feature_list, inspected

    if name is None:
        from features.matrix import catalogue
        from features.settings import Settings

        own = (dataset / "dataset.toml").exists()  # a shop's extra columns are features too
        found = catalogue(_open(dataset, voice).settings if own else Settings()).values()
        voice.close()
        if as_json:
            _dump([{"name": f.name, "team": f.team, "lever": f.lever, "level": f.level, "help": f.help} for f in found])
        else:
            click.echo(feature_list(found))
        voice.next("doorstep feature NAME --dataset DATASET --parcel ID")
        return
    if (parcel is None) == (line is None):
        raise click.UsageError("give one of --parcel and --line to look at a value, and --dataset")
    from training.inspection import inspect

    seen = inspect(_open(dataset, voice), name, parcel=parcel, line=line, as_of=as_of)
    voice.close()
    if as_json:
        _dump(seen.to_dict())
    else:
        click.echo(inspected(seen))
    voice.next("doorstep feature   (lists all features)")


if __name__ == "__main__":
    main()
