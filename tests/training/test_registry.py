from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.files import digest_of
from features.matrix import FeatureSet
from features.settings import Settings
from serving.bundle import Bundle
from serving.store import resolve
from training.evaluate import evaluate
from training.evaluate.card import CardError, model_card, note
from training.models import MODELS, fit
from training.pipeline import TargetReport, TrainingResult
from training.registry import Registry, RegistryError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[TrainingResult]:
    """Two trainings with real bundles: a target of parcels, one of order lines, one that could not be trained."""
    folder = tmp_path_factory.mktemp("trained")
    settings = Settings(name="corner shop", simulated=True)
    rng = np.random.default_rng(0)
    models, texts, reports, documents = {}, {}, {}, {}
    period = {"rows": 400, "positives": 90, "from": "2025-01-01T00:00:00Z", "to": "2025-09-30T00:00:00Z"}
    for name in ("late", "returned"):
        every = FeatureSet.for_target(name, settings)
        features = FeatureSet(every.unit, every.features[:8] if name == "late" else every.features[-8:])
        matrix = rng.normal(size=(700, 8)).astype(np.float32)
        label = (rng.random(700) < 1 / (1 + np.exp(1.5 - matrix[:, 0]))).astype(np.int8)
        spec = replace(MODELS[name], max_trees=30)
        fitted = fit(spec, features, matrix[:400], label[:400], [], seed=0)
        models[name], texts[name] = fitted.model, fitted.booster.model_to_string()
        held = matrix[400:]
        probability = fitted.model.probability(held)
        judged = evaluate(label[400:], probability, {"base_rate": np.full(300, 0.22)}, replicates=40)
        holdout = pd.DataFrame(
            {
                "unit_id": [f"{name}-{i}" for i in range(300)],
                "decided_at": pd.Timestamp("2025-11-01", tz="UTC"),
                "target": name,
                "label": label[400:],
                "probability": probability,
            }
        )
        reports[name] = TargetReport(
            "trained",
            "",
            features.unit,
            f"maturity of {name}",
            excluded_immature=17,
            params=fitted.params,
            features=features.names,
            holdout=holdout,
            sample=pd.DataFrame(held, columns=features.names),
            contributions=fitted.model.slope * fitted.model.trees.contributions(held),
            baseline_notes={"base_rate": "the share of positives"},
        )
        documents[name] = {
            "status": "trained",
            "why": "",
            "unit": features.unit,
            "excluded_immature": 17,
            "young": {"rows": 60 if name == "returned" else 0, "worth": 0.7, "level": -0.12},
            "train": period,
            "holdout": {**period, "rows": 300, "positives": int(label[400:].sum())},
            "metrics": judged["metrics"],
            "baselines": judged["baselines"],
            "against_baselines": judged["against"],
            "slices": {
                "region: DE-NW": {
                    "rows": 90,
                    "positives": 30,
                    "auc": {"value": 0.7, "low": 0.6, "high": 0.8},
                    "log_loss": {"value": 0.5, "low": 0.4, "high": 0.6},
                    "calibration_gap": {"value": -0.1, "low": -0.2, "high": 0.1},
                    "baselines": {"base_rate": {"log_loss": {"value": 0.6, "low": 0.5, "high": 0.7}}},
                },
                "peak": {"rows": 40, "positives": 3, "why": "3 positives among 40 rows"},
            },
        }
    why = "3 mature positives among 400 parcels before the holdout; at least 30 are needed"
    reports["damaged"] = TargetReport("not_trained", why, "parcel", "maturity of damaged", excluded_immature=5)
    documents["damaged"] = {
        "status": "not_trained",
        "why": why,
        "unit": "parcel",
        "excluded_immature": 5,
        "train": {**period, "positives": 3},
        "holdout": {**period, "positives": 1},
        "metrics": {},
        "baselines": {},
    }
    made = []
    for number in (1, 2, 3):
        bundle = Bundle.save(folder / str(number) / "bundle", settings, models, texts, {"training": number})
        assert bundle.targets.keys() == models.keys()
        # Drawing takes most of the time, and once is enough.
        plain = {n: replace(r, holdout=None, sample=None, contributions=None) for n, r in reports.items()}
        made.append(
            TrainingResult(
                folder / str(number) / "bundle",
                {"dataset": settings.name, "targets": documents},
                settings.name,
                "f" * 64,
                settings,
                pd.Timestamp("2025-12-31", tz="UTC"),
                pd.Timestamp("2025-10-01", tz="UTC"),
                number,
                True,
                dict(reports) if number == 3 else plain,
            )
        )
    return made


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A SQLite registry that only has its tables: making those takes MLflow some seconds."""
    place = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_of(f"sqlite:///{place}").search_experiments()
    return place


@pytest.fixture(scope="module")
def filled(results, empty, tmp_path_factory) -> Path:
    """A SQLite registry with versions 1, 2 and 3; the last is challenger, and nothing was promoted."""
    place = tmp_path_factory.mktemp("registry") / "mlflow.db"
    shutil.copy(empty, place)
    for result in results:
        Registry(f"sqlite:///{place}").log(result)
    return place


@pytest.fixture
def registry(filled, tmp_path) -> Registry:
    """A copy of `filled` to change; the artefacts stay where they are and are only read."""
    shutil.copy(filled, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """A real MLflow server that keeps the artefacts itself."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
        try:
            uri = f"http://127.0.0.1:{port}"
            give_up = time.monotonic() + 240
            while True:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < give_up, f"no answer in four minutes: {(folder / 'log').read_text()[-2000:]}"
                with contextlib.suppress(urllib.error.URLError, OSError):
                    urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                    break
                time.sleep(0.1)
            yield uri
        finally:
            process.terminate()
            process.wait(timeout=30)


def client_of(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: row["version"] for row in registry.models() for alias in row["aliases"]}


def served(store: Path) -> str:
    """Version the pointer of a store names, after checking that it is the bundle that lies there."""
    pointer = json.loads((store / "current").read_text())
    assert Bundle.load(resolve(store)).meta == {"training": int(pointer["version"])}
    return pointer["version"]


@pytest.fixture(params=["database", "server"])
def logged(request, results, filled) -> tuple[str, str, TrainingResult]:
    """Address, parent run of the last training, and that training: in a database, and on a server over HTTP."""
    if request.param == "database":
        uri = f"sqlite:///{filled}"
        return uri, Registry(uri).models()[0]["run_id"], results[2]
    uri = request.getfixturevalue("server")
    known = Registry(uri).models()
    run = known[0]["run_id"] if known else Registry(uri).log(results[2]).run_id
    return uri, run, results[2]


def test_a_training_is_a_parent_run_with_a_child_per_target(logged) -> None:
    uri, run_id, result = logged
    client = client_of(uri)
    parent = client.get_run(run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["attributes.start_time"]
    )

    assert parent.info.status == "FINISHED"
    assert parent.data.tags["dataset_fingerprint"] == result.dataset_fingerprint
    assert parent.data.tags["as_of"] == "2025-12-31T00:00:00+00:00"
    assert parent.data.tags["simulated"] == "true"
    assert parent.data.params["seed"] == "3"
    assert parent.data.metrics["late_auc_low"] <= parent.data.metrics["late_auc"]
    assert {c.info.run_name for c in children} == {"late", "returned", "damaged"}
    assert {a.path for a in client.list_artifacts(run_id)} == {"metrics.json", "model_card.md", "settings.json"}
    assert parent.inputs.dataset_inputs[0].dataset.name == "corner shop"


def test_a_child_run_has_parameters_maturity_intervals_baselines_plots_and_card(logged, tmp_path) -> None:
    uri, run_id, result = logged
    client = client_of(uri)
    experiment = client.get_run(run_id).info.experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")}
    late, damaged = runs["late"].data, runs["damaged"].data
    figures = result.metrics["targets"]["late"]

    assert late.params["num_trees"] == str(result.targets["late"].params["num_trees"])
    assert late.tags["maturity_rule"] == "maturity of late"
    assert late.tags["dataset_fingerprint"] == result.dataset_fingerprint
    assert late.metrics["excluded_immature"] == 17
    for name, found in figures["metrics"].items():
        assert late.metrics[name] == found["value"], name
        assert (late.metrics[f"{name}_low"], late.metrics[f"{name}_high"]) == (found["low"], found["high"]), name
    assert late.metrics["base_rate_log_loss"] == figures["baselines"]["base_rate"]["log_loss"]["value"]
    assert late.metrics["minus_base_rate_auc"] == figures["against_baselines"]["base_rate"]["auc"]["difference"]
    assert late.tags["against.base_rate"] == "better"

    assert {a.path for a in client.list_artifacts(runs["late"].info.run_id, "plots")} == {
        "plots/calibration.png",
        "plots/shap_summary.png",
    }
    from mlflow.artifacts import download_artifacts

    for plot in ("calibration", "shap_summary"):
        at = f"runs:/{runs['late'].info.run_id}/plots/{plot}.png"
        png = Path(download_artifacts(artifact_uri=at, dst_path=str(tmp_path), tracking_uri=uri)).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 5000

    assert damaged.tags["status"] == "not_trained"
    assert damaged.tags["why"].startswith("3 mature positives")
    assert damaged.metrics["excluded_immature"] == 5


def test_the_bundle_is_one_registered_model_that_predicts_like_itself_without_pickle(logged, results, tmp_path) -> None:
    import mlflow

    uri, run_id, result = logged
    client = client_of(uri)
    registered = client.get_registered_model("doorstep")
    version = client.get_model_version_by_alias("doorstep", "challenger")
    assert version.run_id == run_id
    assert registered.aliases == {"challenger": version.version}
    assert version.tags["bundle_digest"] == digest_of(result.bundle_dir)

    client.set_registered_model_alias("doorstep", "champion", version.version)
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        found = Path(mlflow.artifacts.download_artifacts("models:/doorstep@champion", dst_path=str(tmp_path)))
        model = mlflow.pyfunc.load_model(str(found))
        remote = mlflow.pyfunc.load_model("models:/doorstep@champion")
    finally:
        mlflow.set_tracking_uri(before)
        client.delete_registered_model_alias("doorstep", "champion")

    assert not [p for p in found.rglob("*") if p.suffix in (".pkl", ".pickle", ".joblib", ".py")]
    assert "loader_module: serving.bundle" in (found / "MLmodel").read_text()
    bundle = Bundle.load(result.bundle_dir)
    for target in ("late", "returned"):
        frame = result.targets[target].sample
        expected = bundle.predict_proba(frame)
        assert list(expected) == [target]
        pd.testing.assert_frame_equal(model.predict(frame), expected)
        pd.testing.assert_frame_equal(remote.predict(frame.astype(np.float64)), expected)
    assert model.input_example is not None
    assert set(model.metadata.get_input_schema().input_names()) >= set(result.targets["late"].features)
    assert list(model.predict(model.input_example)) == ["late"]


def test_promote_publish_and_roll_back_over_http(server, results, tmp_path) -> None:
    registry, store = Registry(server), tmp_path / "deploy"
    first, second = (registry.log(r).version for r in results[:2])

    registry.promote(first, publish=store, judge=None)
    promoted = registry.promote(publish=store, judge=None)
    assert (promoted.version, promoted.previous) == (second, first)
    assert aliases(registry) == {"champion": second, "previous": first}
    assert Bundle.load(resolve(store)).digest == promoted.bundle == digest_of(results[1].bundle_dir)
    assert registry.rollback(publish=store).bundle == digest_of(results[0].bundle_dir)
    assert Bundle.load(resolve(store)).digest == digest_of(results[0].bundle_dir)
    with pytest.raises(RegistryError, match="is the first champion"):
        registry.rollback(publish=store)


def test_promotion_takes_the_challenger_and_remembers_who_was_champion(registry, tmp_path) -> None:
    store = tmp_path / "deploy"
    assert aliases(registry) == {"challenger": 3}

    first = registry.promote(1, publish=store, judge=None)
    assert (first.version, first.previous) == (1, None)
    assert aliases(registry) == {"champion": 1, "challenger": 3}
    assert served(store) == "1"

    second = registry.promote(publish=store, judge=None)
    assert (second.version, second.previous) == (3, 1)
    assert aliases(registry) == {"champion": 3, "previous": 1}
    assert served(store) == "3"
    assert "version 3 is champion (before: version 1)" in str(second)
    assert second.to_dict()["published"] == str(second.published)


def test_rolling_back_goes_one_further_each_time_and_says_when_there_is_no_more(registry, tmp_path) -> None:
    store = tmp_path / "deploy"
    for number in (1, "3", 2):
        registry.promote(number, publish=store, judge=None)

    assert registry.rollback(publish=store).version == 3
    assert aliases(registry) == {"champion": 3, "previous": 1}
    assert served(store) == "3"
    assert registry.rollback(publish=store).version == 1
    assert aliases(registry) == {"champion": 1}
    assert served(store) == "1"
    with pytest.raises(RegistryError, match=r"nothing to roll back to at .* version 1 is the first champion"):
        registry.rollback(publish=store)
    assert served(store) == "1"

    registry.promote(2, publish=store, judge=None)
    assert registry.rollback(publish=store).version == 1, "what was rolled back is not what comes before"


def test_promoting_the_champion_again_only_publishes_it_again(registry, tmp_path) -> None:
    registry.promote(1, judge=None)
    registry.promote(2, judge=None)
    again = registry.promote(2, publish=tmp_path / "deploy", judge=None)

    assert again.previous is None
    assert aliases(registry)["previous"] == 1
    assert served(tmp_path / "deploy") == "2"


def test_a_promotion_that_stopped_before_it_was_recorded_is_finished_by_doing_it_again(registry, tmp_path) -> None:
    from serving.store import publish

    store = tmp_path / "deploy"
    registry.promote(1, publish=store, judge=None)
    # Published, but the aliases still name version 1.
    publish(registry.promote(2, publish=tmp_path / "elsewhere", judge=None).published, store, info={"version": "2"})
    client = client_of(registry.uri)
    client.set_registered_model_alias("doorstep", "champion", "1")
    client.delete_registered_model_alias("doorstep", "previous")

    registry.promote(2, publish=store, judge=None)
    assert aliases(registry) == {"champion": 2, "previous": 1, "challenger": 3}
    assert served(store) == "2"
    assert registry.rollback(publish=store).version == 1


def test_the_alias_set_by_hand_counts_and_deleted_versions_are_passed_over(registry, tmp_path) -> None:
    for number in (1, 2):
        registry.promote(number, judge=None)
    client = client_of(registry.uri)
    client.set_registered_model_alias("doorstep", "champion", "3")
    client.delete_model_version("doorstep", "2")

    assert registry.rollback(publish=tmp_path / "deploy").version == 1


def test_a_bundle_that_was_changed_in_the_store_is_refused_and_nothing_moves(results, empty, tmp_path) -> None:
    shutil.copy(empty, tmp_path)
    registry, store = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}"), tmp_path / "deploy"
    for result in results[:2]:
        registry.log(result)
    registry.promote(1, publish=store, judge=None)
    version = client_of(registry.uri).get_model_version("doorstep", "2")
    (tampered,) = Path(version.source.removeprefix("file://")).glob("data/bundle/models/late.txt")
    tampered.write_text(tampered.read_text().replace("tree", "twig", 1))

    with pytest.raises(RegistryError, match=r"version 2 at .*late\.txt: checksum differs"):
        registry.promote(2, publish=store, judge=None)
    assert aliases(registry) == {"champion": 1, "challenger": 2}
    assert served(store) == "1"

    # A whole bundle in its place is refused too: it is not the one that was judged.
    shutil.rmtree(tampered.parents[1])
    shutil.copytree(results[2].bundle_dir, tampered.parents[1])
    with pytest.raises(RegistryError, match="replaced after training"):
        registry.promote(2, publish=store, judge=None)
    assert served(store) == "1"


def test_two_processes_that_promote_at_once_leave_registry_and_service_in_agreement(registry, tmp_path) -> None:
    store = tmp_path / "deploy"
    code = (
        "import sys; from training.registry import Registry; uri, store, *versions = sys.argv[1:]\n"
        "for v in versions: Registry(uri).promote(v, publish=store, judge=None)"
    )
    turns = [["1", "2"], ["3", "2", "3"]]
    running = [
        subprocess.Popen([sys.executable, "-c", code, registry.uri, str(store), *turn], env=ENVIRONMENT, cwd=tmp_path)
        for turn in turns
    ]
    assert [p.wait(timeout=120) for p in running] == [0, 0]

    now = aliases(registry)
    assert served(store) == str(now["champion"])
    assert now["champion"] != now["previous"]
    assert registry.rollback(publish=store).version == now["previous"]


def test_logging_that_fails_half_way_leaves_failed_runs_and_no_version(results, empty, tmp_path) -> None:
    shutil.copy(empty, tmp_path)
    broken = replace(results[2], targets=dict(results[2].targets))
    late = broken.targets["late"]
    broken.targets["late"] = replace(late, contributions=late.contributions[:, :3])
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")

    with pytest.raises(ValueError, match="give one contribution for each value"):
        registry.log(broken)
    client = client_of(registry.uri)
    runs = client.search_runs([client.get_experiment_by_name("doorstep").experiment_id])
    assert {r.info.status for r in runs} == {"FAILED"}
    assert registry.models() == []


def test_logging_writes_nothing_elsewhere_and_says_nothing(results, tmp_path, monkeypatch, capfd) -> None:
    import mlflow

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before, said = mlflow.get_tracking_uri(), []
    registry = Registry(f"sqlite:///{tmp_path / 'there' / 'mlflow.db'}")
    assert not (tmp_path / "there").exists(), "asking for a registry makes nothing"
    assert registry.models() == []
    assert not (tmp_path / "there").exists(), "nor does looking into it"
    found = registry.log(results[2], progress=said.append)
    registry.promote(publish=tmp_path / "deploy", judge=None)

    assert list((tmp_path / "here").iterdir()) == []
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"mlflow.db", "artifacts"}
    assert mlflow.get_tracking_uri() == before
    assert capfd.readouterr() == ("", "")
    assert (found.version, found.champion) == (1, None)
    assert [line for line in said if line.startswith("late")]


def test_listing_has_what_a_person_needs_to_choose(registry) -> None:
    newest = registry.models()[0]

    assert newest["version"] == 3
    assert newest["dataset"] == "corner shop"
    assert newest["as_of"].startswith("2025-12-31")
    assert newest["simulated"] is True
    assert 0.5 < newest["auc"]["late"] < 1
    assert newest["targets"]["late"]["log_loss"].keys() == {"value", "low", "high"}
    assert newest["targets"]["damaged"]["not_trained"].startswith("3 mature")
    assert json.loads(json.dumps(registry.models())) == registry.models()


def test_the_model_card_says_what_was_judged_and_against_what(results) -> None:
    card = model_card(results[0])

    assert "Simulated data: no parcel of this dataset ever travelled" in card
    assert "## late: arrives late" in card
    assert "**Not trained:** 3 mature positives" in card
    figure = results[0].metrics["targets"]["late"]["metrics"]["auc"]
    assert f"| AUC (higher is better) | {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}] |" in card
    assert "against the base rate: AUC better, +" in card
    assert "| region: DE-NW | 90 | 30 | 0.7000 [0.6000, 0.8000] |" in card
    assert "Too few positives or negatives for figures: peak (3 of 40)." in card
    assert "17 parcels" in card
    assert "17 lines" in card
    assert "; and 60 lines too young to judge, one worth 0.70 of a mature one" in card
    assert "moved the log-odds of all by -0.12" in card
    assert "$" not in card
    assert "## returned" not in model_card(results[0], "late")
    with pytest.raises(CardError, match=r"model_card\.md\.tmpl: 'owner'; known names are as_of, "):
        model_card(results[0], template="$owner")


def test_a_long_card_is_cut_between_lines_and_says_so() -> None:
    assert note("# Card\n") == "# Card\n"
    card = "".join(f"| {i} | a line of a table |\n" for i in range(900))
    said = note(card)
    assert len(said) <= 8000
    kept, _, rest = said.partition("\n\n*The description ends here")
    assert card.startswith(f"{kept}\n") and "model_card.md" in rest


def test_the_address_comes_from_the_argument_then_the_environment_then_the_checkout(monkeypatch) -> None:
    monkeypatch.delenv("DOORSTEP_MLFLOW_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Registry().uri == f"sqlite:///{ROOT / 'mlflow' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert Registry().uri == "http://tracking:5000"
    monkeypatch.setenv("DOORSTEP_MLFLOW_URI", "http://doorstep:5000")
    assert Registry().uri == "http://doorstep:5000"
    assert Registry("http://given:5000").uri == "http://given:5000"


def test_what_cannot_be_done_says_where_and_what_to_do(registry, tmp_path, monkeypatch) -> None:
    with pytest.raises(RegistryError, match=r"version 9 is not at .*; there are 1, 2, 3"):
        registry.promote(9, judge=None)
    with pytest.raises(RegistryError, match=r"version 'newest': give a number"):
        registry.promote("newest", judge=None)
    with pytest.raises(RegistryError, match=r"nothing to roll back to at .*: no version was ever promoted"):
        registry.rollback()
    registry.promote(judge=None)
    with pytest.raises(RegistryError, match=r"no challenger at .*; version 3 is champion: .* versions 1, 2, 3"):
        registry.promote(judge=None)

    empty = Registry(f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    with pytest.raises(RegistryError, match="train one with `doorstep train DATASET`"):
        empty.promote(judge=None)
    with pytest.raises(RegistryError, match="train one with"):
        empty.rollback()
    with pytest.raises(RegistryError, match="'models' is no address"):
        Registry("models")

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RegistryError, match=r"user:\*\*\*@.* does not answer: .*DOORSTEP_MLFLOW_URI"):
            Registry(nobody).models()
        with pytest.raises(RegistryError, match="does not answer") as caught:
            Registry(nobody).reach()
        assert str(caught.value).count("(") == str(caught.value).count(")")
    Registry(f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}").reach()
    assert not (tmp_path / "none").exists(), "asking makes nothing"


def test_a_bundle_damaged_before_logging_is_refused_before_anything_is_written(results, tmp_path) -> None:
    shutil.copytree(results[0].bundle_dir, tmp_path / "bundle")
    (tmp_path / "bundle" / "extra").write_text("x")
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")

    with pytest.raises(RegistryError, match="files differ from the manifest"):
        registry.log(replace(results[0], bundle_dir=tmp_path / "bundle"))
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_is_imported_only_when_it_is_used_and_only_here() -> None:
    code = "import sys, training.registry; sys.exit(any(m in sys.modules for m in ('mlflow', 'matplotlib', 'shap')))"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0

    import mlflow

    assert "site-packages" in mlflow.__file__
    users = [
        str(p.relative_to(ROOT))
        for package in ("features", "serving", "training")
        for p in sorted((ROOT / package).rglob("*.py"))
        if "import mlflow" in p.read_text() or "from mlflow" in p.read_text()
    ]
    assert users
    assert all(name.startswith("training/registry") for name in users), users


def test_the_folder_named_like_the_library_holds_no_python_and_names_no_index() -> None:
    files = [p for p in (ROOT / "mlflow").iterdir() if p.is_file() and p.suffix != ".db"]

    assert {p.name for p in files} == {"README.md", "compose.yaml", "gate.toml", "model_card.md.tmpl", "server.env"}
    for path in files:
        assert "index-url" not in path.read_text()


def test_the_compose_file_keeps_to_this_machine_and_to_a_driver_for_its_database() -> None:
    import yaml

    services = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text())["services"]
    tracking = services["mlflow"]

    assert all(port.startswith("127.0.0.1:") for port in tracking["ports"])
    assert "ports" not in services["database"]
    assert "psycopg" in tracking["build"]["dockerfile_inline"]
    assert any(part.startswith("--backend-store-uri=postgresql+psycopg://") for part in tracking["command"])
    settings = (ROOT / "mlflow" / tracking["env_file"]).read_text().splitlines()
    assert {"MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"} <= set(settings)
