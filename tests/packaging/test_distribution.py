"""What is in the built wheel and source distribution, built from a copy so that nothing is left in the tree."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "serving", "training")
LEFT_OUT = (
    ".git",
    ".*",
    "*.egg-info",
    "__pycache__",
    "build",
    "dist",
    "demo",
    "runs",
    "deploy",
    "mlruns",
    "*.db*",
    "out",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one wheel, made from the one source distribution beside it."""
    folder = tmp_path_factory.mktemp("distribution")
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"run `make install` if a build requirement is missing\n{done.stdout}\n{done.stderr}"
    return folder / "dist"


def files(package: str) -> set[str]:
    return {
        p.relative_to(ROOT).as_posix() for p in (ROOT / package).rglob("*") if p.suffix == ".py" or p.name == "py.typed"
    }


def test_the_wheel_holds_the_packages_with_their_types_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("doorstep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (metadata,) = {PurePosixPath(name).parts[0] for name in names if ".dist-info/" in name}
    own = {name for name in names if not name.startswith(metadata)}
    code = {name for name in own if PurePosixPath(name).suffix == ".py" or PurePosixPath(name).name == "py.typed"}
    assert code == set().union(*(files(package) for package in PACKAGES))
    assert {PurePosixPath(name).parts[0] for name in own} == set(PACKAGES)
    assert f"{metadata}/licenses/LICENSE" in names
    assert "features/reason_codes.toml" in names
    of_pages = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "serving" / "pages").glob("[st]*/*") if p.suffix != ".py"
    }
    assert len(of_pages) > 5 and of_pages <= names


def test_the_wheel_declares_the_command_and_keeps_training_out_of_the_base_install(built: Path) -> None:
    (wheel,) = built.glob("doorstep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {PurePosixPath(name).parts[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert "doorstep = training.cli:main" in scripts
    assert metadata["License-Expression"] == "Apache-2.0"
    base = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert base and not [
        text for text in base if text.startswith(("mlflow", "lightgbm", "shap", "scikit-learn", "scipy"))
    ]
    assert set(metadata.get_all("Provides-Extra", [])) == {"train", "postgres", "dev"}


def test_the_source_distribution_holds_no_tests_benchmarks_or_data(built: Path) -> None:
    (archive,) = built.glob("doorstep-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {PurePosixPath(*PurePosixPath(m.name).parts[1:]) for m in tar.getmembers() if m.isfile()}
    top = {name.parts[0] for name in names}
    assert not top & {"tests", "benchmarks", "demo", "docs", "mlflow", "runs", "deploy"}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "pyproject.toml"} <= top
    kinds = {"", ".py", ".typed", ".md", ".txt", ".toml", ".in", ".cfg"}
    assert {name.suffix for name in names if name.parts[:2] != ("serving", "pages")} <= kinds
