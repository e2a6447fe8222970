"""Runs, model versions and the champion, kept in MLflow. This package alone imports it.

A training becomes one parent run with a child run per target, and its bundle becomes one version of the registered
model `doorstep`. Three aliases say what a version is for:

| alias | the version that |
|---|---|
| `challenger` | was trained last and waits to be promoted |
| `champion` | is meant to be served |
| `previous` | was champion before, and is what `rollback` returns to |

Everything goes through an `MlflowClient` with an explicit address: no global tracking URI is set, no folder is made and
nothing is imported before it is needed. Promotion downloads files and verifies their checksums; models are loaded by
`Bundle.load` alone, which reads data, because MLflow's own loading of one from a store runs what the store says.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from features.files import ArtefactError, digest_of, verify
from serving.store import publish as publish_directory
from training.evaluate.card import card_template, model_card, note, own_version, summary
from training.evaluate.evaluation_set import FOLDER as EVALUATION
from training.evaluate.gate import Candidate, Decision, Judge
from training.registry.runs import (
    HEADLINE,
    batch,
    bounds,
    example,
    headlines,
    log_dataset,
    log_target,
    log_windows,
    open_run,
    requirements,
    signature,
    window_metrics,
)
from training.registry.session import Run
from training.registry.store import RegistryError, Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from training.pipeline import TrainingResult

__all__ = ["Logged", "Promoted", "Refused", "Registry", "RegistryError"]

MODEL = "doorstep"
EXPERIMENT = "doorstep"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

_HISTORY = "doorstep.champions"
_REMEMBERED = 50
Progress = Callable[[str], None]


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
        decision: what the gate said, `None` if there was none to pass.
        forced: whether it was promoted although the gate refused.
    """

    version: int
    previous: int | None
    bundle: str
    published: Path | None
    decision: Decision | None = None
    forced: bool = False

    def __str__(self) -> str:
        how = ""
        if self.forced:
            how = ", forced: the gate refused it"
        elif self.previous is None and self.decision is None:
            how = ", compared with nothing: there was no other champion"
        was = f" (before: version {self.previous})" if self.previous is not None else ""
        where = f", published in {self.published}" if self.published else ", not published"
        return f"version {self.version} is {CHAMPION}{was}: bundle {self.bundle[:12]}{where}{how}"

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "version": self.version,
            "previous": self.previous,
            "bundle": self.bundle,
            "published": str(self.published) if self.published else None,
            "forced": self.forced,
            "gate": self.decision.to_dict() if self.decision else None,
        }


class Refused(RegistryError):
    """A challenger did not pass the gate; nothing was changed.

    Attributes:
        decision: what the gate said.
    """

    exit_code = 1

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        mend = "Mend the training and promote again; " if decision.against else ""
        super().__init__(
            f"not promoted: {decision.why}\nAll figures are in the run's folder gate, and --dry-run prints them. "
            f"{mend}--force promotes all the same, and is recorded"
        )


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
        self._store = Store(uri)
        self.uri, self.where = self._store.uri, self._store.where

    def reach(self) -> None:
        """Ask whether it answers, before long work is done for it. A file on this machine is not asked: it is there.

        Raises:
            RegistryError: it does not answer.
        """
        if not self._store.local:
            with self._store.client() as client:
                client.get_experiment_by_name(EXPERIMENT)

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
        template = card_template()
        with self._store.client() as client:
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
                "doorstep_version": own_version(),
            }
            name = f"{result.dataset_name} as of {result.as_of:%Y-%m-%d}"
            with open_run(client, experiment, name, common) as parent:
                documents = result.metrics["targets"]
                batch(
                    client,
                    parent,
                    params={"seed": result.seed, "as_of": as_of, "holdout_from": holdout_from}
                    | ({"params": result.metrics["params"]["source"]} if "params" in result.metrics else {}),
                    metrics={
                        f"{target}_{metric}{bound}": value
                        for target, document in documents.items()
                        for metric in HEADLINE
                        for bound, value in bounds(document["metrics"].get(metric))
                    }
                    | window_metrics(result.metrics.get("time_to_door", {})),
                    tags={f"status.{target}": report.status for target, report in result.targets.items()},
                )
                client.log_dict(parent, result.metrics, "metrics.json")
                client.log_dict(parent, result.settings.to_json(), "settings.json")
                common |= self._log_evaluation(client, parent, result)
                card = model_card(result, template=template)
                client.log_text(parent, card, "model_card.md")
                client.set_tag(parent, "mlflow.note.content", note(card))
                log_dataset(client, parent, result)
                log_windows(client, parent, result)
                for target, report in result.targets.items():
                    say(f"{target}: figures and plots")
                    child_tags = {**common, "mlflow.parentRunId": parent}
                    with open_run(client, experiment, target, child_tags) as child:
                        log_target(client, child, result, target, report, template)
                say("registering the bundle")
                found = self._register(client, experiment, parent, result, digest, common)
            champion = self._aliases(client).get(CHAMPION)
        return Logged(parent, found, champion, self.where)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str], id: str = "", left: str = "FINISHED") -> Iterator[Run]:
        """Open a run that is no training (a backtest, a tuning); it is closed as finished, failed or killed.

        Args:
            name: of the run.
            tags: of the run; Doorstep's version is added.
            id: a run to go on with, if it is still there.
            left: what it is left as when all went well; `RUNNING` if more is to come.

        Raises:
            RegistryError: the registry does not answer or refuses, whenever something is written.
        """
        with self._store.client() as client:
            tags = {**tags, "doorstep_version": own_version()}
            with Run.opened(client, self._experiment(client), name, tags, id, left) as run:
                yield run

    def models(self) -> list[dict[str, Any]]:
        """Return the registered versions, newest first.

        Returns:
            Per version `version`, `aliases`, `created` (UTC, ISO 8601), `dataset`, `as_of`, `holdout_from`,
            `simulated`, `bundle`, `run_id`, `gate` (`passed`, `refused`, `forced`, or empty if it was never asked) and
            `gate_why`, `auc` (`{target: value}`) and `targets`: `{target: {metric: {"value", "low", "high"}}}` of the
            headline metrics, `{"not_trained": why}` for the others. Empty where nothing was logged yet.

        Raises:
            RegistryError: the registry does not answer.
        """
        if self._store.absent:
            return []
        with self._store.client() as client:
            aliases = self._aliases(client)
            return [_listing(v, aliases) for v in self._versions(client)]

    def promote(
        self,
        version: int | str | None = None,
        *,
        judge: Judge | None,
        publish: Path | str | None = None,
        force: bool = False,
    ) -> Promoted:
        """Make a version the champion, and publish its bundle to where a running service takes it up.

        Judges and verifies first, publishes second, records third. Whatever stops it in between, doing it again ends in
        the same state; two at a time on one machine wait for each other.

        Args:
            version: which; default the challenger.
            judge: says whether it may replace the champion, see `training.evaluate.gate`; `None` asks nobody. Nobody
                is asked where there is no champion yet, or it is the version itself.
            publish: store directory of the service, see `serving.store`; `None` only records.
            force: promote it whatever the judge says; what it said is recorded.

        Raises:
            Refused: the judge said no.
            RegistryError: no such version, no challenger, a damaged bundle, or the registry does not answer.
        """
        with self._changing(publish) as client:
            chosen, aliases, known = self._chosen(client, version)
            number, champion = int(chosen.version), aliases.get(CHAMPION)
            with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
                bundle = self._download(client, chosen, Path(scratch) / "challenger")
                decision = None
                if judge is not None and champion in known and champion != number:
                    decision = self._judged(client, chosen, bundle, known[champion], judge, Path(scratch))
                    self._record(client, chosen, decision, force)
                    if not (decision.passed or force):
                        raise Refused(decision)
                history = self._history(client, aliases, known)
                if not history or history[-1] != number:
                    history = [*history, number]
                done = self._install(client, chosen, bundle, history, aliases, publish)
            forced = decision is not None and not decision.passed
            return replace(done, decision=decision, forced=forced)

    def compare(self, version: int | str | None = None, *, judge: Judge) -> Decision | None:
        """What the judge says of a version and the champion. Nothing is changed, and nothing recorded.

        Args:
            version: as in `promote`.
            judge: as in `promote`.

        Returns:
            The decision; `None` where there is no champion, or it is the version itself.

        Raises:
            RegistryError: as in `promote`.
        """
        if self._store.absent:
            raise RegistryError(self._nothing())
        with self._store.client() as client, tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
            chosen, aliases, known = self._chosen(client, version)
            champion = aliases.get(CHAMPION)
            bundle = self._download(client, chosen, Path(scratch) / "challenger")
            if champion not in known or champion == int(chosen.version):
                return None
            return self._judged(client, chosen, bundle, known[champion], judge, Path(scratch))

    def _nothing(self) -> str:
        return f"no version of {MODEL} at {self.where}: train one with `doorstep train DATASET`"

    def _chosen(
        self, client: MlflowClient, version: int | str | None
    ) -> tuple[ModelVersion, dict[str, int], dict[int, ModelVersion]]:
        """The version that is asked for, the aliases, and all versions."""
        if version is not None and not str(version).isdecimal():
            raise RegistryError(f"version {version!r}: give a number, as `doorstep models` lists them")
        aliases = self._aliases(client)
        known = {int(v.version): v for v in self._versions(client)}
        if not known:
            raise RegistryError(self._nothing())
        chosen = int(version) if version is not None else aliases.get(CHALLENGER)
        if chosen is None:
            now = f"; version {aliases[CHAMPION]} is champion" if CHAMPION in aliases else ""
            raise RegistryError(
                f"no {CHALLENGER} at {self.where}{now}: train one with `doorstep train DATASET`, or name one "
                f"of the versions {_listed(known)}"
            )
        if chosen not in known:
            raise RegistryError(f"version {chosen} is not at {self.where}; there are {_listed(known)}")
        return known[chosen], aliases, known

    def _judged(
        self,
        client: MlflowClient,
        chosen: ModelVersion,
        bundle: Path,
        champion: ModelVersion,
        judge: Judge,
        scratch: Path,
    ) -> Decision:
        """Lay both versions before the judge, as far as they can be had."""
        try:
            evaluation, why = self._download_evaluation(client, chosen, scratch / "evaluation"), ""
        except RegistryError as error:
            evaluation, why = None, str(error)
        challenger = Candidate(int(chosen.version), bundle, evaluation, why)
        try:
            other = Candidate(int(champion.version), self._download(client, champion, scratch / "champion"))
        except RegistryError as error:
            other = Candidate(int(champion.version), None, why=str(error))
        return judge(challenger, other)

    def _record(self, client: MlflowClient, chosen: ModelVersion, decision: Decision, force: bool) -> None:
        """Keep a decision: whole in the challenger's run, in short in tags of the version."""
        verdict = "passed" if decision.passed else "forced" if force else "refused"
        at = pd.Timestamp.now("UTC")
        document = {"verdict": verdict, "at": at.isoformat(timespec="seconds"), **decision.to_dict()}
        if chosen.run_id:
            client.log_dict(chosen.run_id, document, f"gate/{at:%Y%m%dT%H%M%S%f}-{verdict}.json")
        said = {
            "gate": verdict,
            "gate.why": decision.why[:4900],
            "gate.champion": str(decision.champion),
            "gate.at": document["at"],
            "gate.rule": json.dumps(asdict(decision.rule)),
        }
        for key, value in said.items():
            client.set_model_version_tag(MODEL, chosen.version, key, value)

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
            chosen = known[history[-2]]
            with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
                bundle = self._download(client, chosen, Path(scratch))
                return self._install(client, chosen, bundle, history[:-1], aliases, publish)

    def _install(
        self,
        client: MlflowClient,
        chosen: ModelVersion,
        bundle: Path,
        history: list[int],
        aliases: dict[str, int],
        publish: Path | str | None,
    ) -> Promoted:
        number, before = int(chosen.version), aliases.get(CHAMPION)
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
        # Asked anew: a training that ended meanwhile has made its own version the challenger.
        if self._aliases(client).get(CHALLENGER) == number:
            client.delete_registered_model_alias(MODEL, CHALLENGER)
        return Promoted(number, before if before != number else None, digest, published)

    def _download(self, client: MlflowClient, chosen: ModelVersion, scratch: Path) -> Path:
        """Fetch the files of a version's bundle and verify them; nothing of them is executed."""
        from mlflow.artifacts import download_artifacts

        number = int(chosen.version)
        uri = client.get_model_version_download_uri(MODEL, str(number))
        what = f"version {number} at {self.where}"
        scratch.mkdir(parents=True, exist_ok=True)
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

    def _download_evaluation(self, client: MlflowClient, chosen: ModelVersion, scratch: Path) -> Path:
        """Fetch what a version was judged on, and check that it is that."""
        expected, what = chosen.tags.get("evaluation_digest"), f"version {chosen.version} at {self.where}"
        if expected is None or chosen.run_id is None:
            raise RegistryError("it was registered without an evaluation set; train again")
        scratch.mkdir(parents=True)
        try:
            folder = Path(client.download_artifacts(chosen.run_id, EVALUATION, str(scratch)))
            found = digest_of(folder)
        except OSError as error:
            raise RegistryError(f"{what}: its evaluation set cannot be fetched ({error})") from None
        if found != expected:
            raise RegistryError(f"{what}: its evaluation set is {found[:12]}, logged was {expected[:12]}; train again")
        return folder

    def _log_evaluation(self, client: MlflowClient, run: str, result: TrainingResult) -> dict[str, str]:
        """Keep what the training was judged on with its run; the digest binds it to the version."""
        if not result.evaluation_dir.is_dir():
            return {}
        client.log_artifacts(run, str(result.evaluation_dir), EVALUATION)
        return {"evaluation_digest": digest_of(result.evaluation_dir)}

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
                    signature=signature(result),
                    input_example=example(result),
                    pip_requirements=requirements(),
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
            tags={**tags, "bundle_digest": digest, "targets": json.dumps(headlines(result.metrics["targets"]))},
            description=summary(result),
            await_creation_for=60,
        )
        link = [{"name": MODEL, "version": found.version}]
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": json.dumps(link)})
        # Two trainings that end together: the higher number is the newer one and keeps the alias.
        with self._store.alone():
            current = self._aliases(client).get(CHALLENGER)
            if current is None or current < int(found.version):
                client.set_registered_model_alias(MODEL, CHALLENGER, str(found.version))
        return int(found.version)

    def _experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            # A server knows where its artefacts go; a database alone does not.
            place = None if self.uri.startswith("http") else self._store.artifacts.as_uri()
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

    @contextmanager
    def _changing(self, publish: Path | str | None) -> Iterator[MlflowClient]:
        """Give a client, one change at a time per database and per store directory on this machine."""
        if self._store.absent:
            raise RegistryError(self._nothing())
        with self._store.alone(publish), self._store.client() as client:
            yield client


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
        "gate": found.tags.get("gate", ""),
        "gate_why": found.tags.get("gate.why", ""),
        "run_id": found.run_id,
        "auc": {name: value for name, value in aucs.items() if value is not None},
        "targets": targets,
    }


def _verified(bundle: Path, what: str = "") -> str:
    """Return a bundle's digest after checking every file of it."""
    from serving.bundle import KIND, MAKE, PROTOCOL

    try:
        verify(bundle, KIND, PROTOCOL, MAKE)
    except ArtefactError as error:
        # Of a version that was fetched, the folder it was fetched to says nothing.
        raise RegistryError(f"{what}: {str(error).replace(f'{bundle}: ', '')}" if what else str(error)) from None
    return digest_of(bundle)


def _listed(known: dict[int, Any]) -> str:
    numbers = sorted(known)
    return ", ".join(map(str, numbers)) if len(numbers) <= 10 else f"{numbers[0]} to {numbers[-1]}"
