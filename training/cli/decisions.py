"""Commands about decisions: the policy, the ledger and what advice has changed."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from training.cli.voice import (
    Voice,
    as_of_option,
    bundle_option,
    bundled,
    dataset_argument,
    dump,
    json_option,
    opened,
    voiced,
    zoned,
)

if TYPE_CHECKING:
    from serving.ledger import Paths


@click.command()
@dataset_argument
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    envvar="DOORSTEP_POLICY",
    metavar="FILE",
    help="Says what each action is judged by and what is expected of it [default: what is usual].",
)
@as_of_option
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
    from training.effect.report import fragment, pictures, table

    stated = None if policy is None else Policy.load(policy)  # a mistake in it is told before the data are read
    data = opened(dataset, voice)
    voice.progress("judging parcels")
    found = run(data, policy=stated, as_of=zoned(as_of, data), level=level)
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
        dump(found.document)
    else:
        click.echo(table(found.document))
    told = [a for a, f in found.document["actions"].items() if f["answer"] in ("works", "does harm")]
    if told:
        place = out / "effects.toml" if out else "effects.toml, which --out DIR writes,"
        voice.next(f"paste {place} into the policy")


@click.group()
def policy() -> None:
    """What failures and actions cost, and what is worth doing: a file the service reads."""


@policy.command("init")
@dataset_argument
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("policy.toml"), show_default=True, help="File to write."
)
@click.option(
    "--order-value",
    type=click.FloatRange(0, min_open=True),
    metavar="AMOUNT",
    help="What a usual order is worth, which guesses go by [default: the dataset's middle].",
)
@voiced
def policy_init(voice: Voice, dataset: Path, out: Path, order_value: float | None) -> None:
    """Draft a policy with what a dataset has: packages, carriers, corridors, pickups. Costs are guesses to replace."""
    from training.policy import NO_VALUE, draft, usual_value

    if out.exists():
        raise ValueError(f"{out} is there already: name another file with --out, or remove it")
    data = opened(dataset, voice)
    value = order_value or usual_value(data)
    text = draft(data, value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    if value is None:
        money = data.settings.currency or "of its currency"
        again = f"remove {out} and draft it again with --order-value AMOUNT"
        voice.next(
            f"{dataset} has no values of orders, amounts are as if a usual one were worth {NO_VALUE:g} {money}: {again}"
        )
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
    from training.policy import lacking, never_offered, unsaid

    found = Policy.load(file)
    warnings = [*unsaid(found), *never_offered(found)]
    open_ends = [] if dataset is None else lacking(found, opened(dataset, voice))
    voice.close()
    if as_json:
        dump({"policy": found.digest, "lacking": open_ends, "warnings": warnings})
    else:
        parts = (
            f"{len(found.packages)} packages, {len(found.carriers)} services of carriers, {len(found.actions)} actions"
        )
        click.echo(f"{file} can be used: policy {found.digest}, {parts}, {len(found.specification)} packing rules")
        for line in (*open_ends, *warnings):
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
    from serving.policy import Policy
    from training.policy.replay import replay, table

    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out}: decisions are written as .csv or .parquet", param_hint="--out")
    before, after = Policy.load(old), Policy.load(new)  # a mistake in them is told before the data are read
    loaded = bundled(bundle)
    data = opened(dataset, voice)
    found = replay(
        data, before, after, loaded, since=zoned(since, data), until=zoned(until, data), progress=voice.progress
    )
    if out is not None:
        write_frame(found.changed, out)
    voice.close()
    if as_json:
        dump(found.document)
    else:
        click.echo(table(found.document))
    if found.document["capacity"]["new"]:
        voice.next("set least_benefit where an action is short, and compare again")


@click.group()
def ledger() -> None:
    """The record of decisions, overrides and outcomes. URL is that of its database, default DOORSTEP_LEDGER."""


def ledger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the ledger's URL, and as `paths` where its files lie."""

    @functools.wraps(command)
    def with_paths(
        *arguments: Any, url: str, key: str | None, heads: str | None, journal: str | None, **rest: Any
    ) -> Any:
        from serving.ledger import Paths

        paths = Paths.of(url, key=key, heads=heads, journal=journal)
        return command(*arguments, url=url, paths=paths, **rest)

    given = with_paths
    for name, what, variable in (
        ("journal", "Folder of journals", "DOORSTEP_JOURNAL"),
        ("heads", "File of signed heads", "DOORSTEP_LEDGER_HEADS"),
        ("key", "Key file", "DOORSTEP_LEDGER_KEY"),
    ):
        given = click.option(
            f"--{name}",
            type=click.Path(),
            help=f"{what}; default {variable}, else beside the SQLite file or in ./ledger.",
        )(given)
    return click.argument("url", envvar="DOORSTEP_LEDGER", help="Where the ledger's database is.")(given)


def waiting(count: int, folder: Path) -> str:
    """What is said of decisions that are not in the database yet."""
    return (
        f"not in it: {count:,} decisions that still lie in {folder}; the service delivers them, within seconds if it "
        "runs and its database answers, else when it starts again"
    )


@ledger.command("verify")
@ledger_options
@json_option
@voiced
@click.pass_context
def ledger_verify(ctx: click.Context, voice: Voice, url: str, paths: Paths, as_json: bool) -> None:
    """Is the ledger what was written? Names the place of every change. Status 1 if there is one."""
    from dataclasses import asdict

    from serving.ledger.upkeep import opened
    from serving.ledger.verify import verify

    with closing(opened(url, paths)) as database:
        found = verify(database, paths.heads, paths.journal)
    voice.close()
    if as_json:
        dump({"ok": found.ok, **asdict(found)})
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
        if found.waiting:
            click.echo(waiting(found.waiting, paths.journal))
    ctx.exit(0 if found.ok else 1)


@ledger.command("export")
@ledger_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the three files.")
@json_option
@voiced
def ledger_export(voice: Voice, url: str, paths: Paths, out: Path, as_json: bool) -> None:
    """Write decisions.parquet, and reported outcomes as events.parquet and returns.parquet, for a dataset.

    What a service that is dead left in its journal is delivered first.
    """
    from serving.ledger.export import export
    from serving.ledger.upkeep import opened, take_over

    taken = take_over(url, paths)
    with closing(opened(url, paths)) as database:
        written = export(database, out, paths.journal)
    voice.close()
    if as_json:
        dump({"rows": dict(written.rows), "gone": written.gone, "delivered": taken, "waiting": written.waiting})
    else:
        click.echo(f"{out}: {', '.join(f'{n:,} {table}' for table, n in written.rows.items())}")
        if written.gone:
            click.echo(f"{written.gone:,} records are left out: their content is erased or past its retention")
        if taken:
            click.echo(f"{taken:,} decisions were delivered first: a service that is dead left them in {paths.journal}")
        if written.waiting:
            click.echo(waiting(written.waiting, paths.journal))


@ledger.command("erase")
@ledger_options
@click.option("--customer", help="The customer_id to forget.")
@click.option("--order", help="The order_id to forget, of an order that names no customer.")
@voiced
def ledger_erase(voice: Voice, url: str, paths: Paths, customer: str | None, order: str | None) -> None:
    """Destroy a customer's key: what was recorded of them cannot be read again. The chain still verifies."""
    from datetime import UTC, datetime

    from serving.ledger.upkeep import erase, opened

    if (customer is None) == (order is None):
        raise click.UsageError("name one of --customer and --order")
    subject = ("customer", customer) if customer is not None else ("order", str(order))
    with closing(opened(url, paths)) as database:
        count = erase(database, paths, subject, datetime.now(UTC))
    voice.close()
    click.echo(f"{count:,} records of this {subject[0]} lost their content" + ("" if count else ": is the id right?"))


@ledger.command("retain")
@ledger_options
@click.option("--days", type=click.IntRange(min=1), required=True, help="Keep what was recorded in the last N days.")
@voiced
def ledger_retain(voice: Voice, url: str, paths: Paths, days: int) -> None:
    """Empty what was recorded more than N days ago. The chain still verifies."""
    from datetime import UTC, datetime

    from serving.ledger.upkeep import opened, retain

    with closing(opened(url, paths)) as database:
        count = retain(database, paths, days, datetime.now(UTC))
    voice.close()
    click.echo(f"{count:,} records older than {days} days lost their content")
