"""Commands about models: training, backtests, tuning, scores, promotion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from training.cli.voice import (
    BUNDLES,
    Voice,
    as_of_option,
    bundle_option,
    bundled,
    dataset_argument,
    dump,
    json_option,
    mlflow_option,
    opened,
    seed_option,
    trust_option,
    voiced,
    zoned,
)

if TYPE_CHECKING:
    from training.registry import Registry


@click.command()
@dataset_argument
@as_of_option
@click.option(
    "--holdout-from", metavar="DATE", help="Judge on what was decided from then on [default: the latest quarter]."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results [default: runs/NAME].")
@seed_option
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
    from training.models.params import Params
    from training.pipeline import train as run

    chosen = None if params is None else Params.read(params)  # a mistake in it is told before the data are read
    data = opened(dataset, voice)
    registry = _reached(mlflow_uri, voice) if log else None
    out = out or Path("runs") / dataset.resolve().name
    result = run(
        data,
        as_of=zoned(as_of, data),
        holdout_from=zoned(holdout_from, data),
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
        dump(result.metrics)
    else:
        from training.evaluate.report import table

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


@click.command()
@dataset_argument
@as_of_option
@click.option("--origins", type=click.IntRange(2), default=4, show_default=True, help="Moments of the past to go live.")
@targets_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results [default: runs/NAME-backtest].")
@seed_option
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
    data = opened(dataset, voice)
    registry = _reached(mlflow_uri, voice) if log else None
    result = run(
        data,
        as_of=zoned(as_of, data),
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
        dump(result.document)
    else:
        from training.backtest.report import table

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


@click.command()
@dataset_argument
@as_of_option
@click.option(
    "--holdout-from", metavar="DATE", help="Nothing decided from then on is looked at [default: the latest quarter]."
)
@targets_option
@click.option(
    "--trials", type=click.IntRange(1), default=30, show_default=True, help="Of each target, earlier ones counted."
)
@click.option("--time-budget", type=_Duration(), metavar="10m", help="Begin no further trial after so long.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the tuning [default: runs/NAME-tuning].")
@seed_option
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
    data = opened(dataset, voice)
    try:
        result = run(
            data,
            out=out,
            as_of=zoned(as_of, data),
            holdout_from=zoned(holdout_from, data),
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
        dump(result.document)
    else:
        from training.tune.report import table

        click.echo(table(result.document))
        click.echo(f"\n{out / 'params.toml'}, all trials beside it")
    voice.next(f"doorstep train {dataset} --params {out / 'params.toml'}")
    if result.unlogged:
        click.echo(f"not all trials are logged, and none is lost: {result.unlogged}", err=True)
        click.echo("the same command logs them once the registry answers, or leave it with --no-log", err=True)
        ctx.exit(1)


@click.command()
@dataset_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File for the scores, .parquet or .csv.")
@bundle_option
@as_of_option
@click.option("--decided-from", metavar="DATE", help="Score only what was decided from then on.")
@voiced
def score(voice: Voice, dataset: Path, out: Path, bundle: Path, as_of: str | None, decided_from: str | None) -> None:
    """Score a dataset, a row per target and unit, with points of risk by team and the main drivers in words."""
    import pandas as pd

    from features.files import write_frame
    from features.matrix import chunks
    from features.snapshot import Facts, moment
    from serving.score import score as run

    if out.suffix not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out}: the scores are written as .parquet or .csv", param_hint="--out")
    loaded = bundled(bundle)
    data = opened(dataset, voice)
    voice.progress("joining tables and counting history")
    facts = Facts.of(data, zoned(as_of, data))
    since = zoned(decided_from, data)
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


def _bundles_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--publish",
        type=click.Path(path_type=Path),
        default=BUNDLES,
        show_default=True,
        help="Where services look for it.",
    )(command)


@click.command()
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
    from training.evaluate.gate import Rule, judge
    from training.registry import Refused, Registry

    rule = Rule.read(gate) if gate else Rule.usual()
    registry = Registry(mlflow_uri)
    if dry_run:
        voice.progress("comparing")
        decision = registry.compare(version, judge=lambda ours, theirs: judge(ours, theirs, rule))
        voice.close()
        if as_json:
            dump(decision.to_dict() if decision else None)
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
            dump(refused.decision.to_dict())
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


@click.command()
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
        dump(done.to_dict())
    else:
        click.echo(str(done))
    voice.next(f"doorstep serve --bundle {publish}   (a running service takes it up by itself)")


@click.command()
@mlflow_option
@json_option
@voiced
def models(voice: Voice, mlflow_uri: str | None, as_json: bool) -> None:
    """List the registered versions, their aliases and their headline figures."""
    from training.evaluate.report import versions
    from training.registry import Registry

    voice.progress("reading the registry")
    found = Registry(mlflow_uri).models()
    voice.close()
    if as_json:
        dump(found)
    else:
        click.echo(versions(found))
    voice.next("doorstep promote VERSION" if found else "doorstep train DATASET")
