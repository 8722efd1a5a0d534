"""Weights & Biases: runs of a project, online or as offline files, as its own environment says.

`step` is the axis of all charts, because W&B counts lines itself and takes none twice.
"""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

import wandb
from wandb.errors import AuthenticationError

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.track.contract import PROJECT, Identity, Line, Service, TrackedRun

_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR"}


def connect(folder: Path) -> Service:
    """Returns the service, whose files go to a folder."""
    # No reports about errors go anywhere unless the user wants them.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return _Wandb(folder)


class _Wandb:
    """The service of W&B."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        settings = wandb.setup().settings
        self._mode = settings.mode
        self._project = settings.project or PROJECT
        self._group = settings.run_group
        where = f"{settings.base_url}/{settings.entity or ''}/{self._project}"
        self.place = where if self._mode in ("online", "shared") else self._mode

    def check(self) -> None:
        """Asks W&B whether it knows the key; offline there is nothing to ask."""
        if self._mode not in ("online", "shared"):
            return
        try:
            is_known = wandb.login(prompt=False)
        except AuthenticationError as error:
            if _is_refusal(str(error)):
                raise InputError(f"wandb: the key is refused: {error}") from None
            raise
        if not is_known:
            raise InputError(
                "wandb: there is no key: run `wandb login`, or set WANDB_API_KEY; with "
                "WANDB_MODE=offline none is needed"
            )

    def open(self, run: Identity) -> TrackedRun:
        """Opens a run by its key."""
        if wandb.run is not None:  # one that has failed
            wandb.teardown(exit_code=1)
        self._folder.mkdir(parents=True, exist_ok=True)
        opened = wandb.init(
            id=run.key,
            dir=self._folder,
            project=self._project,
            name=os.environ.get("WANDB_NAME") or run.name,
            group=self._group or run.group,
            job_type=run.labels.get("arm"),
            tags=[f"{name} {value}" for name, value in run.labels.items()] or None,
            resume=None if self._mode == "offline" else "allow",
            settings=wandb.Settings(
                console="off", disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )
        opened.define_metric("step", hidden=True)
        opened.define_metric("*", step_metric="step")
        return _WandbRun(opened)


class _WandbRun:
    """An open run."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    def config(self, document: Document) -> None:
        """Sets the config, with what is known of the program and the data beside its fields."""
        about = {name: x for name, x in document.items() if name not in ("config", "sessions")}
        fields = {**document.get("config", {}), "experiment": about}
        self._run.config.update(fields, allow_val_change=True)

    def lines(self, lines: Sequence[Line]) -> None:
        """Logs each line as a row."""
        for line in lines:
            self._run.log({**line.values, "step": line.step, "_timestamp": line.time})

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
        """Logs a table, whose cells may be of any type."""
        cells = [list(row) for row in rows]
        table = wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)
        self._run.log({name: table, "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        """Logs a text as it is, without markup."""
        shown = f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
        self._run.log({name: wandb.Html(shown), "step": step})

    def picture(self, step: int, name: str, file: Path) -> None:
        """Logs a picture."""
        self._run.log({name: wandb.Image(str(file)), "step": step})

    def alert(self, finding: Finding) -> None:
        """Sends an alert, as the user has set up for alerts."""
        text = f"Step {finding.first:,}: {finding.reading} What to do: {finding.advice}"
        self._run.alert(finding.title, text, level=_LEVELS[finding.severity], wait_duration=0)

    def artifact(self, file: Path) -> None:
        """Logs the file as the next version of an artifact of this run."""
        artifact = wandb.Artifact(f"{file.stem}-{self._run.id}", type=file.stem)
        artifact.add_file(str(file), name=file.name)
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Waits until all is uploaded, or in the offline files."""
        self._run.finish()


def _is_refusal(problem: str) -> bool:
    """Returns true where the key is wrong, and not the way to the server."""
    no_answer = (
        r"execute API request|did not respond|timed out|connect|no such host|error (429|5..)"
    )
    return re.search(no_answer, problem) is None
