"""The command line as a person meets it: help everywhere, data on stdout, one clear sentence for what can be mended."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from training.cli import main

COMMANDS = [(name,) for name in main.commands if name != "import"] + [("import",), ("import", "shopee")]


def run(*words: object, **env: str) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], env=env)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself_and_all_its_options(command: tuple[str, ...], flag: str) -> None:
    done = run(*command, flag)
    assert done.exit_code == 0
    found: click.Command = main
    for word in command:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    assert found.help
    for option in found.params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(command)} {option.opts}: no help"
            assert option.opts[-1] in done.stdout


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"doorstep {version('doorstep')}\n"


def test_wrong_words_end_with_status_2() -> None:
    assert run("trane").exit_code == 2
    assert run("world").exit_code == 2
    assert run("world", "x", "--parcels", "0").exit_code == 2


@pytest.mark.parametrize("command", ["check", "snapshot", "train"])
def test_a_dataset_that_is_not_there_is_one_clear_message(command: str, tmp_path: Path) -> None:
    done = run(command, tmp_path / "nowhere")
    assert done.exit_code == 2
    said = done.stdout + done.stderr
    assert "nowhere" in said and said.count("there is no such folder") == 1 and len(said.strip().splitlines()) <= 3
    assert "Traceback" not in said
    assert not isinstance(done.exception, (ValueError, OSError))


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text('name = "x"\n')
    (tmp_path / "orders.parquet").write_bytes(b"this is no table")
    done = run("train", tmp_path, "--out", tmp_path / "run", "--no-log")
    assert done.exit_code == 2
    assert "orders.parquet" in done.stderr
    assert not (tmp_path / "run").exists()


def test_check_of_a_sound_dataset_ends_with_0_and_a_broken_one_with_1(world_dataset: Path, tmp_path: Path) -> None:
    assert run("check", world_dataset).exit_code == 0
    shutil.copytree(world_dataset, tmp_path, dirs_exist_ok=True)
    parcels = pd.read_parquet(tmp_path / "parcels.parquet")
    parcels.loc[3, "weight_g"] = -5.0
    parcels.to_parquet(tmp_path / "parcels.parquet")
    done = run("check", tmp_path, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)["findings"]
    assert [f["column"] for f in found if f["severity"] == "error"] == ["weight_g"]


def test_progress_is_not_written_off_a_terminal_and_v_and_q_are_heeded(tmp_path: Path) -> None:
    plain = run("world", tmp_path / "a", "--parcels", 50)
    assert plain.stdout == f"{tmp_path / 'a'}\n"
    assert plain.stderr.startswith("next: ")
    assert "\x1b" not in plain.stderr
    assert run("world", tmp_path / "b", "--parcels", 50, "-q").stderr == ""
    assert " s] " in run("world", tmp_path / "c", "--parcels", 50, "-v").stderr


def test_score_writes_a_row_per_target_and_unit_and_nothing_else(trained, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    done = run("score", trained.dataset, "--bundle", trained.bundle, "--out", out, "--decided-from", "2025-12-01")
    assert done.exit_code == 0, done.stderr
    table = pd.read_csv(out)
    assert not table.duplicated(["target", "unit_id"]).any()
    assert (pd.to_datetime(table["decided_at"]) >= pd.Timestamp("2025-11-30T23:00Z")).all()
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]
    refused = run("score", trained.dataset, "--bundle", trained.bundle, "--out", tmp_path / "scores.xlsx")
    assert refused.exit_code == 2
    assert ".parquet or .csv" in refused.stderr


def test_a_bundle_that_was_changed_is_refused_in_words(trained, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "bundle"
    shutil.copytree(trained.bundle, broken)
    text = broken / "models" / "late.txt"
    text.write_text(text.read_text().replace("leaf", "loaf", 1))
    done = run("score", trained.dataset, "--bundle", broken, "--out", tmp_path / "s.parquet")
    assert done.exit_code == 2
    assert "late.txt: checksum differs" in done.stderr
    assert not (tmp_path / "s.parquet").exists()


def test_variables_stand_behind_flags(trained, tmp_path: Path) -> None:
    words = ("score", trained.dataset, "--out", tmp_path / "s.parquet", "--decided-from", "2025-12-20")
    none = run(*words, DOORSTEP_BUNDLE=str(tmp_path / "none"))
    assert none.exit_code == 2
    assert "found nothing" in none.stderr
    assert "to do: name a bundle, such as --bundle runs/NAME/bundle" in none.stderr
    assert run(*words, DOORSTEP_BUNDLE=str(trained.bundle)).exit_code == 0
    assert run(*words, "--bundle", trained.bundle, DOORSTEP_BUNDLE=str(tmp_path / "none")).exit_code == 0


def test_a_feature_is_shown_with_the_facts_that_made_it(trained) -> None:
    parcel = pd.read_parquet(trained.dataset / "parcels.parquet").sort_values("packed_at").iloc[-1]
    words = ("feature", "late_rate_lane_28d", "--dataset", trained.dataset, "--parcel", parcel["parcel_id"])
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    for said in (parcel["parcel_id"], "carrier", "n:late", parcel["carrier"]):
        assert said in done.stdout
    found = json.loads(run(*words, "--json", "--as-of", "2025-06-01").stdout)
    facts = [f for c in found["counts"] for f in c["facts"]]
    assert facts
    assert all(f["known"] < "2025-06-01" for f in facts)
    wrong = run("feature", "late_rate_lan", "--dataset", trained.dataset, "--parcel", parcel["parcel_id"])
    assert wrong.exit_code == 2
    assert "late_rate_lane" in wrong.stderr


def test_features_are_listed() -> None:
    from features.definitions import FEATURES

    listed = json.loads(run("feature", "--json", "--dataset", "nowhere").stdout)
    assert [f["name"] for f in listed] == list(FEATURES)


def test_help_does_not_load_what_commands_need() -> None:
    heavy = ("pandas", "numpy", "mlflow", "lightgbm", "bentoml")
    code = f"import sys, training.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", ["train", "backtest"])
def test_a_registry_that_is_away_is_told_before_anything_is_computed(
    command: str, world_dataset: Path, tmp_path: Path
) -> None:
    away = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run(command, world_dataset, "--out", tmp_path / "out", "--mlflow-uri", "http://127.0.0.1:9", **away)
    assert done.exit_code == 2
    assert "does not answer" in done.stderr and "--no-log" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_registry_that_goes_away_at_the_end_costs_no_result(trained, result, tmp_path: Path, monkeypatch) -> None:
    from training import pipeline
    from training.registry import Registry, RegistryError

    def gone(self: Registry, *given: object, **more: object) -> None:
        raise RegistryError("the model registry does not answer")

    monkeypatch.setattr(pipeline, "train", lambda *given, **more: result)
    monkeypatch.setattr(Registry, "log", gone)
    done = run("train", trained.dataset, "--out", trained.run, "--mlflow-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert done.exit_code == 2
    assert "late" in done.stdout and str(trained.bundle) in done.stdout
    assert f"not registered, but kept in {trained.run}" in done.stderr
    assert "next: doorstep promote" not in done.stderr
