"""The commands that serve, and that tell a service what waits to be packed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from training.cli.voice import (
    SNAPSHOTS,
    Voice,
    bundle_option,
    dataset_argument,
    opened,
    voiced,
)

SUGGESTED = 8
"""Parcels that are named to be tried: so many that one of them should have something to do."""


@click.command()
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
@click.option(
    "--ledger",
    metavar="URL",
    envvar="DOORSTEP_LEDGER",
    help="Database that decisions are recorded in, such as sqlite:///ledger/ledger.db [default: none, not recorded].",
)
@click.option(
    "--diagnosis",
    type=click.Path(path_type=Path),
    envvar="DOORSTEP_DIAGNOSIS",
    help="A diagnosis for the pages [default: none].",
)
@click.option(
    "--waiting",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="DOORSTEP_WAITING",
    help="File to keep announced parcels in, for the packing station [default: none].",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@voiced
def serve(
    voice: Voice,
    bundle: Path,
    snapshot: Path,
    policy: Path | None,
    ledger: str | None,
    diagnosis: Path | None,
    waiting: Path | None,
    host: str,
    port: int,
    workers: int,
) -> None:
    """Serve risks, explanations and advice over HTTP. Without a model it answers base rates, and says so."""
    from serving.server import run

    run(
        host=host,
        port=port,
        workers=workers,
        bundle=bundle,
        snapshot=snapshot,
        policy=policy,
        ledger=ledger,
        diagnosis=diagnosis,
        waiting=waiting,
    )


@click.command()
@dataset_argument
@click.argument("url", default="http://127.0.0.1:3000")
@click.option("--last", type=click.IntRange(1), default=200, show_default=True, help="How many, the latest.")
@click.option("--out", type=click.Path(path_type=Path), help="Write them to a file, one a line, and send nothing.")
@voiced
def announce(voice: Voice, dataset: Path, url: str, last: int, out: Path | None) -> None:
    """Announce a dataset's latest parcels to the service at URL, so that its packing station finds them.

    A shop's own system does this itself, with POST /v1/parcels. The service must keep parcels, see `doorstep serve
    --waiting`.
    """
    from training.announce import requests, send

    parcels = requests(opened(dataset, voice), last)
    if not parcels:
        raise ValueError(f"{dataset} has no parcels to announce")
    if out is not None:
        part = out.with_name(f".{out.name}.part")
        part.write_text("".join(json.dumps(p) + "\n" for p in parcels), encoding="utf-8")
        os.replace(part, out)
    else:
        for done in send(url, parcels):
            voice.progress(f"announcing, {done} of {len(parcels)}")
    voice.close()
    click.echo(f"{len(parcels)} parcels {'written to ' + str(out) if out else 'announced'}")
    if out is None:
        # Which of them there is something to do about, only a scan tells, and every scan is a decision that is kept.
        codes = ", ".join(str(p["parcel"]["parcel_id"]) for p in parcels[: -SUGGESTED - 1 : -1])
        voice.next(
            f"open {url.rstrip('/')}/pack and scan (or type) some of them, such as {codes}; "
            'of most the station just says "Pack as usual"'
        )
