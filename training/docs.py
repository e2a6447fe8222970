"""Tables in the documentation that are made from the code, so that they cannot drift from it.

A page marks a place with `<!-- generated: NAME ARGUMENT -->` and `<!-- /generated -->`; what stands between is
rewritten by `python -m training.docs`. A test fails where it is not what the code says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from features.contracts import KINDS, ORDERED_TIMES, TABLES, Column
from features.settings import KEYS
from features.vocabulary import EVENT_KINDS, TARGETS, TEAMS

if TYPE_CHECKING:
    import click

FOLDER = Path(__file__).resolve().parent.parent / "docs"
_BLOCK = re.compile(r"(<!-- generated: ([\w -]+?) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def fill(text: str) -> str:
    """The page with everything between its markers made anew.

    Raises:
        KeyError: a marker names nothing that can be generated.
    """

    def made(block: re.Match[str]) -> str:
        name, _, argument = block[2].partition(" ")
        if name not in GENERATORS:
            raise KeyError(f"nothing generates {name!r}; there is {', '.join(GENERATORS)}")
        return f"{block[1]}\n{GENERATORS[name](argument)}\n\n{block[3]}"

    return _BLOCK.sub(made, text)


def columns(table: str) -> str:
    """Every column of a table: what it is, what may stand in it, and what its absence costs."""
    from training.check import COST_OF_ABSENCE

    rows = []
    for c in TABLES[table].columns:
        cost = "it is required" if c.required else COST_OF_ABSENCE[f"{table}.{c.name}"]
        rows.append((f"`{c.name}`{'*' if c.required else ''}", c.help, allowed(c), cost))
    return _table(("column", "what it is", "what may stand in it", "if it is absent"), rows)


def allowed(column: Column) -> str:
    """What may stand in a column, in words."""
    if column.codes:
        return "one of " + ", ".join(f"`{c}`" for c in column.codes)
    if column.kind == "number":
        words = ["number" + (f" in {column.unit}," if column.unit else "")]
        words += [f"from {column.low:,.15g}"] if column.low is not None else []
        words += [f"to {column.high:,.15g}"] if column.high is not None else []
        return " ".join(words)
    return {"id": "key: any text", "code": "code: any text", "time": "time", "flag": "true or false"}[column.kind]


def kinds(_: str = "") -> str:
    """The kinds of columns."""
    return _table(("kind", "what it holds"), [(name, words) for name, words in KINDS.items()])


def events(_: str = "") -> str:
    """The kinds of events."""
    return _table(("kind", "what happened"), [(f"`{name}`", words) for name, words in EVENT_KINDS.items()])


def settings(_: str = "") -> str:
    """The keys of `dataset.toml`."""
    return _table(("key", "what it holds"), [(f"`{name}`", words) for name, words in KEYS.items()])


def absent_tables(_: str = "") -> str:
    """What an absent table costs."""
    from training.check import COST_OF_ABSENCE

    rows = [(f"`{name}`", COST_OF_ABSENCE.get(name, "it is required")) for name in TABLES]
    return _table(("table", "if it is absent"), rows)


def order_of_times(_: str = "") -> str:
    """Which time may not be after which."""
    rows = [(f"`{a}.{b}`", f"`{c}.{d}`") for a, b, c, d in ORDERED_TIMES]
    return _table(("this", "is never after this"), rows)


def targets(_: str = "") -> str:
    """What is predicted."""
    rows = [(f"`{t.name}`", t.unit, t.positive, t.matures) for t in TARGETS.values()]
    return _table(("target", "per", "true if", "can be judged"), rows)


def teams(_: str = "") -> str:
    """The owner teams, as a sentence's part."""
    return ", ".join(f"`{t}`" for t in TEAMS)


def features(team: str) -> str:
    """The features a team owns."""
    from features.definitions import FEATURES

    rows = []
    for f in FEATURES.values():
        if f.team == team:
            per = f"{f.level} ({f.aggregate} for a parcel)" if f.aggregate else f.level
            signs = [f"{'raises' if sign > 0 else 'lowers'} `{target}`" for target, sign in f.signs.items()]
            rows.append((f"`{f.name}`", f.text, f.help, per, "yes" if f.lever else "", ", ".join(signs)))
    head = ("feature", "as answers say it", "what it is", "per", "lever", "a higher value only ever")
    return _table(head, rows)


def feature_count(_: str = "") -> str:
    """How many features there are, by team and level."""
    from features.definitions import FEATURES

    rows = []
    for team in TEAMS:
        own = [f for f in FEATURES.values() if f.team == team]
        levels = [sum(f.level == level for f in own) for level in ("parcel", "line")]
        rows.append((f"`{team}`", *(str(n) for n in (*levels, sum(f.lever for f in own)))))
    total = [sum(int(row[i]) for row in rows) for i in (1, 2, 3)]
    return _table(("team", "per parcel", "per line", "levers"), [*rows, ("all", *(str(n) for n in total))])


def command(path: str) -> str:
    """The help of a command, as it says it on a terminal of 100 columns; without a name, that of `doorstep`."""
    context = _context(path.split())
    return f"```text\n{context.get_help()}\n```"


def _context(names: Sequence[str]) -> click.Context:
    import click

    from training.cli import main

    context = click.Context(main, info_name="doorstep", terminal_width=100, **main.context_settings)
    for name in names:
        group = context.command
        if not isinstance(group, click.Group) or name not in group.commands:
            raise KeyError(f"doorstep has no command {' '.join(names)!r}")
        context = click.Context(group.commands[name], parent=context, info_name=name)
    return context


def commands() -> Iterator[tuple[str, ...]]:
    """Every command, as its names after `doorstep`; () is `doorstep` itself."""
    import click

    def below(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield names
        found = _context(names).command
        if isinstance(found, click.Group):
            for name in found.commands:
                yield from below((*names, name))

    return below(())


def variables(_: str = "") -> str:
    """The environment variables that stand for options."""
    of: dict[str, list[str]] = {}
    helps: dict[str, str] = {}
    for names in commands():
        for parameter in _context(names).command.params:
            if isinstance(parameter.envvar, str):
                option = parameter.opts[0]
                of.setdefault(parameter.envvar, []).append(f"`{' '.join(names)} {option}`")
                helps[parameter.envvar] = str(getattr(parameter, "help", ""))
    rows = [(f"`{name}`", ", ".join(of[name]), helps[name]) for name in sorted(of)]
    return _table(("variable", "stands for", "what it is"), rows)


GENERATORS: dict[str, Callable[[str], str]] = {
    "columns": columns,
    "kinds": kinds,
    "events": events,
    "settings": settings,
    "absent-tables": absent_tables,
    "order-of-times": order_of_times,
    "targets": targets,
    "teams": teams,
    "features": features,
    "feature-count": feature_count,
    "command": command,
    "variables": variables,
}
"""What a marker may name."""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> int:
    """Rewrite the generated parts of every page; says which changed."""
    for page in sorted(FOLDER.rglob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            page.write_text(new, encoding="utf-8", newline="\n")
            print(f"rewrote {page.relative_to(FOLDER.parent)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
