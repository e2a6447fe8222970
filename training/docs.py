"""Tables in the documentation that are made from the code, so that they cannot drift from it.

A page marks a place with `<!-- generated: NAME ARGUMENT -->` and `<!-- /generated -->`; what stands between is
rewritten by `python -m training.docs`. A test fails where it is not what the code says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from features.contracts import KINDS, ORDERED_TIMES, TABLES, Column
from features.settings import KEYS
from features.vocabulary import EVENT_KINDS, TARGETS, TEAMS

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


GENERATORS: dict[str, Callable[[str], str]] = {
    "columns": columns,
    "kinds": kinds,
    "events": events,
    "settings": settings,
    "absent-tables": absent_tables,
    "order-of-times": order_of_times,
    "targets": targets,
    "teams": teams,
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
