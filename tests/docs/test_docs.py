"""The documentation does what it says: commands exist, links lead somewhere, requests and answers are the service's."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_type_hints

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter

from features.definitions import FEATURES
from features.matrix import FeatureSet, fingerprint
from features.settings import Settings
from features.vocabulary import TEAMS
from serving.advice import NO_ADVICE
from serving.ledger.schemas import DOCS as DOCS_OF_REPORTS
from serving.ledger.schemas import read as read_report
from serving.pages.verdict import SCAN_DOCS, Scanned, read_scan
from serving.schemas import Announced, Answer, Invalid, Problem, Receipt, Rules
from serving.score import LEAST, answer
from training.cli import main
from training.docs import commands, fill

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
GUIDES = {name: DOCS / f"{name}.md" for name in ("packing-station", "product-team", "data-scientist", "api", "world")}
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: the comment right above it, its language and its text."""

    page: Path
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.mark or self.text[:40]!r}"


BLOCKS = [
    Block(page, m["mark"] or "", m["language"], re.sub(rf"^{m['indent']}", "", m["text"], flags=re.M))
    for page in PAGES
    for m in FENCE.finditer(page.read_text(encoding="utf-8"))
]


def only(name: str, mark: str) -> str:
    """The one block of a guide that has this mark."""
    found = [b.text for b in BLOCKS if b.page == GUIDES[name] and b.mark == mark]
    assert len(found) == 1, f"{name}: {len(found)} blocks are marked {mark}"
    return found[0]


# ---- links


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as they are made on GitHub."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    listed = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in listed, page.name


# ---- generated pages


def test_every_feature_is_listed_under_its_team() -> None:
    text = (DOCS / "features.md").read_text(encoding="utf-8")
    for team in TEAMS:
        section = text.split(f"\n## {team}\n")[1].split("\n## ")[0]
        listed = set(re.findall(r"^\| `(\w+)` \|", section, re.M))
        assert listed == {f.name for f in FEATURES.values() if f.team == team}


def test_every_command_is_there() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    for names in commands():
        assert f"Usage: {' '.join(('doorstep', *names))} " in text, names


def test_a_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="no command 'tarin'"):
        fill("<!-- generated: command tarin -->\n<!-- /generated -->")


# ---- commands


def lines_of(block: Block) -> Iterator[list[str]]:
    """Command lines of a block as words, without prompts, comments and variables set in front."""
    if block.language not in ("", "sh"):
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        if not re.match(r"(\$ )?(\w+=\S+ )*(\S*/)?(doorstep|make|python\S*|mlflow|curl) ", line):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while re.match(r"\w+=", words[0]):
            words.pop(0)
        yield [words[0].rpartition("/")[2], *words[1:]]


LINES = [(str(b), words) for b in BLOCKS for words in lines_of(b)]


def parse(words: list[str]) -> None:
    """Parse a `doorstep` command line without running it. Raises click.UsageError."""
    context, found = click.Context(main, info_name="doorstep", **main.context_settings), main
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in found.commands:
            raise click.UsageError(f"no command {name}")
        found = found.commands[name]
        context = click.Context(found, parent=context, info_name=name)
    with contextlib.suppress(click.exceptions.Exit):  # --help and --version
        found.make_context(str(context.info_name), words, parent=context.parent)


@pytest.mark.parametrize(("where", "words"), LINES, ids=[f"{w[0]}-{i}" for i, (_, w) in enumerate(LINES)])
def test_every_command_line_can_be_typed(where: str, words: list[str]) -> None:
    program, *rest = words
    if program == "doorstep":
        parse(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert [w for w in rest if "=" not in w and w not in targets] == []
    elif program.startswith("python") and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) is not None
    elif program.startswith("python"):
        assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize("line", ["trian shop", "train shop --holdout 2025-01-01", "train", "serve --port no"])
def test_a_command_line_that_cannot_be_typed_is_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line.split())


def test_the_guides_show_commands_at_all() -> None:
    shown = {words[1] for _, words in LINES if words[0] == "doorstep"}
    assert shown >= {names[0] for names in commands() if names}
    assert {words[1] for _, words in LINES if words[0] == "make"} >= {"demo", "test"}


# ---- requests and answers

JSON = [b for b in BLOCKS if b.language == "json"]


@pytest.mark.parametrize("block", JSON, ids=str)
def test_json_is_what_the_service_takes_and_answers(block: Block) -> None:
    content = json.loads(block.text)
    if block.mark == "request":
        assert Rules().one(block.text.encode())
    elif block.mark == "advice":
        of_policy = {k: v for k, v in get_type_hints(Answer, include_extras=True).items() if k in content}
        assert set(content) == set(NO_ADVICE)
        for key, value in content.items():
            TypeAdapter(of_policy[key]).validate_python(value, strict=True)
    elif block.mark.startswith("report "):
        path = block.mark.removeprefix("report ")
        assert read_report(path, block.text.encode(), datetime.now(UTC)) and content == DOCS_OF_REPORTS[path].example
    elif block.mark == "scan":
        assert read_scan(block.text.encode()) == SCAN_DOCS["/v1/parcels/scan"].example
    elif block.mark == "scanned":
        TypeAdapter(Scanned).validate_python(content, strict=True)
        assert content == SCAN_DOCS["/v1/parcels/scan"].receipt
    elif block.mark == "announced":
        TypeAdapter(Announced).validate_python(content, strict=True)
    elif block.mark == "receipt":
        TypeAdapter(Receipt).validate_python(content, strict=True)
    elif block.mark == "problem":
        TypeAdapter(Problem).validate_python(content, strict=True)
        assert content["status"] == 400 and content["errors"]
    else:
        assert block.mark == "answer", "mark it <!-- request -->, <!-- answer -->, <!-- advice --> or <!-- problem -->"
        TypeAdapter(Answer).validate_python(content, strict=True)


ANSWERS = [json.loads(b.text) for b in JSON if b.mark == "answer"]


@pytest.mark.parametrize("content", ANSWERS)
def test_a_documented_answer_adds_up_and_names_features_that_exist(content: dict) -> None:
    assert set(content) == set(Answer.__annotations__)
    for line in content["returns"]:
        assert math.isclose(sum(line["reasons"].values()), 1, abs_tol=1e-9)
        assert line["reason"]["share"] == max(line["reasons"].values()) == line["reasons"][line["reason"]["reason"]]
    reasons = [line["reason"] | {"probability": line["reason"]["share"]} for line in content["returns"]]
    for risk in (*content["risks"].values(), *content["returns"], *reasons):
        assert math.isclose(risk["base"] + sum(risk["teams"].values()), risk["probability"], abs_tol=1e-9)
        if content["degraded"]:
            assert risk["probability"] == risk["base"] == risk["base_rate"]
        for driver in risk["drivers"]:
            if driver["feature"] != "other":
                assert abs(driver["points"]) >= LEAST
                feature = FEATURES[driver["feature"]]
                assert (driver["team"], driver["lever"]) == (feature.team, feature.lever)
                value, usual = (math.nan if driver[x] is None else driver[x] for x in ("value", "usual"))
                same = driver["usual"] is None or feature.words(value) == feature.words(usual)
                said = f"{feature.say(value)}{'' if same else f', usual here is {feature.words(usual)}'}"
                assert driver["text"].rpartition(": ")[0] == said


def test_the_documented_advice_adds_up() -> None:
    """The example's money, from its risks and the costs its page names; and the README says the same."""
    [example] = [json.loads(b.text) for b in JSON if b.mark == "advice"]
    page = (DOCS / "actions.md").read_text(encoding="utf-8")
    [value] = {float(v) for v in re.findall(r"([\d.]+) EUR in all, in a light carton", page)}
    costs = {
        target: [float(x) for x in found]
        for target, *found in re.findall(
            r"`\[failures\.(\w+)\]`\s+with\s+`cost = ([\d.]+)`\s+and\s+`share_of_value = ([\d.]+)`", page
        )
    }
    assert {*costs} == {"damaged", "returned"}
    for action in example["actions"]:
        if {*action["risks"]} <= {*costs}:
            saved = sum(
                (before - after) * (costs[t][0] + costs[t][1] * value) for t, (before, after) in action["risks"].items()
            )
            assert math.isclose(action["saving"], saved, abs_tol=1e-9)
        assert math.isclose(action["net_benefit"], action["saving"] - action["cost"], abs_tol=1e-9)
    nets = [a["net_benefit"] for a in example["actions"]]
    assert nets == sorted(nets, reverse=True)
    [done] = [a for a in example["actions"] if a["recommended"]]
    rungs = {rung["current"]: rung for rung in example["packages"]}
    paid = (
        rungs[False]["freight"] + rungs[False]["material_cost"] - rungs[True]["freight"] - rungs[True]["material_cost"]
    )
    assert math.isclose(done["cost"], 0.42 + paid, abs_tol=1e-9)
    assert (example["advice"]["action"], example["advice"]["text"]) == (done["action"], done["text"])
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for action in example["actions"]:
        assert action["text"] in readme


def test_the_documented_request_and_answer_belong_together() -> None:
    request, *_ = [json.loads(b.text) for b in JSON if b.page == GUIDES["packing-station"] and b.mark == "request"]
    for content in ANSWERS:
        assert content["parcel_id"] == request["parcel"]["parcel_id"]
        assert {r["line_id"] for r in content["returns"]} <= {line["line_id"] for line in request["lines"]}


def test_the_documented_problem_is_what_the_service_says() -> None:
    said = json.loads(next(b.text for b in JSON if b.mark == "problem"))
    request = {"order": {"order_id": "1", "ordered_at": "2025-03-01T08:10:00Z"}, "parcel": {"parcel_id": "1"}}
    for fault in said["errors"]:
        part, column = fault["field"].split(".")
        request[part][column] = fault["given"]
    with pytest.raises(Invalid) as raised:
        Rules().one(json.dumps(request).encode())
    assert (raised.value.detail, raised.value.errors) == (said["detail"], said["errors"])


# ---- Python


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def run(code: str) -> dict:
    """Run a block as a script; its names."""
    names: dict = {}
    exec(compile(code, "block", "exec"), names)
    return names


class Bench(BaseHTTPRequestHandler):
    """Answers as the service does, without a model; 400 where it would."""

    def do_POST(self) -> None:
        try:
            status, content = 200, answer(None, None, Rules().one(self.rfile.read(int(self.headers["Content-Length"]))))
        except Invalid as error:
            status, content = 400, [{"detail": error.detail}]
        body = json.dumps(content[0]).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_the_client_at_the_bench_gets_an_answer_or_none() -> None:
    client = run(only("packing-station", "python: client"))
    request = json.loads(next(b.text for b in JSON if b.page == GUIDES["packing-station"] and b.mark == "request"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Bench) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        got = client["ask"](request, port=server.server_port, seconds=10)
        refused = client["ask"]({"order": {}}, port=server.server_port, seconds=10)
        server.shutdown()
    assert got["degraded"] and client["advice"](got) == []
    assert refused is None
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        port = silent.getsockname()[1]
        assert client["ask"](request, port=port, seconds=0.05) is None
    assert client["ask"](request, port=port) is None  # nobody is there any more


def test_advice_at_the_bench_is_what_packing_can_change_the_most_first() -> None:
    client = run(only("packing-station", "python: client"))
    content = next(json.loads(b.text) for b in JSON if b.page == GUIDES["packing-station"] and b.mark == "answer")
    said = client["advice"](content)
    drivers = [d for r in (*content["risks"].values(), *content["returns"]) for d in r["drivers"]]
    assert said
    for text in said:
        driver = next(d for d in drivers if d["text"] == text)
        assert driver["lever"] and driver["team"] == "packing" and driver["points"] > 0
    points = [next(d["points"] for d in drivers if d["text"] == text) for text in said]
    assert points == sorted(points, reverse=True)


def test_products_are_ranked_by_the_listings_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sku = np.repeat(["few", "good", "bad"], [3, 30, 30])
    ids = [f"L{i}" for i in range(len(sku))]
    share = np.select([sku == "bad", sku == "few"], [0.08, 0.5], 0.01)
    scores = pd.DataFrame({"unit_id": ids, "sku": sku, "target": "returned", "probability": 0.1 + share, "base": 0.1})
    scores = scores.assign(**{f"team_{team}": share if team == "listing" else 0.0 for team in TEAMS})
    pd.concat([scores, scores.assign(target="late", probability=0.9)]).to_csv("scores.csv", index=False)
    products = run(only("product-team", "python: products"))["products"]
    assert products.loc["bad", ["lines", "risk", "listing"]].tolist() == pytest.approx([30, 0.18, 0.08])
    means = scores.groupby(sku)[["probability", "base", *(f"team_{t}" for t in TEAMS)]].mean()
    assert np.allclose(means["probability"], means.drop(columns="probability").sum(axis=1))  # as the guide says


def test_the_product_guide_names_every_lever_of_the_listing() -> None:
    text = GUIDES["product-team"].read_text(encoding="utf-8")
    for feature in FEATURES.values():
        if feature.team == "listing" and feature.lever:
            assert feature.text.rstrip(":").lower() in text.lower()


def test_results_are_read_and_compared_as_the_guide_says(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    os.symlink(trained.dataset, "shop")
    os.symlink(trained.run, "runs/shop")
    names = run(only("data-scientist", "python: results"))
    assert np.allclose(
        names["points"].groupby("row")["points"].sum().loc[names["some"].index],
        names["bundle"].predict_proba(names["some"], ["late"])["late"],
    )
    os.symlink(trained.run, "runs/first")
    shutil.copytree(trained.run, "runs/second")
    other = pd.read_parquet("runs/second/holdout.parquet")
    other["probability"] = 0.5
    other.to_parquet("runs/second/holdout.parquet")
    capsys.readouterr()
    run(only("data-scientist", "python: compare"))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5 and all("'better'" in line for line in said)  # than a coin


def test_a_shop_of_ones_own_is_made_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mark = next(b.mark for b in BLOCKS if b.page == GUIDES["world"] and b.mark.startswith("scenario: "))
    file = mark.removeprefix("scenario: ")
    Path(file).write_text(only("world", mark), encoding="utf-8")
    (line,) = [words for _, words in LINES if words[:2] == ["doorstep", "world"] and file in words]
    made = CliRunner().invoke(main, [*line[1:-1], "5000"], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    shop = Path(line[2])
    (fault,) = json.loads((shop / "truth" / "faults.json").read_text())
    assert (fault["name"], fault["team"]) == ("no_bell", "carrier")
    skipped = pd.read_parquet(shop / "truth" / "parcels.parquet").set_index("parcel_id").driver_skipped
    parcels = pd.read_parquet(shop / "parcels.parquet").set_index("parcel_id")
    orders = pd.read_parquet(shop / "orders.parquet").set_index("order_id")
    place = (parcels.carrier == "alba") & (orders.destination_region[parcels.order_id] == "DE-BY").to_numpy()
    after = parcels.packed_at >= pd.Timestamp("2025-09-01", tz="Europe/Berlin")
    assert skipped[place & after].mean() > 0.2 > 0.02 > skipped[place & ~after].mean()


def test_the_oracle_is_asked_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(main, ["world", "shop", "--parcels", "2000"], catch_exceptions=False)
    names = run(only("world", "python: oracle"))
    assert (names["took"]["corvus"] > names["took"]["alba"]).mean() > 0.5
    assert "log_loss" in capsys.readouterr().out
    told = GUIDES["world"].read_text(encoding="utf-8")
    assert {f"`{p.name}`" for p in (tmp_path / "shop" / "truth").iterdir()} == set(
        re.findall(r"^\| (`[a-z]+\.(?:parquet|json|toml)`) \|", told, re.M)
    )


FEATURE = "python: feature features/definitions/carrier.py"
ASK = """
import json, sys
import pandas as pd
from features.dataset import Dataset
from features.definitions import FEATURES
from features.matrix import FeatureSet, build, fingerprint
from features.settings import Settings
from features.snapshot import Facts

day = lambda n: pd.Timestamp("2025-03-01T08:00Z") + pd.Timedelta(days=n)
orders = pd.DataFrame({"order_id": ["a", "b"], "ordered_at": [day(0)] * 2, "promised_to": [day(4), pd.NaT]})
parcels = pd.DataFrame(
    {"parcel_id": ["a", "b"], "order_id": ["a", "b"], "packed_at": [day(1)] * 2, "distance_km": [300.0, 300.0]}
)
shop = Dataset.from_frames({"orders": orders, "parcels": parcels}, Settings())
new = [n for n in FEATURES if n not in sys.argv[1:]]
of = FeatureSet.named("parcel", new, Settings())
late = FeatureSet.for_target("late", Settings())
known = FeatureSet("parcel", tuple(f for f in late.features if f.name in sys.argv[1:]))
print(json.dumps({
    "new": new,
    "team": FEATURES[new[0]].team,
    "said": FEATURES[new[0]].say(100.0),
    "values": build(Facts.of(shop).rows, of)[new[0]].tolist(),
    "used": new[0] in late.names,
    "fingerprint": fingerprint(known, Settings()),
}))
"""


def test_the_feature_of_the_guide_is_all_it_takes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "features", tmp_path / "features", ignore=shutil.ignore_patterns("__pycache__"))
    theme = tmp_path / FEATURE.removeprefix("python: feature ")
    theme.write_text(theme.read_text() + "\n\n" + only("data-scientist", FEATURE))
    done = subprocess.run(
        [sys.executable, "-c", ASK, *FEATURES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["new"] == ["km_per_promised_day"]
    assert said["team"] == "carrier" and said["used"]
    assert said["said"] == "To cover per promised day 100 km"
    assert said["values"][0] == 100 and math.isnan(said["values"][1])  # 300 km in three days; no promise
    # Models that do not know it are left alone.
    late = FeatureSet.for_target("late", Settings())
    assert said["fingerprint"] == fingerprint(late, Settings())


# ---- decisions

RECORDS = sorted(p for p in (DOCS / "decisions").glob("*.md") if p.name != "README.md")


@pytest.mark.parametrize("record", RECORDS, ids=lambda p: p.stem)
def test_a_decision_is_listed_and_names_tests_that_exist(record: Path) -> None:
    assert f"]({record.name})" in (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    text = record.read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text.split("**Enforced by**")[1])
    assert named
    missing = [f"{p}::{t}" for p, t in named if f"def {t}(" not in (ROOT / p).read_text(encoding="utf-8")]
    assert missing == []
