"""MLflow: runs of an experiment, on the server that its own environment names or in a local file.

Without MLFLOW_TRACKING_URI they go to `trackers/mlflow.db`, which `mlflow server` shows. MLflow has
no alerts: findings are tags of the run.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, diff
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.storage.files import unfinished
from jaxpretrain.track.contract import PROJECT, Identity, Line, Service, TrackedRun

_FILE, _SQLITE = "mlflow.db", "sqlite:///"
_KEY = f"{PROJECT}.key"
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one request, by MLflow's rules
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000  # characters
T = TypeVar("T")


def connect(folder: Path) -> Service:
    """Returns the service; its local file goes to a folder."""
    # Nothing about the use goes anywhere unless the user wants it, and a server that does not
    # answer is asked again later, as any tracker is, and not for minutes at once.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return _Mlflow(folder.absolute())


class _Mlflow:
    """The service of MLflow."""

    def __init__(self, folder: Path) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._folder = None if uri else folder
        # A server knows where artifacts go; without one, MLflow takes the current directory.
        files = folder if not uri else Path(uri.partition(_SQLITE)[2]).absolute().parent
        is_file = not uri or uri.startswith(_SQLITE)
        self._artifacts = (files / "mlflow-artifacts").as_uri() if is_file else None
        self._uri = uri or f"{_SQLITE}{folder / _FILE}"
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self.place = f"{uri or _FILE}, {self._experiment}"

    def check(self) -> None:
        """Asks a server whether it takes the credentials."""
        if self._folder is not None:
            return
        try:
            self._client().search_experiments(max_results=1)
        except MlflowException as error:
            if re.search(r"error code (401|403)\b", str(error)) or error.error_code in _REFUSALS:
                line = f"mlflow: {self._uri} refuses the user or the token"
                raise InputError(f"{line}: {str(error)[:200]}") from None
            raise

    def open(self, run: Identity) -> TrackedRun:
        """Opens the run with a key, or makes it."""
        client, experiment = self._client(), self._experiment_id()
        found = client.search_runs([experiment], f"tags.`{_KEY}` = '{run.key}'", max_results=1)
        if found:
            key = found[0].info.run_id
            client.update_run(key, status="RUNNING")
        else:
            tags = {_KEY: run.key, "group": run.group, **run.labels}
            key = client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        return _MlflowRun(client, key)

    def _client(self) -> MlflowClient:
        if self._folder is not None and not (file := self._folder / _FILE).exists():
            # MLflow makes its tables in a hundred steps; a file that one has left is of no use.
            MlflowClient(f"{_SQLITE}{unfinished(file)}").search_experiments(max_results=1)
            os.replace(unfinished(file), file)
        return MlflowClient(self._uri)

    def _experiment_id(self) -> str:
        client, name = self._client(), self._experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=self._artifacts)
            except MlflowException:  # another run of a sweep has just made it
                if (found := client.get_experiment_by_name(name)) is None:
                    raise
        return found.experiment_id


_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")


class _MlflowRun:
    """An open run."""

    def __init__(self, client: MlflowClient, key: str) -> None:
        self._client = client
        self._key = key

    def config(self, document: Document) -> None:
        """Sets parameters, which MLflow never changes, and keeps the newest document as a file."""
        known = self._client.get_run(self._key).data.params
        rows = diff({}, document.get("config", {}))
        params = [Param(path, str(x)[:_LONGEST_PARAM]) for path, _, x in rows if path not in known]
        for some in _portions(params, _MOST_PARAMS):
            self._client.log_batch(self._key, params=some)
        self._client.log_dict(self._key, document, "experiment.json")

    def lines(self, lines: Sequence[Line]) -> None:
        """Logs the numbers of lines, many in one request."""
        metrics = [
            Metric(_allowed(name), value, int(line.time * 1000), line.step)
            for line in lines
            for name, value in line.values.items()
        ]
        for some in _portions(metrics, _MOST_METRICS):
            self._client.log_batch(self._key, metrics=some)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
        """Keeps a table as a JSON file in the form that MLflow shows as a table."""
        text = json.dumps({"columns": list(columns), "data": [list(row) for row in rows]})
        self._client.log_text(self._key, text, f"{_allowed(name)}/{step:08d}.json")

    def text(self, step: int, name: str, text: str) -> None:
        """Keeps a text as a file."""
        self._client.log_text(self._key, text, f"{_allowed(name)}/{step:08d}.txt")

    def picture(self, step: int, name: str, file: Path) -> None:
        """Keeps a picture as a file."""
        self._client.log_artifact(self._key, str(file), f"pictures/{_allowed(name)}")

    def alert(self, finding: Finding) -> None:
        """Sets a tag."""
        name = _allowed(" ".join(["finding", *filter(None, finding.key)]))
        text = f"{finding.severity}: step {finding.first:,}: {finding.reading} {finding.advice}"
        self._client.set_tag(self._key, name, text[:_LONGEST_TAG])

    def artifact(self, file: Path) -> None:
        """Keeps a file under its name."""
        self._client.log_artifact(self._key, str(file))

    def close(self) -> None:
        """Marks the run as ended; each request was waited for."""
        self._client.set_terminated(self._key)


def _allowed(name: str) -> str:
    """Returns a name with `_` for characters that MLflow refuses, which ours do not have."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
