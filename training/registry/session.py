"""An open run in MLflow, for what is no training: backtests and tunings write what they find as they find it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["Run"]

_PARENT = "mlflow.parentRunId"
_MOST_METRICS, _MOST_OTHERS = 1000, 100
"""What the server takes at once."""


class Run:
    """A run that is being written. What is written is there at once; made by `training.registry.Registry.run`.

    Args:
        client: of the server or database.
        experiment: id of the experiment.
        id: of the run.
    """

    def __init__(self, client: MlflowClient, experiment: str, id: str) -> None:
        self._client, self._experiment, self.id = client, experiment, id

    @staticmethod
    @contextmanager
    def opened(
        client: MlflowClient,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        id: str = "",
        left: str = "FINISHED",
    ) -> Iterator[Run]:
        """Open a run, or one that was left open or closed before, and close it with what became of it.

        Args:
            client, experiment: as of the class.
            name, tags: of a new run.
            id: of a run to go on with; a new one where there is none of this id.
            left: what it is left as when all went well.
        """
        from mlflow.exceptions import MlflowException

        if id:
            try:
                client.update_run(id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "deleted" not in str(error):
                    raise
                id = ""
        run = Run(client, experiment, id or client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)
        try:
            yield run
        except BaseException as error:
            client.set_terminated(run.id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        if left == "RUNNING":
            client.update_run(run.id, status=left)
        else:
            client.set_terminated(run.id, left)

    @contextmanager
    def child(self, name: str, tags: Mapping[str, str], id: str = "") -> Iterator[Run]:
        """Open a run below this one, as `opened` does."""
        tags = {**tags, _PARENT: self.id}
        with Run.opened(self._client, self._experiment, name, tags, id) as run:
            yield run

    def children(self, tag: str) -> dict[str, tuple[str, bool]]:
        """The runs below this one by a tag of theirs: id, and whether they were finished."""
        found: dict[str, tuple[str, bool]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{_PARENT}` = '{self.id}'", max_results=1000, page_token=token
            )
            for run in page:
                if tag in run.data.tags:
                    found[run.data.tags[tag]] = run.info.run_id, run.info.status == "FINISHED"
            token = page.token
            if not token:
                return found

    def write(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float | None] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Write parameters, figures and tags, however many; a figure that does not exist is left out."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        figures = [Metric(k, float(v), now, 0) for k, v in (metrics or {}).items() if v is not None]
        others = [Param(k, str(v)) for k, v in (params or {}).items()]
        words = [RunTag(k, str(v)[:7900]) for k, v in (tags or {}).items()]
        most = max(len(figures) / _MOST_METRICS, len(others) / _MOST_OTHERS, len(words) / _MOST_OTHERS)
        for k in range(int(-(-most // 1))):
            start = k * _MOST_OTHERS
            self._client.log_batch(
                self.id,
                metrics=figures[k * _MOST_METRICS :][:_MOST_METRICS],
                params=others[start:][:_MOST_OTHERS],
                tags=words[start:][:_MOST_OTHERS],
            )

    def file(self, name: str, content: bytes | str, folder: str | None = None) -> None:
        """Write a file."""
        with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
            path = Path(scratch) / name
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            self._client.log_artifact(self.id, str(path), folder)
