"""The command `doorstep`. Heavy libraries are imported inside the commands that need them, so that `--help` is quick.

Data go to stdout, progress and hints to stderr. Exit status: 0 fine, 1 findings, 2 wrong use.
"""

from __future__ import annotations

import os

import click

from training.cli import data, decisions, diagnosis, models, service
from training.cli.voice import CONTEXT, Group, Voice


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


for _command in (
    data.world,
    data.scenarios,
    data.import_,
    data.check,
    data.snapshot,
    models.train,
    models.backtest,
    models.tune,
    models.score,
    decisions.effect,
    diagnosis.diagnose,
    diagnosis.brief,
    diagnosis.meeting_pack,
    models.promote,
    models.rollback,
    models.models,
    decisions.policy,
    decisions.ledger,
    service.serve,
    service.announce,
    data.feature,
):
    main.add_command(_command)
