"""Commands about why parcels fail and goods come back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from training.cli.voice import (
    Voice,
    as_of_option,
    bundled,
    dataset_argument,
    dump,
    json_option,
    opened,
    seed_option,
    voiced,
    zoned,
)


@click.command()
@dataset_argument
@as_of_option
@click.option("--since", metavar="DATE", help="Only what was decided from then on [default: everything].")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the tables and their summary.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="A bundle, or where one is published: hold its predictions against what came.",
)
@click.option("--standards", type=click.Path(path_type=Path), help="The shop's own standards for carriers, as TOML.")
@seed_option
@json_option
@voiced
def diagnose(
    voice: Voice,
    dataset: Path,
    as_of: str | None,
    since: str | None,
    out: Path,
    bundle: Path | None,
    standards: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Find where it broke: carriers, warehouses, packages, and products whose listing misleads.

    Corridors are held against what other carriers would have done with the same parcels, products against comparable
    ones, warehouses against each other; only outcomes old enough to judge count, and what cannot be told apart is said
    to be so.
    """
    from serving.diagnosis import DATABASE
    from training.diagnosis.artefact import write
    from training.diagnosis.diagnose import diagnose as run
    from training.diagnosis.diagnose import text
    from training.diagnosis.standards import read

    limits = None if standards is None else read(standards)
    held = None if bundle is None else bundled(bundle)
    data = opened(dataset, voice)
    found = run(
        data,
        as_of=zoned(as_of, data),
        since=since,
        bundle=held,
        standards=limits,
        seed=seed,
        progress=voice.progress,
    )
    write(found.tables, found.document, out)
    voice.close()
    if as_json:
        dump(found.document)
    else:
        click.echo(text(found))
    voice.next(f"the tables are in {out / DATABASE}")


@click.command("meeting-pack")
@click.argument("diagnosis", type=click.Path(path_type=Path))
@click.option("--carrier", metavar="NAME", required=True, help="The carrier that is met.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the files, or an archive: its name ends in .zip.",
)
@voiced
def meeting_pack(voice: Voice, diagnosis: Path, carrier: str, out: Path) -> None:
    """Write what a carrier manager takes to a carrier: two printed pages, the parcels as CSV, and what they mean.

    The same bytes as the button of the page gives.
    """
    from serving.diagnosis import Diagnosis
    from serving.pages import Site
    from serving.pages.meeting import pack, zipped

    voice.progress(f"reading {diagnosis}")
    files = pack(Diagnosis.open(diagnosis), carrier, Site(language=_language()))
    if out.suffix == ".zip":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(zipped(files))
    else:
        _written(files, out)
    voice.close()
    click.echo(f"{', '.join(files)}: {out}")


@click.command()
@click.argument("diagnosis", type=click.Path(path_type=Path))
@click.option(
    "--team", type=click.Choice(["packing", "listing", "carrier", "fulfilment"]), required=True, help="Whose."
)
@click.option("--week", metavar="WEEK", required=True, help="ISO week, such as 2025-W52, until the diagnosis ends.")
@click.option(
    "--previous", type=click.Path(path_type=Path), help="Last week's diagnosis, to say what came of its list."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for brief.html and brief.md [default: print it].")
@voiced
def brief(voice: Voice, diagnosis: Path, team: str, week: str, previous: Path | None, out: Path | None) -> None:
    """Write a team's week on one page: the actions worth most, their value and owner, and what came of last week's."""
    from serving.diagnosis import Diagnosis
    from serving.pages import Site
    from serving.pages.brief import TEXT
    from serving.pages.brief import brief as written

    voice.progress(f"reading {diagnosis}")
    before = None if previous is None else Diagnosis.open(previous)
    files = written(Diagnosis.open(diagnosis), team, week, Site(language=_language()), before)
    voice.close()
    if out is None:
        click.echo(files[TEXT].decode(), nl=False)
        return
    _written(files, out)
    click.echo(f"{', '.join(files)}: {out}")


def _language() -> str:
    """Of the pages, as the service takes it."""
    return os.environ.get("DOORSTEP_LANGUAGE") or "en"


def _written(files: Mapping[str, bytes], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
