"""What is imported when: modules are counted, not seconds, so the result is the same on every machine."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"lightgbm", "matplotlib", "mlflow", "numba", "pandera", "python_calamine", "scipy", "shap", "sklearn", "skops"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the code."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def third_party(names: set[str]) -> set[str]:
    own = {"features", "serving", "training", "__main__", "sitecustomize", "usercustomize"}
    return {
        n
        for n in names - sys.stdlib_module_names - own
        if not n.startswith(("_virtualenv", "__editable__", "_distutils"))
    }


def public_modules(package: str) -> list[str]:
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / package).rglob("*.py")
    )


def test_the_three_packages_themselves_import_nothing() -> None:
    assert third_party(modules_after("import features, serving, training")) == set()


def test_features_need_numpy_and_pandas_only() -> None:
    allowed = sys.stdlib_module_names | {"features", "numpy", "pandas", "pyarrow"}
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path in (ROOT / "features").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "features"])
        if name.partition(".")[0] not in allowed
    }
    assert found == set()


@pytest.mark.parametrize("package", ["features", "serving"])
def test_what_is_deployed_loads_no_training_library(package: str) -> None:
    loaded = modules_after("\n".join(f"import {name}" for name in public_modules(package)))
    assert loaded & (HEAVY | {"training"}) == set()


def test_bentoml_is_loaded_by_the_service_only() -> None:
    others = [name for name in public_modules("serving") if name != "serving.service"]
    assert "bentoml" not in modules_after("\n".join(f"import {name}" for name in others))


CALL = """
import sys
from importlib.metadata import entry_points
(command,) = entry_points(group="console_scripts", name="doorstep")
main = command.load()
import contextlib, io
for arguments in {arguments}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments, prog_name="doorstep")
        except SystemExit as end:
            assert end.code in (None, 0), (arguments, end.code)
    assert "Usage: doorstep" in out.getvalue() or arguments == ["--version"], (arguments, out.getvalue())
"""


def test_help_of_every_command_loads_click_and_nothing_else() -> None:
    from click import Command, Context, Group

    from training.cli import main

    def paths(command: Command, path: list[str]) -> list[list[str]]:
        found = [path]
        if isinstance(command, Group):
            context = Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                found += paths(inner, [*path, name])
        return found

    arguments = [[*path, option] for path in paths(main, []) for option in ("--help", "-h")] + [["--version"]]
    assert len(arguments) > 20
    assert third_party(modules_after(CALL.format(arguments=arguments))) == {"click"}
