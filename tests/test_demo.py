"""The demo: what it says of an answer, what it refuses to touch, and (slow) the whole of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.demo import MARKER, DemoError, in_words, prepare, where_next

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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_twice(tmp_path: Path) -> None:
    for _ in range(2):
        command = [sys.executable, "-m", "training.demo", str(tmp_path / "demo"), "--parcels", "4000"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert re.search(r"^[A-Z].*: \d+\.\d %, .* the usual \d+\.\d %\.$", done.stdout, re.MULTILINE)
        assert "SIMULATED" in done.stdout and "base_rate" in done.stdout
