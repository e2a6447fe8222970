"""The whole of Doorstep once, for people who have just arrived: `make demo`, or `python -m training.demo`.

It runs the same commands a user would, each shown before it runs, on a simulated shop in a folder of its own: tables,
check, training, promotion, snapshot, service. Then it asks the running service about one parcel of the holdout and says
the answer in words, taking every figure and every sentence from the answer alone. Last it opens the shop's truth, which
no command has read, and says of one planted fault whether the models have found it.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.vocabulary import TARGETS, TEAMS
from training.evaluate.report import columns, table

if TYPE_CHECKING:
    import pandas as pd

    from training.world import Fault

MARKER = ".doorstep-demo"
"""Marks a folder that the next demo may replace."""
REGISTRY = "sqlite:///mlflow/mlflow.db"
BUNDLE, SNAPSHOT = "deploy/bundle", "deploy/snapshot"
"""Where the commands publish by themselves, in the folder."""
SCORES = "scores.parquet"
POLICY = "policy.toml"
DIAGNOSIS = "diagnosis"
START_SECONDS = 120
"""How long the service may take until it answers, before the demo gives up."""
NOTEWORTHY = 1.25
"""Risks at least this many times the usual are explained; the others are only told."""
NAMED = 3
"""Drivers and teams that are named per risk."""
OVERSTATED = 0.75
"""A fault is overstated if what happened is less than this share of what the model expected."""
ENOUGH = 0.5
"""A fault is found if the model expects at least this share of what it makes worse."""
ENOUGH_ROWS = 50
"""Units that tell what was usual before a fault."""
OTHERS = 3
"""Actions that are told besides the advised one."""
WORTH_A_WORD = 0.05
"""Drivers and teams are named from this share of the rise above the usual on."""


class DemoError(Exception):
    """A step of the demo failed; says which, and what it answered."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path), default="demo")
@click.option("--parcels", type=click.IntRange(2_000), default=20_000, show_default=True, help="Size of the shop.")
@click.option("--seed", type=int, default=7, show_default=True, help="The same seed gives the same shop.")
def main(folder: Path, parcels: int, seed: int) -> None:
    """Show Doorstep from a shop's raw tables to an explained risk over HTTP, in FOLDER, which is made anew."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is said comes before the next step
    try:
        show(folder, parcels, seed)
    except DemoError as error:
        raise click.ClickException(str(error)) from None


def show(folder: Path, parcels: int, seed: int) -> None:
    """Run the demo. Raises DemoError."""
    prepare(folder)
    click.echo(
        f"Doorstep from raw tables to an explained risk, in {folder}/. The shop is SIMULATED: its causes are planted, "
        "its figures say nothing of a real one. A few minutes; each command below is one you can run yourself."
    )
    click.echo(f"\n$ cd {folder}; export DOORSTEP_MLFLOW_URI={REGISTRY}")

    step("A shop's records: six tables, as any shop could bring them")
    doorstep(folder, "world", "shop", "--parcels", str(parcels), "--seed", str(seed))
    step("Is it fit to train on?")
    click.echo(doorstep(folder, "check", "shop"))
    step("One model per outcome, judged on later parcels than it learned from")
    doorstep(folder, "train", "shop")
    click.echo("What it printed, the models beside their baselines, comes at the end.")
    step("Make it the champion, and publish it where services look")
    click.echo(doorstep(folder, "promote"))

    step("Score what no model has learned from, with reasons, as a whole team would read it")
    holdout_from = json.loads((folder / "runs/shop/metrics.json").read_text())["holdout_from"]
    doorstep(folder, "score", "shop", "--decided-from", f"{holdout_from[:16]}Z", "--out", SCORES)

    parcel = riskiest(folder)
    request = request_of(folder, parcel)
    step(f"What the shop knew when parcel {parcel['parcel_id']} lay on the packing table, before its outcome")
    packed_at = parcel["packed_at"].isoformat()
    click.echo(doorstep(folder, "snapshot", "shop", "--as-of", packed_at))

    step("Where it broke: carriers' corridors, whose late parcels were, products that mislead")
    click.echo(doorstep(folder, "diagnose", "shop", "--out", DIAGNOSIS))

    step("What failures and actions cost here: a draft, whose guesses a real shop replaces by its own figures")
    doorstep(folder, "policy", "init", "shop", "--out", POLICY)

    step("Serve it, and ask about that parcel, which no model has learned from")
    with service(folder) as (host, port):
        (folder / "request.json").write_text(json.dumps(request, indent=2) + "\n")
        click.echo(
            f"$ curl -s http://{host}:{port}/v1/risk -H 'Content-Type: application/json' -d @request.json > answer.json"
        )
        answer = ask(host, port, request)
        (folder / "answer.json").write_text(json.dumps(answer, indent=2) + "\n")
    click.echo("The service is stopped again.")

    heading("What the service answered, as the packing station would say it")
    click.echo("\n".join(in_words(answer, request)))
    heading("What to do about it, by the drafted policy (simulated shop, drafted costs)")
    click.echo("\n".join(advice_in_words(answer)))
    heading("The models beside their baselines (simulated shop)")
    click.echo(table(json.loads((folder / "runs/shop/metrics.json").read_text())))
    heading("One fault that was planted in this shop, and whether the models have found it")
    click.echo("\n".join(fault_in_words(trace(folder))))
    heading("Where to look next")
    click.echo("\n".join(where_next(folder)))


def prepare(folder: Path) -> None:
    """An empty folder for the demo; an earlier demo's is emptied, anything else is refused."""
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"{folder} is a file: name a folder that is empty, or not there yet")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise DemoError(f"{folder} holds something else than an earlier demo: name a folder that is empty")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("made by training.demo, which may delete everything in here\n")


def heading(text: str) -> None:
    """A line that parts the demo's chapters."""
    click.echo(f"\n{text}\n{'=' * len(text)}")


def step(text: str) -> None:
    """What the next command is for."""
    click.echo(f"\n# {text}")


# ---- commands and service


def command(*arguments: str) -> list[str]:
    """A command line of `doorstep`, run by this interpreter."""
    return [sys.executable, "-m", "training.cli", *arguments]


def environment() -> dict[str, str]:
    """The environment of the commands: the user's own settings of Doorstep and MLflow must not reach another shop."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DOORSTEP_") and k != "MLFLOW_TRACKING_URI"}
    return kept | {
        "DOORSTEP_MLFLOW_URI": REGISTRY,
        "BENTOML_DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }


def doorstep(folder: Path, *arguments: str) -> str:
    """Run a command in the folder and return what it says on stdout; its progress goes to our stderr as it comes.

    Raises:
        DemoError: it ended with another status than 0.
    """
    click.echo(f"$ doorstep {shlex.join(arguments)}")
    # Off a terminal the commands keep silent unless told otherwise, and the long ones would seem to hang.
    told = arguments if sys.stderr.isatty() else (*arguments, "-v")
    done = subprocess.run(command(*told), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        click.echo(done.stdout)
        raise DemoError(f"`doorstep {shlex.join(arguments)}` ended with status {done.returncode}; see above")
    return done.stdout.rstrip()


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, int]]:
    """The service on a free port: (host, port) once it answers; stopped at the end.

    Raises:
        DemoError: it did not start.
    """
    arguments = ("serve", "--port", "0", "--policy", POLICY)
    click.echo(f"$ doorstep {shlex.join(arguments)}")
    process = subprocess.Popen(command(*arguments), cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_forward, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield _address(lines)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=10)


def _forward(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        click.echo(line.rstrip(), err=True)
        lines.put(line)
    lines.put(None)


def _address(lines: queue.SimpleQueue[str | None]) -> tuple[str, int]:
    while True:
        try:
            line = lines.get(timeout=START_SECONDS)
        except queue.Empty:
            raise DemoError(f"`doorstep serve` said nothing for {START_SECONDS} s; see above") from None
        if line is None:
            raise DemoError("`doorstep serve` ended before it answered; see above")
        if said := re.search(r"answers on http://([^:/\s]+):(\d+)", line):
            return said[1], int(said[2])


def ask(host: str, port: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Post a request to /v1/risk. Raises DemoError with the service's answer unless it is a model's."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("POST", "/v1/risk", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read().decode()
    except OSError as error:
        raise DemoError(f"the service on port {port} did not answer: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise DemoError(f"the service answered {response.status}: {body}")
    answer: dict[str, Any] = json.loads(body)
    if answer["degraded"]:
        raise DemoError(f"the service answered without a model: {'; '.join(answer['warnings'])}")
    return answer


# ---- the parcel


def riskiest(folder: Path) -> dict[str, Any]:
    """The raw row of the holdout's parcel whose risk of damage, or else of another outcome, is highest.

    Its line, order and later its request come from the shop's tables, not from the training.
    """
    import pandas as pd

    holdout = pd.read_parquet(folder / "runs/shop/holdout.parquet")
    trained = [name for name in ("damaged", *TARGETS) if name in set(holdout["target"]) and _of_parcels(name)]
    if not trained:
        raise DemoError("no model of parcels was trained: metrics.json in the folder runs/shop says why")
    rows = holdout[holdout["target"] == trained[0]].sort_values(["probability", "unit_id"], ascending=[False, True])
    parcels = pd.read_parquet(folder / "shop/parcels.parquet")
    found = parcels[parcels["parcel_id"] == rows["unit_id"].iloc[0]]
    return dict(found.iloc[0])


def _of_parcels(target: str) -> bool:
    return TARGETS[target].unit == "parcel"


def request_of(folder: Path, parcel: Mapping[str, Any]) -> dict[str, Any]:
    """What the packing station sends: the raw rows of the parcel, its order and its lines."""
    import pandas as pd

    orders, lines = (pd.read_parquet(folder / f"shop/{name}.parquet") for name in ("orders", "order_lines"))
    return {
        "order": _plain(orders[orders["order_id"] == parcel["order_id"]])[0],
        "parcel": _plain(pd.DataFrame([parcel]))[0],
        "lines": _plain(lines[lines["parcel_id"] == parcel["parcel_id"]]),
    }


def _plain(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values, times with their zone; what is missing is left out."""
    out = []
    for row in rows.to_dict("records"):
        given = {str(k): v for k, v in row.items() if v is not None and v == v}  # NaN and NaT differ from themselves
        out.append({k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in given.items()})
    return out


# ---- the answer in words


def in_words(answer: Mapping[str, Any], request: Mapping[str, Any]) -> list[str]:
    """An answer of /v1/risk as lines for the packing station, the risks furthest above their usual first.

    Args:
        answer: the body of the answer, with a model.
        request: what was asked, for the products' names.
    """
    skus = {line["line_id"]: line["sku"] for line in request["lines"]}
    said = [(TARGETS[name].words.capitalize(), risk) for name, risk in answer["risks"].items()]
    said += [(f"{skus[risk['line_id']]} {TARGETS['returned'].words}", risk) for risk in answer["returns"]]
    said.sort(key=lambda pair: -_times(pair[1]))
    out = [
        f"Parcel {answer['parcel_id']}, with what was known on {answer['as_of'][:10]}; model {answer['bundle']}:",
        "",
    ]
    for words, risk in said:
        out += _risk_in_words(words, risk)
    if answer.get("window"):
        out.append(_window_in_words(answer["window"]))
    out += [
        "",
        "Points add up exactly from where the model starts to this parcel's risk. They explain the model's figure;",
        "what a change would really do, only a trial can tell.",
    ]
    return out


def advice_in_words(answer: Mapping[str, Any]) -> list[str]:
    """What is advised, what else can be done and what breaks the packing rules, each in the answer's own words.

    Args:
        answer: the body of the answer, with a policy.
    """
    advice, actions = answer["advice"], answer["actions"]
    out = [advice["text"] if advice["owner"] is None else f"{advice['text']}  ({advice['owner']})"]
    others = [a["text"] for a in actions if a["action"] != advice["action"]][:OTHERS]
    if others:
        out += ["", f"Weighed besides, of {len(actions)} in all:", *(f"  {text}" for text in others)]
    if answer["violations"]:
        out += ["", "Breaks the packing specification:", *(f"  {v['text']}" for v in answer["violations"])]
    return out


def _times(risk: Mapping[str, Any]) -> float:
    return float(risk["probability"] / risk["base_rate"])


def _risk_in_words(words: str, risk: Mapping[str, Any]) -> list[str]:
    times = _times(risk)
    if times >= 1.95:
        compared = f"about {times:.0f} times the usual"
    elif times >= NOTEWORTHY:
        compared = "above the usual"
    elif times > 1 / NOTEWORTHY:
        compared = "about the usual"
    else:
        compared = "below the usual"
    out = [f"{words}: {100 * risk['probability']:.1f} %, {compared} {100 * risk['base_rate']:.1f} %."]
    if "reason" in risk:
        why = risk["reason"]
        share = f"{100 * why['share']:.0f} %"
        out.append(f"    If so, most likely for {why['reason']} ({share}), a reason of the {why['owner']} team's")
    if times < NOTEWORTHY:
        return out
    least = WORTH_A_WORD * (risk["probability"] - risk["base"])
    teams = sorted(((points, team) for team, points in risk["teams"].items() if points >= least), reverse=True)
    out.append(f"    Mainly {', '.join(f'{team} ({100 * points:+.1f} points)' for points, team in teams[:NAMED])}:")
    drivers = [d for d in risk["drivers"] if d["points"] >= least and d["feature"] != "other"]
    out += [f"      {d['text']}  ({d['team']})" for d in drivers[:NAMED]]
    packing = [d["text"] for d in drivers if d["lever"] and d["team"] == "packing"]
    others = [f"{d['text']} ({d['team']})" for d in drivers if d["lever"] and d["team"] != "packing"]
    out.append("    What packing can change: " + ("; ".join(packing) or "nothing that raises this risk"))
    if others:
        out.append("    What others can change: " + "; ".join(others))
    return out


def _window_in_words(window: Mapping[str, Any]) -> str:
    first, likely, last = (window[key][:16].replace("T", " ") for key in ("from", "likely", "to"))
    share = f"{100 * window['coverage']:.0f} % of such parcels come between {first} and {last}"
    return f"At the door, if it arrives: likely {likely} UTC; {share}."


# ---- the planted fault


@dataclass(frozen=True)
class Traced:
    """A planted fault, and what became of the holdout where it is and where it is not.

    Attributes:
        fault: what was planted.
        of: how many were.
        rows: units that meet it, and that do not.
        predicted: mean probability of the fault's first target, of both.
        observed: share of it that came true, of both.
        teams: by how many points of risk each team's share is higher where the fault is.
        before: units of the whole shop that were there before it began, and the share of them that came true.
    """

    fault: Fault
    of: int
    rows: tuple[int, int]
    predicted: tuple[float, float]
    observed: tuple[float, float]
    teams: Mapping[str, float]
    before: tuple[int, float]

    @property
    def usual(self) -> float:
        """The rate without the fault: there before it began, or elsewhere where too few were there before."""
        rows, share = self.before
        return share if rows >= ENOUGH_ROWS else self.observed[1]

    @property
    def extra(self) -> float:
        """Cases beyond those that the usual rate would have given."""
        return self.rows[0] * (self.observed[0] - self.usual)


def trace(folder: Path) -> Traced | None:
    """The planted fault with the most extra cases in the holdout, by what happened and not by what a model says of it.

    None where no planted fault has any: its target was not trained, nothing of the holdout meets it, chance hides it.
    """
    import pandas as pd

    from features import Dataset
    from features.snapshot import Facts
    from training.labels import labels
    from training.world import Fault, meeting

    shop = Dataset.open(folder / "shop")
    facts = Facts.of(shop)
    units = pd.read_parquet(folder / "runs/shop/holdout.parquet")[["target", "unit_id", "label", "probability"]]
    scores = pd.read_parquet(folder / SCORES)[["target", "unit_id", *(f"team_{team}" for team in TEAMS)]]
    units = units.merge(scores, on=["target", "unit_id"], validate="1:1")
    planted = json.loads((folder / "shop/truth/faults.json").read_text(encoding="utf-8"))
    found = []
    for said in planted:
        since = date.fromisoformat(said["since"])
        fault = Fault(said["name"], said["kind"], said["words"], said["where"], since, said["effect"])
        own = units[units["target"] == fault.targets[0]]
        met = meeting(fault, shop.tables, shop.settings.timezone)
        meets = own["unit_id"].isin(met)
        if meets.nunique() == 2:
            place = meeting(replace(fault, since=date(1970, 1, 1)), shop.tables, shop.settings.timezone)
            judged = labels(facts, fault.targets[0])
            label, mature = judged.known(facts.snapshot.as_of)
            earlier = label[mature & pd.Index(judged.unit_id).isin(place.difference(met))]
            before = len(earlier), float(earlier.mean()) if len(earlier) else float("nan")
            found.append(_traced(fault, len(planted), own[meets], own[~meets], before))
    worst = max(found, key=lambda traced: traced.extra, default=None)
    return worst if worst is not None and worst.extra > 0 else None


def _traced(fault: Fault, of: int, here: pd.DataFrame, elsewhere: pd.DataFrame, before: tuple[int, float]) -> Traced:
    def both(column: str) -> tuple[float, float]:
        return float(here[column].mean()), float(elsewhere[column].mean())

    more = {team: both(f"team_{team}") for team in TEAMS}
    return Traced(
        fault,
        of,
        (len(here), len(elsewhere)),
        both("probability"),
        both("label"),
        {team: a - b for team, (a, b) in more.items()},
        before,
    )


def fault_in_words(traced: Traced | None) -> list[str]:
    """What was planted, what the models say where it is, and whether that is right."""
    if traced is None:
        return ["None of the planted faults (shop/truth/faults.json) shows in this holdout: make a larger shop."]
    fault, target = traced.fault, TARGETS[traced.fault.targets[0]]
    where = ", ".join(f"{column} {value}" for column, value in fault.where.items())
    rows = [[f"{target.words}, in the holdout", f"{target.unit}s", "predicted", "came true"]]
    for i, name in enumerate(("  those that meet it", "  all others")):
        rows.append(
            [name, f"{traced.rows[i]:,}", *(f"{100 * x[i]:.1f} %" for x in (traced.predicted, traced.observed))]
        )
    ranked = sorted(((points, team) for team, points in traced.teams.items()), reverse=True)
    moved = ", ".join(f"{team} {100 * points:+.1f}" for points, team in ranked[:NAMED])
    if traced.before[0] >= ENOUGH_ROWS:
        usual = f"Usual there, before it began: {100 * traced.usual:.1f} % of {traced.before[0]:,} {target.unit}s."
    else:
        usual = f"Too few were there before it began; usual is what the others had, {100 * traced.usual:.1f} %."
    return [
        f"No command has read shop/truth. Of the {traced.of} faults in it, the one that did most harm in the holdout:",
        "",
        f"    {fault.words}",
        f"    where: {where}; since {fault.since}; whose: {fault.team}",
        "",
        *columns(rows, right=(1, 2, 3)).splitlines(),
        "",
        f"Points of risk of those that meet it, against the others: {moved}.",
        usual,
        _verdict(traced, ranked[0][1] if ranked[0][0] > 0 else "nobody"),
    ]


def _verdict(traced: Traced, blamed: str) -> str:
    """Whether the model has found the fault: most of what it makes worse, and the right team."""
    predicted, observed = (100 * (pair[0] - traced.usual) for pair in (traced.predicted, traced.observed))
    sees = f"of the {observed:.1f} points above the usual the model expects {max(predicted, 0):.1f}"
    whose = traced.fault.team
    if predicted <= 0:
        return f"NOT FOUND: {sees}."
    if blamed != whose:
        return f"NOT FOUND: {sees}; its explanations point to {blamed}; the fault is {whose}'s."
    if predicted < ENOUGH * observed:
        return f"FOUND IN PART: {sees}; its explanations point to {whose}, whose it is."
    if predicted > observed / OVERSTATED:
        return f"FOUND, BUT OVERSTATED: {sees}; its explanations point to {whose}, whose it is."
    return f"FOUND: {sees}; its explanations point to {whose}, whose it is."


def where_next(folder: Path) -> list[str]:
    """Lines with what to go on with, from the project's root."""
    here = shlex.quote(str(folder))
    root = Path(__file__).resolve().parent.parent
    guides = [name for name in ("README.md", "docs/dataset.md") if (root / name).is_file()]
    lines: Sequence[tuple[str, str]] = (
        (
            "look at it in a browser, on http://127.0.0.1:3000/ (the bench is at /pack)",
            f".venv/bin/doorstep serve --bundle {here}/{BUNDLE} --snapshot {here}/{SNAPSHOT} --policy {here}/{POLICY} "
            f"--diagnosis {here}/{DIAGNOSIS} --waiting {here}/waiting.db --ledger sqlite:///{here}/ledger.db",
        ),
        (
            "meanwhile, from another terminal: announce parcels to the bench, and ask about the one above",
            f".venv/bin/doorstep announce {here}/shop --last 200\n"
            f"  curl -s http://127.0.0.1:3000/v1/risk -H 'Content-Type: application/json' -d @{here}/request.json",
        ),
        (
            "runs, plots and model cards in MLflow, on http://127.0.0.1:5000",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --workers 1 --port 5000 "
            f"--backend-store-uri sqlite:///{here}/mlflow/mlflow.db",
        ),
        (
            "recompute every figure",
            f"{here}/runs/shop/metrics.json, and the rows they come from in holdout.parquet beside it",
        ),
        ("what else is planted in this shop, and how to make another", "docs/world.md"),
        ("all commands", ".venv/bin/doorstep --help"),
        ("bring your own tables", f"{', '.join(guides)}: a folder of Parquet or CSV files and a dataset.toml"),
    )
    return [line for what, how in lines for line in (f"- {what}:", f"  {how}")]


if __name__ == "__main__":
    main()
