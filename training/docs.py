"""Tables in the documentation that are made from the code, so that they cannot drift from it.

A page marks a place with `<!-- generated: NAME ARGUMENT -->` and `<!-- /generated -->`; what stands between is
rewritten by `python -m training.docs`. A test fails where it is not what the code says.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.contracts import KINDS, ORDERED_TIMES, TABLES, Column
from features.settings import KEYS
from features.vocabulary import EVENT_KINDS, RETURN_REASONS, TARGETS, TEAMS

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


def return_reasons(_: str = "") -> str:
    """Doorstep's return reasons, and whose each is."""
    rows = [(f"`{r.name}`", r.words, f"`{r.team}`") for r in RETURN_REASONS.values()]
    return _table(("reason", "it came back because", "whose it is"), rows)


def settings(_: str = "") -> str:
    """The keys of `dataset.toml`."""
    return _table(("key", "what it holds"), [(f"`{name}`", words) for name, words in KEYS.items()])


def policy_keys(section: str) -> str:
    """The keys of a section of `policy.toml`; `top` is what stands above the sections."""
    from serving.policy import SECTIONS

    name = next(s for s in SECTIONS if re.sub(r"[^a-z]+", "-", s).strip("-") == ("" if section == "top" else section))
    rows = []
    for key, k in SECTIONS[name].items():
        absent = "it is required" if k.required else "" if k.default in (None, ()) else f"`{json.dumps(k.default)}`"
        only = f" (only `{'`, `'.join(k.only)}`)" if k.only else ""
        rows.append((f"`{key}`{'*' if k.required else ''}", k.help + only, k.allowed, absent))
    return _table(("key", "what it is", "what it may hold", "if it is absent"), rows)


def policy_actions(_: str = "") -> str:
    """What can be done about a parcel, and the column it changes."""
    from features.treated import COLUMNS
    from serving.policy import ACTIONS

    rows = [(f"`{a}`", words, f"`{COLUMNS[a]}`" if a in COLUMNS else "") for a, words in ACTIONS.items()]
    return _table(("action", "what is done", "column of `parcels` it changes"), rows)


def policy_fields(_: str = "") -> str:
    """What a rule of the packing specification may read."""
    from serving.policy import FIELDS

    return _table(("field", "what it is"), [(f"`{name}`", words) for name, words in FIELDS.items()])


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


def return_codes(_: str = "") -> str:
    """The systems whose return reason codes are known, and how many of their codes give which reason."""
    systems = tomllib.loads(files("features").joinpath("reason_codes.toml").read_text(encoding="utf-8"))
    uses = Counter(reason for system in systems.values() for reason in system["codes"].values() if reason)
    reasons = [reason for reason, _ in uses.most_common()]
    rows = []
    for system in systems.values():
        given = list(system["codes"].values())
        counts = (str(given.count(reason) or "") for reason in (*reasons, ""))
        rows.append((f"[{system['words']}]({system['source']})", str(len(given)), *counts))
    return _table(("system", "codes", *(f"`{reason}`" for reason in reasons), "not stated"), rows)


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
    import click

    of: dict[str, list[str]] = {}
    helps: dict[str, str] = {}
    for names in commands():
        for parameter in _context(names).command.params:
            if isinstance(parameter.envvar, str):
                option = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.opts[0].upper()
                of.setdefault(parameter.envvar, []).append(f"`{' '.join(names)} {option}`")
                helps[parameter.envvar] = str(getattr(parameter, "help", ""))
    rows = [(f"`{name}`", ", ".join(of[name]), helps[name]) for name in sorted(of)]
    return _table(("variable", "stands for", "what it is"), rows)


def knobs(_: str = "") -> str:
    """What of a model may be set, and within which bounds."""
    from training.models.params import KNOBS

    rows = [(f"`{k.name}`", f"{k.low:g} to {k.high:g}", f"{k.usual:g}", k.words) for k in KNOBS.values()]
    return _table(("parameter", "may be", "usually", "what it is"), rows)


def world_owners(_: str = "") -> str:
    """Which team owns which causes of the simulated shop, and how many points of each risk they make."""
    from training.world import OWNERS

    points = world("teams")
    rows = []
    for team in TEAMS:
        own = ", ".join(name.replace("_", " ") for name, owner in OWNERS.items() if owner == team)
        rows.append((f"`{team}`", own, *(f"{100 * points[team][target]:.1f}" for target in TARGETS)))
    return _table(("team", "causes it owns", *(f"`{target}`" for target in TARGETS)), rows)


def world_fault_kinds(_: str = "") -> str:
    """The ways in which a simulated shop can go wrong."""
    from training.world import FAULT_KINDS

    rows = []
    for name, kind in FAULT_KINDS.items():
        worse, placed = (", ".join(f"`{x}`" for x in names) for names in (kind.targets, kind.columns))
        rows.append((f"`{name}`", f"`{kind.team}`", worse, kind.unit, placed))
    return _table(("kind", "team", "makes worse", "`effect` is in", "placed by"), rows)


def world_scenarios(_: str = "") -> str:
    """The simulated shops that are shipped."""
    from training.world import shipped

    return _table(("scenario", "what is special about it"), [(f"`{s.name}`", s.words) for s in shipped().values()])


def world(part: str) -> Any:
    """A part of the figures of the simulated shop, as `python -m training.world.picture` has written them."""
    return json.loads((FOLDER / "world" / "figures.json").read_text(encoding="utf-8"))[part]


def world_figures(part: str) -> str:
    """The figures behind a plot of the simulated shop."""
    return {
        "made": _world_made,
        "rates": _world_rates,
        "returns": _world_returns,
        "packaging": _world_packaging,
        "carriers": _world_carriers,
        "reasons": _world_reasons,
        "faults": _world_faults,
    }[part]()


def _share(share: float | None) -> str:
    """A share as percent, to what matters of it."""
    return "" if share is None else f"{100 * share:.{1 if share >= 0.1 else 2}f} %"


def _seen(rate: Mapping[str, float]) -> str:
    """A share as counted, with its interval."""
    if not rate["rows"]:
        return ""
    digits = 1 if rate["seen"] >= 0.1 else 2
    return f"{_share(rate['seen'])} [{100 * rate['low']:.{digits}f}, {100 * rate['high']:.{digits}f}]"


def _world_made() -> str:
    made = world("made")
    scenario = "" if made["scenario"] == "plain" else f" --scenario {made['scenario']}"
    command = f"python -m training.world.picture --parcels {made['parcels']} --seed {made['seed']}{scenario}"
    return f"```sh\n{command}     # make world-picture\n```"


def _world_rates() -> str:
    rows = []
    for name, r in world("rates").items():
        low, high = (f"{100 * share:.0f}" for share in r["range"])
        wanted = f"{low} to {high} %" + (" by category" if name == "returned" else "")
        unit = TARGETS[name].unit
        rows.append(
            (f"`{name}`", wanted, _seen(r), _share(r["true"]), f"{r['rows']:,} {unit}s", f"{r['reachable_auc']:.3f}")
        )
    head = ("target", "should lie in", "in the tables", "true", "could be judged", "AUC of who knows the truth")
    return _table(head, rows)


def _world_returns() -> str:
    found = world("returns")
    reasons = list(next(iter(found.values()))["reasons"])
    rows = [
        (name, f"{r['rows']:,}", _seen(r), _share(r["true"]), *(_share(r["reasons"][reason]) for reason in reasons))
        for name, r in found.items()
    ]
    head = ("category", "lines", "in the tables", "true", *(f"for `{reason}`" for reason in reasons))
    return _table(head, rows)


def _world_packaging() -> str:
    own = world("packaging")
    rows = [
        (f"`{name}`", f"{r['rows']:,}", _seen(r), _share(r["true"]), _share(r["had"]))
        for name, r in own["packages"].items()
    ]
    whole = world("rates")["damaged"]
    rows.append(("as they were", f"{whole['rows']:,}", _seen(whole), _share(whole["true"]), ""))
    rows.append(("each in the next stronger one", "", "", "", _share(own["one_stronger"])))
    head = ("package", "parcels packed in it", "damaged, in the tables", "true", "had all parcels been packed in it")
    return _table(head, rows)


def _world_carriers() -> str:
    rows = [
        (f"`{target}`", name, f"{r['rows']:,}", _seen(r), *(_share(r[key]) for key in ("true", "took", "had")))
        for target, found in world("carriers").items()
        for name, r in found["carriers"].items()
    ]
    head = ("target", "carrier", "parcels it took", "in the tables", "true")
    return _table((*head, "true, of those anybody could take", "had it taken all of those"), rows)


def _world_reasons() -> str:
    own, delays = world("reasons"), world("delays")["by_reason"]
    rows = []
    for reason, stated in own["stated"].items():
        days = delays.get(reason)
        median, after = (f"{days['quantiles'][2]:.1f}", _share(days["after"])) if days else ("", "")
        returns = f"{own['returns'][reason]:,}"
        rows.append((f"`{reason}`", returns, _share(stated[reason]), _share(stated["nothing"]), median, after))
    head = (
        "true reason",
        "returns",
        "stated truly",
        "nothing stated",
        "days to the request, median",
        "after the window",
    )
    return _table(head, rows)


def _world_faults() -> str:
    rows = []
    for name, f in world("faults").items():
        here, elsewhere = f["here"], f["elsewhere"]
        where = ", ".join(f"{column} {value}" for column, value in f["where"].items())
        rows.append(
            (
                f"`{name}`: {f['words']}",
                f"`{f['team']}`",
                f"{where}, since {f['since']}",
                f"`{f['target']}`, {here['after']['rows']:,} {f['unit']}s",
                f"{_share(here['before']['seen'])}, then {_seen(here['after'])}",
                f"{_share(here['after']['true'])}, not {_share(here['after']['had'])}",
                f"{_share(elsewhere['before']['seen'])}, then {_share(elsewhere['after']['seen'])}",
            )
        )
    head = ("what went wrong", "team", "where", "shows in", "in the tables", "true, and had it not been", "elsewhere")
    return _table(head, rows)


GENERATORS: dict[str, Callable[[str], str]] = {
    "columns": columns,
    "kinds": kinds,
    "events": events,
    "settings": settings,
    "policy": policy_keys,
    "policy-actions": policy_actions,
    "policy-fields": policy_fields,
    "absent-tables": absent_tables,
    "order-of-times": order_of_times,
    "targets": targets,
    "teams": teams,
    "return-reasons": return_reasons,
    "return-codes": return_codes,
    "features": features,
    "feature-count": feature_count,
    "command": command,
    "knobs": knobs,
    "variables": variables,
    "world-owners": world_owners,
    "world-fault-kinds": world_fault_kinds,
    "world-scenarios": world_scenarios,
    "world-figures": world_figures,
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
