"""The pages say what the code says, and their examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from features.contracts import TABLES
from features.dataset import Dataset
from training.check import check
from training.docs import FOLDER, fill

PAGES = sorted(FOLDER.rglob("*.md"))
EXAMPLE = re.compile(r"<!-- example: ([\w]+)/([\w.]+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_generated_parts_are_what_the_code_says(page):
    text = page.read_text(encoding="utf-8")
    assert fill(text) == text, "run `python -m training.docs`"


def test_a_marker_that_names_nothing_is_an_error():
    with pytest.raises(KeyError, match="there is columns"):
        fill("<!-- generated: colums orders -->\n<!-- /generated -->")


def test_the_dataset_guide_has_every_column():
    text = (FOLDER / "dataset.md").read_text(encoding="utf-8")
    for table in TABLES.values():
        section = text.split(f"### {table.name}\n")[1].split("\n### ")[0]
        for column in table.names:
            assert f"| `{column}`" in section, f"{table.name}.{column}"


def example(name: str, to: Path) -> Path:
    for folder, file, content in EXAMPLE.findall((FOLDER / "dataset.md").read_text(encoding="utf-8")):
        if folder == name:
            (to / file).write_text(content, encoding="utf-8")
    return to


def test_the_minimal_shop_of_the_guide_is_fit(tmp_path):
    report = check(example("minimal", tmp_path))
    assert report.ok, report.render()
    ordered = Dataset.open(tmp_path).tables["orders"]["ordered_at"]
    assert ordered.iloc[0] == pd.Timestamp("2025-03-01T02:12Z")


def test_the_shop_with_its_own_codes_of_the_guide_is_fit(tmp_path):
    report = check(example("codes", tmp_path))
    assert report.ok, report.render()
    assert not [f for f in report.findings if "ignored" in f.what]
    tables = Dataset.open(tmp_path).tables
    assert tables["orders"]["payment_method"].tolist() == ["cod", "card"]
    assert tables["orders"]["gift_wrap"].tolist() == [1.0, 0.0]
    assert tables["parcels"]["carrier"].tolist() == ["J&T", "J&T"]
    assert tables["parcels"]["label_grade"].tolist() == ["A", "C"]
    assert tables["events"]["kind"].tolist() == ["delivered", "returned_to_sender"]
