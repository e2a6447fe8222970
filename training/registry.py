"""Runs, model versions and the champion, kept in MLflow. The only module that imports it.

A training becomes one parent run with a child run per target, and its bundle becomes one version of the registered
model `doorstep`. Three aliases say what a version is for:

| alias | the version that |
|---|---|
| `challenger` | was trained last and waits to be promoted |
| `champion` | is meant to be served |
| `previous` | was champion before, and is what `rollback` returns to |

Everything goes through an `MlflowClient` with an explicit address: no global tracking URI is set, no folder is made and
nothing is imported before it is needed. Promotion downloads files and verifies their checksums; it never loads a model,
because loading one from a store runs what the store says.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import string
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from features.files import ArtefactError, digest_of, verify
from features.vocabulary import TARGETS
from serving.store import publish as publish_directory
from training.evaluate import METRICS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from training.pipeline import TargetReport, TrainingResult

__all__ = ["Logged", "Promoted", "Registry", "RegistryError", "model_card"]

MODEL = "doorstep"
EXPERIMENT = "doorstep"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
HEADLINE = ("auc", "average_precision", "log_loss", "calibration_error")
PLOT_ROWS = 1000
EXAMPLE_ROWS = 5

_ROOT = Path(__file__).resolve().parent.parent
_HISTORY = "doorstep.champions"
_REMEMBERED = 50
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    # A server that does not answer is reported within two minutes, not after more than a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

Progress = Callable[[str], None]


class RegistryError(ValueError):
    """The registry cannot do what was asked; the message says where, what was found and what to do."""


@dataclass(frozen=True)
class Logged:
    """What `Registry.log` wrote.

    Attributes:
        run_id: the parent run.
        version: of the registered model, now `challenger`.
        champion: the version that stays champion, `None` if there is none yet.
        uri: where it was written, without a password.
    """

    run_id: str
    version: int
    champion: int | None
    uri: str


@dataclass(frozen=True)
class Promoted:
    """What became champion.

    Attributes:
        version: the champion now.
        previous: the champion before, `None` if there was none or it is the same.
        bundle: digest of the bundle's manifest.
        published: directory a running service reads, `None` if it was not to be published.
    """

    version: int
    previous: int | None
    bundle: str
    published: Path | None

    def __str__(self) -> str:
        was = f" (before: version {self.previous})" if self.previous is not None else ""
        where = f", published in {self.published}" if self.published else ", not published"
        return f"version {self.version} is {CHAMPION}{was}: bundle {self.bundle[:12]}{where}"

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self) | {"published": str(self.published) if self.published else None}


class Registry:
    """The model registry at one address.

    Args:
        uri: `http(s)://...` of a server, or `sqlite:///...` / `postgresql://...`. Default: `DOORSTEP_MLFLOW_URI`, else
            `MLFLOW_TRACKING_URI`, else SQLite in the checkout's `mlflow/` (the working directory's, where Doorstep is
            installed without one). Nothing is created or contacted before it is used.

    Attributes:
        uri: the address in use.
        where: the same for people, without a password.
    """

    def __init__(self, uri: str | None = None) -> None:
        given = uri or os.environ.get("DOORSTEP_MLFLOW_URI") or os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or f"sqlite:///{_home() / 'mlflow.db'}"
        self.where = re.sub(r"(://[^:/@]+):[^@]*@", r"\1:***@", self.uri)
        if "://" not in self.uri:
            raise RegistryError(
                f"{self.where!r} is no address of a model registry: give http://HOST:PORT of an MLflow server, "
                "or sqlite:///FILE"
            )
        self._file: Path | None = None
        if self.uri.startswith("sqlite:///"):
            self._file = Path(self.uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        self._artifacts = (self._file.parent if self._file else _home()) / "artifacts"

    def log(self, result: TrainingResult, *, progress: Progress | None = None) -> Logged:
        """Write one training: a parent run, a child run per target, and the bundle as the new `challenger`.

        The version is registered last, so what stops half-way leaves runs marked as failed and no version.

        Args:
            result: what `training.pipeline.train` returned, with its bundle still in place.
            progress: told what is being done.

        Raises:
            RegistryError: the registry does not answer or refuses, or the bundle on disk is not whole.
        """
        say = progress or (lambda _: None)
        digest = _verified(result.bundle_dir)
        template = _template()
        with self._client() as client:
            say(f"writing runs to {self.where}")
            experiment = self._experiment(client)
            as_of, holdout_from = result.as_of.isoformat(), result.holdout_from.isoformat()
            common = {
                "dataset": result.dataset_name,
                "dataset_fingerprint": result.dataset_fingerprint,
                "as_of": as_of,
                "holdout_from": holdout_from,
                "simulated": str(result.simulated).lower(),
                "bundle": digest[:12],
                "doorstep_version": _own_version(),
            }
            name = f"{result.dataset_name} as of {result.as_of:%Y-%m-%d}"
            with _run(client, experiment, name, common) as parent:
                documents = result.metrics["targets"]
                _batch(
                    client,
                    parent,
                    params={"seed": result.seed, "as_of": as_of, "holdout_from": holdout_from},
                    metrics={
                        f"{target}_{metric}{bound}": value
                        for target, document in documents.items()
                        for metric in HEADLINE
                        for bound, value in _bounds(document["metrics"].get(metric))
                    },
                    tags={f"status.{target}": report.status for target, report in result.targets.items()},
                )
                client.log_dict(parent, result.metrics, "metrics.json")
                client.log_dict(parent, result.settings.to_json(), "settings.json")
                card = model_card(result, template=template)
                client.log_text(parent, card, "model_card.md")
                client.set_tag(parent, "mlflow.note.content", card[:7900])
                self._log_dataset(client, parent, result)
                for target, report in result.targets.items():
                    say(f"{target}: figures and plots")
                    child_tags = {**common, "mlflow.parentRunId": parent}
                    with _run(client, experiment, target, child_tags) as child:
                        _log_target(client, child, result, target, report, template)
                say("registering the bundle")
                found = self._register(client, experiment, parent, result, digest, common)
            champion = self._aliases(client).get(CHAMPION)
        return Logged(parent, found, champion, self.where)

    def models(self) -> list[dict[str, Any]]:
        """Return the registered versions, newest first.

        Returns:
            Per version `version`, `aliases`, `created` (UTC, ISO 8601), `dataset`, `as_of`, `holdout_from`,
            `simulated`, `bundle`, `run_id`, `auc` (`{target: value}`) and `targets`: `{target: {metric: {"value",
            "low", "high"}}}` of the headline metrics, `{"not_trained": why}` for the others. Empty where nothing was
            logged yet.

        Raises:
            RegistryError: the registry does not answer.
        """
        if self._absent():
            return []
        with self._client() as client:
            aliases = self._aliases(client)
            return [_listing(v, aliases) for v in self._versions(client)]

    def promote(self, version: int | str | None = None, *, publish: Path | str | None = None) -> Promoted:
        """Make a version the champion, and publish its bundle to where a running service takes it up.

        Downloads and verifies first, publishes second, records third. Whatever stops it in between, doing it again
        ends in the same state; two at a time on one machine wait for each other.

        Args:
            version: which; default the challenger.
            publish: store directory of the service, see `serving.store`; `None` only records.

        Raises:
            RegistryError: no such version, no challenger, a damaged bundle, or the registry does not answer.
        """
        if version is not None and not str(version).isdecimal():
            raise RegistryError(f"version {version!r}: give a number, as `doorstep models` lists them")
        with self._changing(publish) as client:
            aliases = self._aliases(client)
            known = {int(v.version): v for v in self._versions(client)}
            if not known:
                raise RegistryError(f"no version of {MODEL} at {self.where}: train one with `doorstep train DATASET`")
            chosen = int(version) if version is not None else aliases.get(CHALLENGER)
            if chosen is None:
                now = f"; version {aliases[CHAMPION]} is champion" if CHAMPION in aliases else ""
                raise RegistryError(
                    f"no {CHALLENGER} at {self.where}{now}: train one with `doorstep train DATASET`, or name one "
                    f"of the versions {_listed(known)}"
                )
            if chosen not in known:
                raise RegistryError(f"version {chosen} is not at {self.where}; there are {_listed(known)}")
            history = self._history(client, aliases, known)
            if not history or history[-1] != chosen:
                history = [*history, chosen]
            return self._install(client, known[chosen], history, aliases, publish)

    def rollback(self, *, publish: Path | str | None = None) -> Promoted:
        """Make the champion before this one champion again, and publish its bundle.

        Doing it again goes one further back. In the same order as `promote`, and as safe to repeat after a stop.

        Args:
            publish: as in `promote`.

        Raises:
            RegistryError: there is no champion, or none before it; otherwise as in `promote`.
        """
        with self._changing(publish) as client:
            aliases = self._aliases(client)
            known = {int(v.version): v for v in self._versions(client)}
            history = self._history(client, aliases, known)
            if len(history) < 2:
                now = f"version {history[0]} is the first champion" if history else "no version was ever promoted"
                raise RegistryError(
                    f"nothing to roll back to at {self.where}: {now}. `doorstep models` lists the versions, "
                    "`doorstep promote VERSION` takes any of them"
                )
            return self._install(client, known[history[-2]], history[:-1], aliases, publish)

    def _install(
        self,
        client: MlflowClient,
        chosen: ModelVersion,
        history: list[int],
        aliases: dict[str, int],
        publish: Path | str | None,
    ) -> Promoted:
        number, before = int(chosen.version), aliases.get(CHAMPION)
        with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
            bundle = self._download(client, chosen, Path(scratch))
            digest = digest_of(bundle)
            published = None
            if publish is not None:
                info = {
                    "version": str(number),
                    "dataset": chosen.tags.get("dataset", ""),
                    "as_of": chosen.tags.get("as_of", ""),
                    "published_at": pd.Timestamp.now("UTC").isoformat(timespec="seconds"),
                }
                published = publish_directory(bundle, Path(publish), info=info)
        client.set_registered_model_alias(MODEL, CHAMPION, str(number))
        client.set_registered_model_tag(MODEL, _HISTORY, json.dumps(history[-_REMEMBERED:]))
        if len(history) > 1:
            client.set_registered_model_alias(MODEL, PREVIOUS, str(history[-2]))
        elif PREVIOUS in aliases:
            client.delete_registered_model_alias(MODEL, PREVIOUS)
        if aliases.get(CHALLENGER) == number:
            client.delete_registered_model_alias(MODEL, CHALLENGER)
        return Promoted(number, before if before != number else None, digest, published)

    def _download(self, client: MlflowClient, chosen: ModelVersion, scratch: Path) -> Path:
        """Fetch the files of a version's bundle and verify them; nothing of them is executed."""
        from mlflow.artifacts import download_artifacts

        number = int(chosen.version)
        uri = client.get_model_version_download_uri(MODEL, str(number))
        what = f"version {number} at {self.where}"
        try:
            root = Path(download_artifacts(artifact_uri=uri, dst_path=str(scratch), tracking_uri=self.uri))
        except OSError as error:
            raise RegistryError(f"{what}: its files cannot be fetched ({error}); promote another version") from None
        bundles = [m.parent for m in sorted(root.glob("data/*/manifest.json"))]
        if len(bundles) != 1:
            raise RegistryError(f"{what}: holds {len(bundles)} bundles where 1 is expected; promote another version")
        digest = _verified(bundles[0], what)
        expected = chosen.tags.get("bundle_digest")
        if digest != expected:
            raise RegistryError(
                f"{what}: its bundle is {digest[:12]}, registered was {str(expected)[:12]}; it was replaced after "
                "training. Train again or promote another version"
            )
        return bundles[0]

    def _register(
        self,
        client: MlflowClient,
        experiment: str,
        run: str,
        result: TrainingResult,
        digest: str,
        tags: dict[str, str],
    ) -> int:
        """Save the bundle as a pyfunc model without code or pickle, and make it the newest version."""
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model

        logged = client.create_logged_model(experiment, name=MODEL, source_run_id=run, tags=tags, model_type="bundle")
        try:
            with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
                folder = Path(scratch) / "model"
                mlflow.pyfunc.save_model(
                    str(folder),
                    loader_module="serving.bundle",
                    data_path=str(result.bundle_dir),
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        run_id=run,
                        model_id=logged.model_id,
                        model_uuid=logged.model_id,
                    ),
                    signature=_signature(result),
                    input_example=_example(result),
                    pip_requirements=_requirements(),
                )
                client.log_model_artifacts(logged.model_id, str(folder))
        except BaseException:
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
        try:
            client.create_registered_model(MODEL, description="Doorstep's bundles: every model of one training")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.create_model_version(
            MODEL,
            # Not `models:/ID`: a database store would look that up at the global address instead of this client's.
            source=logged.artifact_location,
            run_id=run,
            model_id=logged.model_id,
            tags={**tags, "bundle_digest": digest, "targets": json.dumps(_headlines(result.metrics["targets"]))},
            description=_summary(result),
            await_creation_for=60,
        )
        link = [{"name": MODEL, "version": found.version}]
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": json.dumps(link)})
        # Two trainings that end together: the higher number is the newer one and keeps the alias.
        current = self._aliases(client).get(CHALLENGER)
        if current is None or current < int(found.version):
            client.set_registered_model_alias(MODEL, CHALLENGER, str(found.version))
        return int(found.version)

    def _log_dataset(self, client: MlflowClient, run: str, result: TrainingResult) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {t: d["train"]["rows"] for t, d in result.metrics["targets"].items()}
        dataset = Dataset(
            name=result.dataset_name,
            digest=result.dataset_fingerprint[:32],
            source_type="doorstep",
            source=json.dumps({"fingerprint": result.dataset_fingerprint}),
            profile=json.dumps({"training rows": profile}),
        )
        client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            # A server knows where its artefacts go; a database alone does not.
            place = None if self.uri.startswith("http") else self._artifacts.as_uri()
            try:
                return str(client.create_experiment(EXPERIMENT, artifact_location=place))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(EXPERIMENT)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(
                f"the experiment {EXPERIMENT!r} at {self.where} was deleted: restore it in MLflow, or use another "
                "address"
            )
        return str(found.experiment_id)

    def _versions(self, client: MlflowClient) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token = None
        while True:
            page = client.search_model_versions(f"name='{MODEL}'", max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda v: -int(v.version))

    def _registered(self, client: MlflowClient) -> Any:
        found = client.search_registered_models(f"name='{MODEL}'")
        return found[0] if found else None

    def _aliases(self, client: MlflowClient) -> dict[str, int]:
        model = self._registered(client)
        return {a: int(v) for a, v in model.aliases.items()} if model else {}

    def _history(self, client: MlflowClient, aliases: dict[str, int], known: dict[int, ModelVersion]) -> list[int]:
        """Return the champions in the order of promotion, ending with the current one; deleted versions are left out.

        The alias is the truth and the tag its memory: what the tag has after the current champion was never finished.
        """
        model = self._registered(client)
        try:
            remembered = [int(v) for v in json.loads(model.tags.get(_HISTORY, "[]"))] if model else []
        except (ValueError, TypeError):
            remembered = []
        champion = aliases.get(CHAMPION)
        if champion is None:
            return []
        if champion in remembered:
            last = len(remembered) - remembered[::-1].index(champion)
            remembered = remembered[:last]
        else:
            remembered.append(champion)
        kept: list[int] = []
        for number in remembered:
            if number in known and (not kept or kept[-1] != number):
                kept.append(number)
        return kept

    def _absent(self) -> bool:
        """Whether the registry is a SQLite file that nobody made yet; asking must not make it."""
        return self._file is not None and not self._file.exists()

    @contextmanager
    def _changing(self, publish: Path | str | None) -> Iterator[MlflowClient]:
        """Give a client, one change at a time per database and per store directory on this machine."""
        if self._absent():
            raise RegistryError(f"no version of {MODEL} at {self.where}: train one with `doorstep train DATASET`")
        with ExitStack() as stack:
            if self._file is not None:
                stack.enter_context(_locked(self._artifacts / ".registry.lock"))
            if publish is not None:
                stack.enter_context(_locked(Path(publish) / ".registry.lock"))
            yield stack.enter_context(self._client())

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """Give a client and turn what goes wrong while it is used into sentences."""
        for key, value in _SETTINGS.items():
            os.environ.setdefault(key, value)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), _quiet("mlflow", "alembic"):
            # What these libraries deprecate of each other is nothing a user of Doorstep can mend.
            warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|alembic|pydantic)\b")
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            try:
                yield MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            except MlflowException as error:
                raise RegistryError(_explained(self.where, error)) from error
            except ImportError as error:
                raise RegistryError(
                    f"{self.where}: a driver is missing ({error}): install it, for PostgreSQL with Doorstep's extra "
                    "`postgres`, or give the address of an MLflow server"
                ) from error


def _listing(found: ModelVersion, aliases: dict[str, int]) -> dict[str, Any]:
    number = int(found.version)
    targets = json.loads(found.tags.get("targets", "{}"))
    aucs = {name: figures.get("auc", {}).get("value") for name, figures in targets.items()}
    return {
        "version": number,
        "aliases": sorted(a for a, v in aliases.items() if v == number),
        "created": pd.Timestamp(found.creation_timestamp, unit="ms", tz="UTC").isoformat(timespec="seconds"),
        **{k: found.tags.get(k, "") for k in ("dataset", "as_of", "holdout_from", "bundle")},
        "simulated": found.tags.get("simulated") == "true",
        "run_id": found.run_id,
        "auc": {name: value for name, value in aucs.items() if value is not None},
        "targets": targets,
    }


def model_card(result: TrainingResult, target: str | None = None, *, template: str | None = None) -> str:
    """Return the model card in Markdown.

    Args:
        result: the training.
        target: only this target's part; default all.
        template: text with `$names` and one block between `[[target]]` and `[[/target]]` that is repeated per target;
            default `mlflow/model_card.md.tmpl`.

    Raises:
        RegistryError: the template is not there, or names something that does not exist.
    """
    text = _template() if template is None else template
    head, _, rest = text.partition("[[target]]\n")
    block, _, tail = rest.partition("[[/target]]\n")
    chosen = [target] if target else list(result.targets)
    digest = digest_of(result.bundle_dir)
    general = {
        "dataset": result.dataset_name,
        "fingerprint": result.dataset_fingerprint,
        "as_of": f"{result.as_of:%Y-%m-%d %H:%M %Z}",
        "holdout_from": f"{result.holdout_from:%Y-%m-%d %H:%M %Z}",
        "bundle": digest[:12],
        "seed": result.seed,
        "version": _own_version(),
        "simulated": "**Simulated data: no parcel of this dataset ever travelled.**\n\n" if result.simulated else "",
        "summary": _summary(result),
    }
    try:
        parts = [string.Template(head).substitute(general)]
        parts += [string.Template(block).substitute(general | _card_of(result, name)) for name in chosen]
        parts.append(string.Template(tail).substitute(general))
    except (KeyError, ValueError) as error:
        raise RegistryError(f"model_card.md.tmpl: {error}; known names are {', '.join(sorted(general))}") from None
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip() + "\n"


def _card_of(result: TrainingResult, name: str) -> dict[str, Any]:
    report, document = result.targets[name], result.metrics["targets"][name]
    unit = f"{report.unit}s"
    train, holdout = document["train"], document["holdout"]
    lines: list[str] = []
    if report.status == "trained":
        rivals = document["baselines"]
        lines += [
            "| | model | " + " | ".join(b.replace("_", " ") for b in rivals) + " |",
            "|---|---|" + "---|" * len(rivals),
        ]
        for key, metric in METRICS.items():
            cells = [_cell(document["metrics"].get(key)), *(_cell(b.get(key)) for b in rivals.values())]
            arrow = "higher is better" if metric.higher_is_better else "lower is better"
            lines.append(f"| {metric.words} ({arrow}) | " + " | ".join(cells) + " |")
        lines += ["", *_verdicts(document), ""]
        lines += [f"- {b.replace('_', ' ')}: {note}" for b, note in report.baseline_notes.items()]
    else:
        lines.append(f"**Not trained:** {report.why}")
    return {
        "target": name,
        "words": TARGETS[name].words,
        "positive": TARGETS[name].positive,
        "unit": report.unit,
        "status": report.status.replace("_", " "),
        "maturity": report.maturity,
        "excluded": f"{report.excluded_immature:,} {unit}",
        "train": f"{train['rows']:,} {unit}, {train['positives']:,} positive",
        "holdout": f"{holdout['rows']:,} {unit}, {holdout['positives']:,} positive",
        "figures": "\n".join(lines),
        "features": f"{len(report.features)}" if report.features else "none",
    }


def _verdicts(document: dict[str, Any]) -> list[str]:
    """Say for each baseline whether the model beats it, and what by, with the interval of the paired difference."""
    said = []
    for rival, differences in document.get("against_baselines", {}).items():
        parts = []
        for key in ("auc", "log_loss"):
            found = differences.get(key, {})
            if found.get("low") is None:
                parts.append(f"{METRICS[key].words}: cannot be compared ({found.get('why', 'no figures')})")
                continue
            size = f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
            word = {"better": "better", "worse": "**worse**", "undecided": "**not told apart**"}[found["verdict"]]
            parts.append(f"{METRICS[key].words} {word}, {size}")
        said.append(f"- against the {rival.replace('_', ' ')}: " + "; ".join(parts))
    return said


def _cell(found: dict[str, Any] | None) -> str:
    if not found or found.get("value") is None:
        return "–"
    if found.get("low") is None:
        return f"{found['value']:.4f}"
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _summary(result: TrainingResult) -> str:
    """Return a few lines for the version's description: each target with its AUC, or why there is none."""
    lines = []
    for name, report in result.targets.items():
        auc = result.metrics["targets"][name]["metrics"].get("auc")
        lines.append(
            f"- {name}: " + (f"AUC {_cell(auc)}" if report.status == "trained" else f"not trained: {report.why}")
        )
    return "\n".join(lines)


def _headlines(documents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for target, document in documents.items():
        if document["status"] != "trained":
            found[target] = {"not_trained": document["why"]}
            continue
        found[target] = {
            name: {k: None if v is None else round(v, 6) for k, v in document["metrics"][name].items() if k != "why"}
            for name in HEADLINE
        }
    return found


def _log_target(
    client: MlflowClient, run: str, result: TrainingResult, target: str, report: TargetReport, template: str
) -> None:
    from training.plots import calibration_plot, shap_plot

    document = result.metrics["targets"][target]
    metrics: dict[str, float] = {"excluded_immature": report.excluded_immature}
    for part in ("train", "holdout"):
        metrics |= {f"{part}_{k}": document[part][k] for k in ("rows", "positives")}
    sources = [("", document["metrics"]), *((f"{b}_", found) for b, found in document["baselines"].items())]
    for prefix, figures in sources:
        for name, found in figures.items():
            metrics |= {f"{prefix}{name}{bound}": value for bound, value in _bounds(found)}
    for rival, differences in document.get("against_baselines", {}).items():
        for name, found in differences.items():
            metrics |= {f"minus_{rival}_{name}{bound}": value for bound, value in _bounds(found, "difference")}
    _batch(
        client,
        run,
        params={**report.params, "seed": result.seed, "features": len(report.features)},
        metrics=metrics,
        tags={
            "status": report.status,
            "why": report.why,
            "unit": report.unit,
            "maturity_rule": report.maturity,
            **{f"baseline.{name}": note for name, note in report.baseline_notes.items()},
            **{
                f"against.{rival}": found["log_loss"]["verdict"]
                for rival, found in document.get("against_baselines", {}).items()
            },
        },
    )
    client.log_text(run, model_card(result, target, template=template), "model_card.md")
    client.log_dict(run, document, "metrics.json")
    if report.features:
        client.log_dict(run, {"features": report.features}, "features.json")
    with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
        unit, simulated = report.unit, result.simulated
        if report.holdout is not None and len(report.holdout):
            label, probability = report.holdout["label"], report.holdout["probability"]
            png = calibration_plot(target, label, probability, groups=report.groups, unit=unit, simulated=simulated)
            _send(client, run, Path(scratch) / "calibration.png", png)
        if report.sample is not None and report.contributions is not None and len(report.sample):
            # shap draws dot by dot in Python: beyond a thousand rows it gets slow and no clearer.
            keep = np.linspace(0, len(report.sample) - 1, min(PLOT_ROWS, len(report.sample))).astype(np.int64)
            png = shap_plot(
                target, report.contributions[keep], report.sample.iloc[keep], unit=unit, simulated=simulated
            )
            _send(client, run, Path(scratch) / "shap_summary.png", png)


def _send(client: MlflowClient, run: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    client.log_artifact(run, str(path), "plots")


def _bounds(found: dict[str, Any] | None, key: str = "value") -> Iterator[tuple[str, float]]:
    """Give the figure and its bounds as suffix and number; what does not exist is left out."""
    for suffix, part in (("", key), ("_low", "low"), ("_high", "high")):
        value = (found or {}).get(part)
        if value is not None and np.isfinite(value):
            yield suffix, float(value)


def _batch(
    client: MlflowClient, run: str, *, params: dict[str, Any], metrics: dict[str, float], tags: dict[str, Any]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    client.log_batch(
        run,
        metrics=[Metric(k, float(v), now, 0) for k, v in metrics.items()],
        params=[Param(k, str(v)) for k, v in params.items()],
        tags=[RunTag(k, str(v)[:7900]) for k, v in tags.items() if v != ""],
    )


@contextmanager
def _run(client: MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> Iterator[str]:
    """Open a run and close it with what became of it."""
    run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    try:
        yield run
    except BaseException as error:
        client.set_terminated(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run, "FINISHED")


def _signature(result: TrainingResult) -> Any:
    """Every feature of every target, each optional: a frame of parcels has no columns of order lines."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    trained = {name: r for name, r in result.targets.items() if r.status == "trained"}
    columns = dict.fromkeys(f for r in trained.values() for f in r.features)
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.double, name, required=False) for name in columns]),
        outputs=Schema([ColSpec(DataType.double, name, required=False) for name in trained]),
    )


def _example(result: TrainingResult) -> pd.DataFrame | None:
    """A few rows of the holdout: those of the target that reads most features."""
    samples = [r.sample for r in result.targets.values() if r.sample is not None and len(r.sample)]
    if not samples:
        return None
    widest = max(samples, key=lambda s: s.shape[1])
    return widest.head(EXAMPLE_ROWS).astype(np.float64).reset_index(drop=True)


def _requirements() -> list[str]:
    """What reading a bundle needs besides Doorstep itself, which is on no index: it has to be installed beside it."""
    return [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "pandas", "pyarrow")]


def _own_version() -> str:
    try:
        return version("doorstep")
    except PackageNotFoundError:
        return "unknown"


def _verified(bundle: Path, what: str = "") -> str:
    """Return a bundle's digest after checking every file of it."""
    from serving.bundle import KIND, MAKE, PROTOCOL

    try:
        verify(bundle, KIND, PROTOCOL, MAKE)
    except ArtefactError as error:
        raise RegistryError(f"{what}: {error}" if what else str(error)) from None
    return digest_of(bundle)


def _home() -> Path:
    """The folder `mlflow/` of the checkout, else of the working directory."""
    return (_ROOT if (_ROOT / "pyproject.toml").is_file() else Path.cwd()) / "mlflow"


def _template() -> str:
    path = _home() / "model_card.md.tmpl"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RegistryError(f"{path} is missing: run from a checkout of Doorstep, or put a template there") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let loggers tell what went wrong and not what went as usual; `MLFLOW_LOGGING_LEVEL` asks for more."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _listed(known: dict[int, Any]) -> str:
    numbers = sorted(known)
    return ", ".join(map(str, numbers)) if len(numbers) <= 10 else f"{numbers[0]} to {numbers[-1]}"


def _explained(where: str, error: Exception) -> str:
    text = str(error)
    silent = r"Max retries|Connection refused|Connection aborted|timed out|Failed to establish|OperationalError"
    if re.search(silent, text):
        cause = re.search(r"Caused by \w+\((.*)\)", text, re.DOTALL)
        return (
            f"the model registry at {where} does not answer: check the address (--mlflow-uri, DOORSTEP_MLFLOW_URI) and "
            f"that the server runs. It said: {_short(cause[1] if cause else text)}"
        )
    return f"the model registry at {where} refused: {_short(text)}"


def _short(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."
