"""Commands about tables: simulated shops, importers, checks, snapshots, features."""

from __future__ import annotations

import json
from pathlib import Path

import click

from training.cli.voice import (
    SNAPSHOTS,
    Voice,
    as_of_option,
    dataset_argument,
    dump,
    json_option,
    opened,
    voiced,
    zoned,
)


@click.command()
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


@click.command()
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
        dump(known)
        return
    for key, words in known.items():
        click.echo(f"{key:{max(map(len, known))}}  {words}")
    voice.next("doorstep world shop --scenario NAME, or doorstep scenarios NAME > mine.toml for one of your own")


@click.group("import")
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
        dump(report.to_json())
    else:
        click.echo(str(report))
    voice.next(f"doorstep check {out}")


@click.command()
@dataset_argument
@json_option
@voiced
@click.pass_context
def check(ctx: click.Context, voice: Voice, dataset: Path, as_json: bool) -> None:
    """Check a dataset: every failure at once, with counts and examples. Exit status 1 if it cannot be trained on."""
    from features.settings import DatasetError
    from training.check import check as run

    report = run(dataset, progress=voice.progress)
    voice.close()
    if as_json:
        dump(report.to_dict())
    elif not dataset.is_dir():  # there is nothing to report on
        raise DatasetError(report.errors, str(dataset))
    else:
        click.echo(report.render())
    voice.next(f"doorstep train {dataset}" if report.ok else "mend the errors above, then check again")
    ctx.exit(0 if report.ok else 1)


@click.command()
@dataset_argument
@as_of_option
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

    data = opened(dataset, voice)
    voice.progress("counting history")
    made = Snapshot.from_dataset(data, zoned(as_of, data))
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "snapshot")
        place = publish(Path(folder) / "snapshot", out, info={"as_of": f"{made.as_of}Z", "dataset": data.settings.name})
    voice.close()
    if as_json:
        dump({"snapshot": str(place), "as_of": f"{made.as_of}Z", "published_to": str(out)})
    else:
        click.echo(f"{place}  as of {made.as_of}Z")
    voice.next(f"doorstep serve --snapshot {out}   (a running service takes it up by itself)")


@click.command()
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
@as_of_option
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
    from training.evaluate.report import feature_list, inspected

    if name is None:
        from features.matrix import catalogue
        from features.settings import Settings

        own = (dataset / "dataset.toml").exists()  # a shop's extra columns are features too
        found = catalogue(opened(dataset, voice).settings if own else Settings()).values()
        voice.close()
        if as_json:
            dump([{"name": f.name, "team": f.team, "lever": f.lever, "level": f.level, "help": f.help} for f in found])
        else:
            click.echo(feature_list(found))
        voice.next("doorstep feature NAME --dataset DATASET --parcel ID")
        return
    if (parcel is None) == (line is None):
        raise click.UsageError("give one of --parcel and --line to look at a value, and --dataset")
    from training.evaluate.inspection import inspect

    seen = inspect(opened(dataset, voice), name, parcel=parcel, line=line, as_of=as_of)
    voice.close()
    if as_json:
        dump(seen.to_dict())
    else:
        click.echo(inspected(seen))
    voice.next("doorstep feature   (lists all features)")
