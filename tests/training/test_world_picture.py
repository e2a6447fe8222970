"""The picture of the simulated shop: the same every time, honest about its source, and of the world as it is now."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from features.vocabulary import TARGETS, TEAMS
from training.world import figures, scenario
from training.world.equations import OWNERS, Causes, LineCauses
from training.world.oracle import Oracle
from training.world.picture import FIGURES, FOLDER, PLOTS, draw, main

PARCELS = 700
FILES = {FIGURES, *(f"{name}.svg" for name in PLOTS)}
SHOWN = json.loads((FOLDER / FIGURES).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _few_shared_out():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "SHARED_OUT", 20)
        yield


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("picture") / "new" / "folder"
    assert {p.name for p in draw(folder, PARCELS, 3, "plain")} == FILES
    return folder


class TestCommand:
    def test_the_same_shop_is_the_same_bytes(self, picture, tmp_path):
        code = f"""
from training.world import figures, picture
figures.SHARED_OUT = 20
picture.main({[str(tmp_path), "--parcels", str(PARCELS), "--seed", "3"]!r})
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {Path(line).name for line in done.stdout.split()} == FILES
        assert {p.name for p in tmp_path.iterdir()} == FILES
        for name in FILES:
            assert (tmp_path / name).read_bytes() == (picture / name).read_bytes(), name

    def test_an_earlier_picture_is_replaced_and_a_shop_without_faults_or_causes_drawn(self, picture, tmp_path):
        (tmp_path / "rates.svg").write_text("old")
        draw(tmp_path, 300, 0, "null")
        drawn = json.loads((tmp_path / FIGURES).read_text())
        assert drawn["made"]["scenario"] == "null"
        assert drawn["faults"] == {}
        assert max(drawn["teams"][team]["damaged"] for team in TEAMS) < 1e-9
        assert (tmp_path / "rates.svg").read_text() != "old"

    @pytest.mark.parametrize(
        ("folder", "arguments", "says"),
        [
            ("mine", (), "holds notes.txt and 1 more, no part of a world's picture: name an empty folder"),
            ("mine/notes.txt", (), "is a file, must be a folder: name another one"),
            ("new", ("--scenario", "plane"), "plane is no scenario"),
            ("new", ("--parcels", "0"), "Invalid value for '--parcels'"),
        ],
    )
    def test_what_it_cannot_draw_it_refuses_and_leaves_alone(self, tmp_path, folder, arguments, says):
        (tmp_path / "mine").mkdir()
        for name in ("notes.txt", "page.md"):
            (tmp_path / "mine" / name).write_text(name)
        done = CliRunner().invoke(main, [str(tmp_path / folder), *arguments])
        assert done.exit_code != 0
        assert says in done.output
        assert "Traceback" not in done.output
        assert {p.name: p.read_text() for p in (tmp_path / "mine").iterdir()} == {
            "notes.txt": "notes.txt",
            "page.md": "page.md",
        }
        assert not (tmp_path / "new").exists()


def row_names(axes):
    """Labels of the ticks that are in sight."""
    low, high = sorted(axes.get_ylim())
    return [tick.label1 for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]


class TestPlots:
    @pytest.mark.parametrize("name", PLOTS)
    def test_they_are_plain_small_drawings(self, picture, name):
        for folder in (picture, FOLDER):
            content = (folder / f"{name}.svg").read_bytes()
            assert len(content) < 150_000
            assert b"<image" not in content and b"<script" not in content
            assert not re.search(rb"dc:date|http://matplotlib|\r", content)
            assert ElementTree.fromstring(content).tag.endswith("}svg")

    @pytest.mark.parametrize("name", PLOTS)
    def test_they_say_that_the_data_are_simulated(self, name):
        figure = PLOTS[name](SHOWN)
        assert "simulated data" in figure.get_suptitle()
        assert "50,000 parcels of the scenario plain" in figure.get_suptitle()

    def test_no_words_cover_each_other(self):
        for name, plot in PLOTS.items():
            figure = plot(SHOWN)
            figure.draw_without_rendering()
            width, height = figure.bbox.size
            boxes = [
                (text.get_text(), text.get_window_extent())
                for axes in figure.axes
                for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title, *row_names(axes))
                if text.get_text() and text.get_visible()
            ]
            for said, box in boxes:
                assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (name, said)
            for i, (said, box) in enumerate(boxes):
                for other, beside in boxes[:i]:
                    assert not box.padded(-1).overlaps(beside.padded(-1)), (name, said, other)


class TestFigures:
    def test_the_figures_of_the_page_are_those_of_this_world(self):
        made = SHOWN["made"]
        now = figures.first(Oracle(made["parcels"], made["seed"], scenario(made["scenario"])))
        assert now == pytest.approx(SHOWN["first"], abs=2e-6), "the world has changed: run `make world-picture`"
        assert made["scenario"] == "plain"

    def test_what_is_counted_agrees_with_what_is_true(self):
        faults = SHOWN["faults"].values()
        several = [
            *SHOWN["rates"].values(),
            *SHOWN["returns"].values(),
            *SHOWN["packaging"]["packages"].values(),
            *(r for found in SHOWN["carriers"].values() for r in found["carriers"].values()),
            *(r for f in faults for side in (f["here"], f["elsewhere"]) for r in side.values()),
        ]
        assert len(several) > 45
        for r in several:
            assert r["low"] <= r["seen"] <= r["high"]
            error = (r["true"] * (1 - r["true"]) / r["rows"]) ** 0.5
            assert abs(r["seen"] - r["true"]) < 4 * error, r

    def test_rates_lie_in_their_ranges(self):
        for target, (low, high) in figures.RANGES.items():
            for r in SHOWN["returns"].values() if target == "returned" else [SHOWN["rates"][target]]:
                assert low <= r["true"] <= high

    def test_a_fault_changes_nothing_before_it_begins_and_much_afterwards(self):
        for fault in SHOWN["faults"].values():
            assert fault["here"]["before"]["true"] == fault["here"]["before"]["had"]
            assert fault["here"]["after"]["true"] > 1.05 * fault["here"]["after"]["had"]
            began = fault["months"].index(fault["since"][:7])
            assert fault["by_month"]["here"][:began] == fault["by_month"]["had"][:began]

    def test_boxes_look_guilty_and_are_not(self):
        packages = SHOWN["packaging"]["packages"]
        assert packages["light_carton"]["seen"] > 2 * packages["bag"]["seen"]
        had = [p["had"] for p in packages.values()]
        assert had == sorted(had, reverse=True)
        assert SHOWN["packaging"]["one_stronger"] < SHOWN["rates"]["damaged"]["true"]

    def test_reasons_and_weeks_add_up(self, picture):
        for shown in (SHOWN, json.loads((picture / FIGURES).read_text())):
            for r in shown["returns"].values():
                if r["rows"]:
                    assert sum(r["reasons"].values()) == pytest.approx(r["true"], abs=1e-5)
            for row, returns in zip(
                shown["reasons"]["stated"].values(), shown["reasons"]["returns"].values(), strict=True
            ):
                assert sum(row.values()) == pytest.approx(1.0 if returns else 0.0, abs=1e-5)
            year = shown["year"]
            assert 50 <= len(year["weeks"]) == len(year["parcels"]) == len(year["late_true"])
            assert 0.95 * shown["made"]["parcels"] < sum(year["parcels"]) <= shown["made"]["parcels"]

    @pytest.mark.parametrize(("positives", "rows"), [(0, 10), (3, 40), (40, 40), (900, 50_000)])
    def test_intervals_are_wilsons(self, positives, rows):
        wilson = binomtest(positives, rows).proportion_ci(0.95, method="wilson")
        assert figures.interval(positives, rows) == pytest.approx((wilson.low, wilson.high), abs=1e-5)

    def test_without_rows_an_interval_says_nothing(self):
        assert figures.interval(0, 0) == (0.0, 1.0)

    @pytest.mark.slow
    def test_all_of_them_are_those_of_this_world(self, tmp_path):
        made = SHOWN["made"]
        command = [sys.executable, "-m", "training.world.picture", str(tmp_path)]
        options = ["--parcels", str(made["parcels"]), "--seed", str(made["seed"])]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / FIGURES).read_text()) == SHOWN


def test_every_cause_has_an_owner():
    causes = {f.name for kind in (Causes, LineCauses) for f in fields(kind)} - {"parcel"}
    assert set(OWNERS) == causes
    assert set(OWNERS.values()) == set(TEAMS)
    assert set(SHOWN["teams"]) == set(TEAMS)
    assert all(set(row) == set(TARGETS) for row in SHOWN["teams"].values())
