"""The notebook for data scientists runs from top to bottom, says what it shows, and is stored without results."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
STORED = sorted(FOLDER.glob("*.ipynb"))

# Two trainings, and both logged: a minute or two of work, on a busy machine many.
pytestmark = pytest.mark.timeout(1200)


def joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


# ---- as it is stored


def test_there_is_a_notebook() -> None:
    assert [p.name for p in STORED] == ["one-round.ipynb"]


@pytest.mark.parametrize("notebook", STORED, ids=lambda p: p.stem)
def test_it_is_stored_without_results(notebook: Path) -> None:
    document = json.loads(notebook.read_text(encoding="utf-8"))
    code = [c for c in document["cells"] if c["cell_type"] == "code"]
    assert code
    assert [c["id"] for c in code if c["outputs"] or c["execution_count"] is not None] == []
    assert [c["id"] for c in document["cells"] if c["metadata"]] == []
    # Which Python it was written with is nobody's business.
    assert document["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


@pytest.mark.parametrize("notebook", STORED, ids=lambda p: p.stem)
def test_its_links_lead_somewhere_and_the_guides_lead_to_it(notebook: Path) -> None:
    text = "\n".join(joined(c["source"]) for c in cells(notebook) if c["cell_type"] == "markdown")
    links = [to.partition("#")[0] for to in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert links
    assert [to for to in links if not (FOLDER / to).is_file()] == []
    for guide in ("README.md", "data-scientist.md"):
        assert f"](notebooks/{notebook.name})" in (ROOT / "docs" / guide).read_text(encoding="utf-8")


def test_the_text_names_no_result() -> None:
    # A figure in the text that a run could contradict; levels of confidence and examples are none.
    (notebook,) = STORED
    text = "\n".join(joined(c["source"]) for c in cells(notebook) if c["cell_type"] == "markdown")
    assert set(re.findall(r"\d[\d.,]* ?%|\b0\.\d+", text)) <= {"20 %", "95 %", "90 %"}


# ---- as it runs


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the page and the executed notebook, made as `make notebook` makes them."""
    folder = tmp_path_factory.mktemp("notebook")
    command = [sys.executable, str(FOLDER / "run.py"), "--page", "page.html", "--executed", "executed.ipynb"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert re.findall(r"(?i)^.*(?:warning|error).*$", done.stderr, re.M) == []
    assert re.search(r"^\[ *\d+ s\] 4\. Train$", done.stdout, re.M), "progress is shown"
    return folder


@pytest.fixture(scope="module")
def outputs(ran: Path) -> dict[str, list[dict[str, Any]]]:
    """What each code cell put out, by the cell's id."""
    return {c["id"]: c["outputs"] for c in cells(ran / "executed.ipynb") if c["cell_type"] == "code"}


def text_of(outputs: list[dict[str, Any]]) -> str:
    return "\n".join(joined(o["text"] if "text" in o else o["data"].get("text/markdown", "")) for o in outputs)


def test_it_runs_through_without_a_warning(outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert list(outputs) == [c["id"] for c in cells(STORED[0]) if c["cell_type"] == "code"]
    assert [name for name, found in outputs.items() for o in found if o.get("name") == "stderr"] == []
    assert [name for name, found in outputs.items() for o in found if o["output_type"] == "error"] == []


def test_every_picture_is_one_and_is_put_into_words(outputs: dict[str, list[dict[str, Any]]]) -> None:
    pictures = [o for found in outputs.values() for o in found if "image/png" in o.get("data", {})]
    assert len(pictures) >= 7
    for picture in pictures:
        assert base64.b64decode(joined(picture["data"]["image/png"])).startswith(b"\x89PNG")
        assert len(picture["metadata"]["image/png"]["alt"]) > 20


def test_its_cells_give_what_the_text_says(outputs: dict[str, list[dict[str, Any]]]) -> None:
    said = {name: text_of(found) for name, found in outputs.items()}
    assert "fit to train on: 0 errors" in said["check"]
    so_far, to_come = (float(share) for share in re.findall(r"([\d.]+)%(?: have| \()", said["matured"]))
    assert 0 < so_far < to_come
    assert "late_rate_lane_28d of P" in said["facts"] and "the whole shop" in said["facts"]
    assert "SIMULATED" in said["results"] and "cannot be told from" in said["results"]
    assert all(f"\n{target} " in said["results"] for target in ("late", "failed_attempt", "damaged", "returned"))
    assert "base " in said["why"] and "comes back with" in said["why"]
    assert said["verdict"].startswith("**")
    assert "# features/definitions/fulfilment.py\n@feature(" in said["registered"]
    assert "there was no other champion" in said["promote-first"]
    assert "intervals allow for the number of comparisons" in said["promote-second"]
    assert ("version 2 is champion" in said["promote-second"]) == ("nothing to overrule" in said["overrule"])
    assert said["refused"].startswith("not promoted: ") and "order_lines.size_doubt" in said["refused"]
    assert re.search(r"^2 +champion", said["models"], re.M) and re.search(r"^1 +previous", said["models"], re.M)
    assert said["rollback"].startswith("version 1 is champion")


def test_the_page_needs_nothing_from_outside(ran: Path) -> None:
    page = (ran / "page.html").read_text(encoding="utf-8")
    assert "One round with Doorstep" in page and "data:image/png;base64," in page
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.?https?:[^>]*>", page) == []
