"""The demo: what it says of an answer, what it refuses to touch, and (slow) the whole of it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from training.demo import (
    MARKER,
    SCORES,
    DemoError,
    Traced,
    advice_in_words,
    fault_in_words,
    in_words,
    prepare,
    trace,
    where_next,
)
from training.world import PLANTED_FAULTS, meeting

TEAMS = ("packing", "fulfilment", "carrier", "listing", "customer", "order")


def driver(feature: str, team: str, points: float, text: str, lever: bool) -> dict[str, object]:
    said = f"{text}: {100 * points:+.1f} points"
    return {"feature": feature, "team": team, "value": 1.0, "points": points, "lever": lever, "text": said}


def risk(probability: float, base: float, *drivers: dict[str, object]) -> dict[str, object]:
    teams = {team: sum(d["points"] for d in drivers if d["team"] == team) for team in TEAMS}  # type: ignore[misc]
    return {"probability": probability, "base": base, "base_rate": base, "teams": teams, "drivers": list(drivers)}


REQUEST = {"order": {}, "parcel": {"parcel_id": "P7"}, "lines": [{"line_id": "L1", "sku": "MUG"}]}
ANSWER = {
    "parcel_id": "P7",
    "bundle": "abc",
    "as_of": "2025-11-21T06:07:30Z",
    "risks": {
        "late": risk(0.05, 0.052),
        "damaged": risk(
            0.091,
            0.021,
            driver("protection", "packing", 0.04, "Protection level 1, usual here is 3", True),
            driver("fragility", "listing", 0.025, "Fragility 3, usual here is 1", False),
            driver("address", "customer", 0.0049, "Address quality 0.2, usual here is 0.9", True),
            driver("noise", "order", 0.0001, "Ordered at 9 h, usual here is 8 h", True),
        ),
    },
    "returns": [{"line_id": "L1", **risk(0.3, 0.2, driver("guide", "listing", 0.1, "Size guide no", True))}],
}


def test_advice_is_told_with_what_was_weighed_besides_and_the_rules_that_are_broken() -> None:
    actions = [{"action": f"package:{n}", "text": f"Pack in {n}: saves {9 - n} EUR net"} for n in range(6)]
    advice = {"action": "package:0", "text": actions[0]["text"], "owner": "packing"}
    answer = {"advice": advice, "actions": actions, "violations": [{"text": "does not rattle: is 0.1"}]}
    assert advice_in_words(answer) == [
        "Pack in 0: saves 9 EUR net  (packing)",
        "",
        "Weighed besides, of 6 in all:",
        *(f"  {action['text']}" for action in actions[1:4]),
        "",
        "Breaks the packing specification:",
        "  does not rattle: is 0.1",
    ]
    nothing = {
        "advice": {"action": None, "text": "Nothing worth doing", "owner": None},
        "actions": [],
        "violations": [],
    }
    assert advice_in_words(nothing) == ["Nothing worth doing"]


def test_the_answer_is_told_from_the_greatest_rise_down() -> None:
    said = in_words(ANSWER, REQUEST)
    heads = [line for line in said if re.match(r"\S.* %, ", line)]
    assert heads == [
        "Arrives damaged: 9.1 %, about 4 times the usual 2.1 %.",
        "MUG is sent back: 30.0 %, above the usual 20.0 %.",
        "Arrives late: 5.0 %, about the usual 5.2 %.",
    ]


def test_levers_are_told_to_packing_first_and_what_is_no_lever_is_no_advice() -> None:
    said = in_words(ANSWER, REQUEST)
    assert "    Mainly packing (+4.0 points), listing (+2.5 points), customer (+0.5 points):" in said
    assert "    What packing can change: Protection level 1, usual here is 3: +4.0 points" in said
    assert "    What others can change: Address quality 0.2, usual here is 0.9: +0.5 points (customer)" in said
    assert "    What packing can change: nothing that raises this risk" in said
    assert not [line for line in said if "can change" in line and "Fragility" in line]
    assert not [line for line in said if "Ordered at" in line], "a hundredth of a point is not worth a word"


def test_the_likeliest_reason_and_the_window_are_told_where_they_were_answered() -> None:
    assert not [line for line in in_words(ANSWER, REQUEST) if "If so" in line or "At the door" in line]
    reason = {"reason": "wrong_size", "owner": "listing", "share": 0.437}
    window = {
        "from": "2025-11-22T08:37:00.000000Z",
        "likely": "2025-11-24T15:19:00.000000Z",
        "to": "2025-11-26T09:32:00.000000Z",
        "coverage": 0.9,
    }
    said = in_words({**ANSWER, "returns": [{**ANSWER["returns"][0], "reason": reason}], "window": window}, REQUEST)  # type: ignore[index]
    at = said.index("MUG is sent back: 30.0 %, above the usual 20.0 %.")
    assert said[at + 1] == "    If so, most likely for wrong_size (44 %), a reason of the listing team's"
    assert (
        "At the door, if it arrives: likely 2025-11-24 15:19 UTC; "
        "90 % of such parcels come between 2025-11-22 08:37 and 2025-11-26 09:32."
    ) in said


def test_every_point_it_says_is_one_that_was_answered() -> None:
    answered = json.dumps(ANSWER)
    for line in in_words(ANSWER, REQUEST):
        for text in re.findall(r"(?:^      |change: )(.+? points)", line):
            assert text in answered


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.csv").write_text("1")
    with pytest.raises(DemoError, match="holds something else than an earlier demo"):
        prepare(tmp_path)
    assert (tmp_path / "precious.csv").read_text() == "1"
    with pytest.raises(DemoError, match="is a file"):
        prepare(tmp_path / "precious.csv")


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    prepare(tmp_path / "demo")
    (tmp_path / "demo/runs").mkdir()
    prepare(tmp_path / "demo")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == [MARKER]


def test_where_to_look_next_names_guides_that_exist() -> None:
    root = Path(__file__).resolve().parent.parent
    said = "\n".join(where_next(Path("demo")))
    guides = re.findall(r"[\w/]+\.md", said)
    assert guides and all((root / guide).is_file() for guide in guides)


PRINTER = next(f for f in PLANTED_FAULTS if f.kind == "printer")
TRACED = Traced(
    PRINTER, 5, (400, 3600), (0.16, 0.07), (0.2, 0.08), {**dict.fromkeys(TEAMS, 0.01), "packing": 0.05}, (300, 0.1)
)


def test_a_planted_fault_is_told_with_what_the_models_say_of_it() -> None:
    said = fault_in_words(TRACED)
    assert f"    {PRINTER.words}" in said
    assert "    where: node leipzig, shift late; since 2025-04-07; whose: packing" in said
    assert "arrives late, in the holdout  parcels  predicted  came true" in said
    assert "  those that meet it              400     16.0 %     20.0 %" in said
    assert "  all others                    3,600      7.0 %      8.0 %" in said
    assert "Usual there, before it began: 10.0 % of 300 parcels." in said
    assert said[-1] == (
        "FOUND: of the 10.0 points above the usual the model expects 6.0; "
        "its explanations point to packing, whose it is."
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"predicted": (0.13, 0.07)}, "FOUND IN PART: of the 10.0 points above the usual the model expects 3.0;"),
        (
            {"predicted": (0.26, 0.07)},
            "FOUND, BUT OVERSTATED: of the 10.0 points above the usual the model expects 16.0;",
        ),
        ({"predicted": (0.09, 0.07)}, "NOT FOUND: of the 10.0 points above the usual the model expects 0.0."),
        ({"teams": {**TRACED.teams, "carrier": 0.06}}, "its explanations point to carrier; the fault is packing's."),
        ({"before": (7, 0.0)}, "FOUND: of the 12.0 points above the usual the model expects 8.0;"),
    ],
)
def test_a_fault_that_was_not_found_is_not_said_to_be(changed: dict, says: str) -> None:
    said = fault_in_words(replace(TRACED, **changed))
    assert says in said[-1]
    if "before" in changed:
        assert said[-2] == "Too few were there before it began; usual is what the others had, 8.0 %."


@pytest.fixture
def shown(tmp_path: Path, world_dataset: Path) -> Path:
    """A demo's folder after the scoring, with models that say the same of everything and labels as told below."""
    (tmp_path / "shop").symlink_to(world_dataset)
    (tmp_path / "runs/shop").mkdir(parents=True)
    return tmp_path


def told(folder: Path, **labels: pd.Series) -> None:
    """Write the holdout and the scores: labels by target, indexed by unit."""
    rows = [pd.DataFrame({"target": t, "unit_id": y.index, "label": y.to_numpy()}) for t, y in labels.items()]
    holdout = pd.concat(rows, ignore_index=True).assign(probability=0.1)
    holdout.to_parquet(folder / "runs/shop/holdout.parquet")
    holdout.assign(**{f"team_{team}": 0.0 for team in TEAMS}).to_parquet(folder / SCORES)


def test_the_fault_that_did_most_harm_is_told_whatever_the_models_say(shown: Path) -> None:
    shop = Dataset.open(shown / "shop")
    parcels, met = shop.tables["parcels"]["parcel_id"], meeting(PRINTER, shop.tables)
    late = pd.Series(np.where(parcels.isin(met), 1, 0), index=parcels)
    told(shown, late=late, damaged=pd.Series(0, index=parcels))
    found = trace(shown)
    assert found is not None
    assert (found.fault, found.of, found.rows) == (PRINTER, 5, (len(met), len(parcels) - len(met)))
    assert (found.observed, found.predicted) == ((1.0, 0.0), pytest.approx((0.1, 0.1)))
    assert found.before[0] > 100 and 0.02 < found.before[1] < 0.2  # what the tables say, not the holdout
    assert fault_in_words(found)[-1].startswith("NOT FOUND")
    assert fault_in_words(found)[-1].endswith("its explanations point to nobody; the fault is packing's.")


def test_where_no_fault_shows_none_is_told(shown: Path) -> None:
    parcels = Dataset.open(shown / "shop").tables["parcels"]["parcel_id"]
    told(shown, failed_attempt=pd.Series(1, index=parcels))  # the target of no fault
    assert trace(shown) is None
    told(shown, late=pd.Series(0, index=parcels))
    assert trace(shown) is None
    assert fault_in_words(None) == [
        "None of the planted faults (shop/truth/faults.json) shows in this holdout: make a larger shop."
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_twice(tmp_path: Path) -> None:
    for _ in range(2):
        command = [sys.executable, "-m", "training.demo", str(tmp_path / "demo"), "--parcels", "4000"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert re.search(r"^[A-Z].*: \d+\.\d %, .* the usual \d+\.\d %\.$", done.stdout, re.MULTILINE)
        assert "SIMULATED" in done.stdout and "base_rate" in done.stdout
        assert re.search(
            r"^(NOT FOUND|FOUND|FOUND IN PART|FOUND, BUT OVERSTATED): of the|^None of the planted",
            done.stdout,
            re.MULTILINE,
        )
