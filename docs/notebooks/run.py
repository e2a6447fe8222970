"""Run the notebook as it lies here and write what came of it as a page: `make notebook`.

The notebook in the repository holds no results, so that a change of it can be read. It is run in a kernel of this
Python, with none of the user's Jupyter or IPython settings, and is left as it is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = Path(__file__).resolve().with_name("one-round.ipynb")
CELL_SECONDS = 900
"""A training of the small shop takes half a minute; on a busy machine several."""


def run(page: Path, executed: Path | None) -> None:
    """Execute the notebook and write the page, and the notebook with its results where asked.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message shows it.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    started = time.monotonic()
    headings = {}
    for at, cell in enumerate(notebook.cells):
        first = cell.source.partition("\n")[0]
        if cell.cell_type == "markdown" and first.startswith("#"):
            headings[at] = first.lstrip("# ")

    def say(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell_index in headings:
            print(f"[{time.monotonic() - started:4.0f} s] {headings[cell_index]}", flush=True)

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        on_cell_start=say,
        config=Config(KernelManager={"transport_encryption": "auto"}),  # else the kernel warns that it is not
    )
    client.execute()
    for path, text in (
        (executed, lambda: nbformat.writes(notebook)),
        # Formulas and widgets would be fetched from outside, and there are none.
        (
            page,
            lambda: HTMLExporter(mathjax_url="", require_js_url="", embed_images=True).from_notebook_node(notebook)[0],
        ),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, default=NOTEBOOK.with_suffix(".html"), help="where the page goes")
    parser.add_argument("--executed", type=Path, help="where the notebook with its results goes, if anywhere")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doorstep-jupyter-") as own:
        os.environ |= {
            **{name: own for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")},
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not one the user has installed
            "JUPYTER_PLATFORM_DIRS": "1",  # what jupyter_core will do by itself, and warns about until then
        }
        run(given.page, given.executed)
