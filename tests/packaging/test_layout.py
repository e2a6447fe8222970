"""What the tree is: three packages under their own names, every dependency pinned, nothing that belongs elsewhere."""

import importlib
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "serving", "training")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files of the repository, relative to its root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_package_is_the_one_of_this_tree(name: str) -> None:
    module = importlib.import_module(name)
    assert Path(str(module.__file__)).resolve() == ROOT / name / "__init__.py"


def test_mlflow_is_the_library_and_not_the_folder_of_that_name() -> None:
    found = importlib.import_module("mlflow").__file__
    assert found is not None, "the folder mlflow/ was imported as a namespace package"
    assert Path(found).resolve().parent != ROOT / "mlflow"
    assert importlib.metadata.version("mlflow")
    assert [p.name for p in (ROOT / "mlflow").rglob("*.py")] == [], "mlflow/ holds configuration, never Python"


def test_every_package_is_listed_and_every_listed_package_is_there() -> None:
    holding = {p.parent.relative_to(ROOT) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(".".join(p.parts) for p in holding)
    assert [str(p) for p in holding if not (ROOT / p / "__init__.py").is_file()] == []
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []


def test_it_is_an_application_under_the_apache_licence() -> None:
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text


def test_the_changelog_has_the_version() -> None:
    assert f"\n## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# ---- pins


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( ; .+)?", line)]
    assert odd == [], "constraints.txt holds `name==version` (and a marker) only: no addresses, no options"
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in map(Requirement, lines)}


def wanted(distribution: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> set[str]:
    """Names of everything that the distribution with these extras asks for, here, and what those ask for."""
    names = set()
    for text in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(text)
        for extra in extras | {""}:
            if (text, extra) in seen or not (
                requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            ):
                continue
            seen.add((text, extra))
            names.add(canonicalize_name(requirement.name))
            names |= wanted(requirement.name, frozenset(requirement.extras), seen)
    return names


def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = pins()
    needed = wanted("doorstep", frozenset({"dev"}), set()) - {"doorstep"}
    assert len(needed) > 100
    assert sorted(needed - pinned.keys()) == [], "not pinned in constraints.txt"
    installed = {name: importlib.metadata.version(name) for name in needed}
    differ = {name: (found, pinned[name]) for name, found in installed.items() if found != pinned[name]}
    assert differ == {}, "installed, pinned: run `make install`"


# ---- what is tracked

HERE_ONLY = re.compile(r"(?<![\w.~-])/(?:work|root|tmp|home/\w+|Users/\w+)/")
INDEXES = re.compile(r"(?:index-url|find-links)[ =]+\S*/|https?://\S*(?:pythonhosted|/simple\b)", re.IGNORECASE)


def texts(tracked: list[Path]) -> list[tuple[Path, str]]:
    out = []
    for path in tracked:
        try:
            out.append((path, (ROOT / path).read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return out


@pytest.mark.parametrize(
    ("what", "pattern"), [("a path of one machine", HERE_ONLY), ("an address of a package index", INDEXES)]
)
def test_no_tracked_file_names(what: str, pattern: re.Pattern[str], tracked: list[Path]) -> None:
    own = Path(__file__).relative_to(ROOT)
    found = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in texts(tracked)
        if path != own
        for match in pattern.finditer(text)
    ]
    assert found == [], f"{what} means nothing elsewhere"


def test_no_tracked_file_is_large(tracked: list[Path]) -> None:
    large = {str(path): size for path in tracked if (size := (ROOT / path).stat().st_size) > MEBIBYTE}
    assert large == {}, "data sets and models are made or fetched, not committed"


def test_line_endings_of_sealed_files_are_left_alone() -> None:
    names = ["any/bundle/models/late.txt", "any/bundle/manifest.json", "any/bundle/trees/late/leaves.bin"]
    asked = subprocess.run(["git", "check-attr", "text", "--", *names], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode != 0:
        pytest.skip(f"not a git checkout: {asked.stderr.strip()}")
    assert [line.rpartition(": ")[2] for line in asked.stdout.splitlines()] == ["unset"] * len(names)
