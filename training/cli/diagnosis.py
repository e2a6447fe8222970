"""Commands about why parcels fail and goods come back."""

from __future__ import annotations

from pathlib import Path

import click

from training.cli.voice import (
    Voice,
    dataset_argument,
    dump,
    json_option,
    opened,
    voiced,
    zoned,
)


@click.command()
@dataset_argument
@click.option("--as-of", metavar="DATE", help="Only facts known before [default: when the extract was taken].")
@click.option("--since", metavar="DATE", help="Only what was decided from then on [default: everything].")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the tables and their summary.")
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
    from training.diagnosis.artefact import DATABASE, write
    from training.diagnosis.diagnose import diagnose as run
    from training.diagnosis.diagnose import text

    data = opened(dataset, voice)
    found = run(data, as_of=zoned(as_of, data), since=since, seed=seed, progress=voice.progress)
    write(found.tables, found.document, out)
    voice.close()
    if as_json:
        dump(found.document)
    else:
        click.echo(text(found))
    voice.next(f"the tables are in {out / DATABASE}")
