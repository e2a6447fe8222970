"""The command that serves."""

from __future__ import annotations

from pathlib import Path

import click

from training.cli.voice import (
    SNAPSHOTS,
    Voice,
    bundle_option,
    voiced,
)


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
    )
