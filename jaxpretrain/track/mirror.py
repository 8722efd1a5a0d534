"""A run's folder mirrored to a run of a tracker: what the tracker has is never sent again.

`metrics.jsonl` is the one record. What has been sent is kept in `trackers/NAME.json`, as the newest
step and the names that it had: a run that goes on from an older checkpoint repeats its steps bit
for bit, so they are passed over. After a rewind the record is another one, and a new run of the
same group takes all of it.
"""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jaxpretrain.checkpoints.rewind import read_rewinds
from jaxpretrain.config.serialize import Document, checked, read_object
from jaxpretrain.diagnosis import metric_names
from jaxpretrain.monitor.writers import ITEMS, PICTURES
from jaxpretrain.reports.runs import folder_name, read_run
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.jsonl import Follower, read_lines
from jaxpretrain.storage.paths import is_remote, list_files
from jaxpretrain.storage.run_documents import ExperimentFile, read_document
from jaxpretrain.track.contract import (
    FOLDER,
    Identity,
    Line,
    Service,
    TrackerName,
    files_of,
    runs_of_sweep,
)

MOST_ROWS = 10_000
"""The largest number of rows of a table, which is W&B's own limit."""
_SHARE = 0.02  # largest share of the time that looking for findings takes
_APART = 30.0  # fewest seconds between two looks for findings


@dataclass
class Sent:
    """A note of what a place has of a run."""

    key: str
    """The identifier of the run there."""
    rewinds: int = 0
    """The number of times that the run had gone back when it began there."""
    steps: dict[str, int] = field(default_factory=dict)
    """Kind of record -> the newest step that is there."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Kind of record -> the names that are there of that step."""
    findings: tuple[tuple[str, str], ...] = ()
    """The names and subjects of findings."""

    def new(self, kind: str, record: Mapping[str, object]) -> dict[str, object]:
        """Returns what is new in a record with a "step", and counts it as sent."""
        step, newest = int(str(record["step"])), self.steps.get(kind, -1)
        known = self.names.get(kind, ()) if step == newest else ()
        values = {n: x for n, x in record.items() if n not in ("step", "time", *known)}
        if step < newest or not values:
            return {}
        self.steps[kind], self.names[kind] = step, (*known, *values)
        return values


class Mirror:
    """Sends a run's folder to a tracker, piece by piece; after an exception, open another one."""

    def __init__(self, workdir: Path, name: TrackerName, service: Service) -> None:
        """Opens the run in the tracker; InputError where the folder holds no run."""
        self._workdir = workdir
        self._state = workdir / FOLDER / f"{name}.json"
        self._place = service.place
        self._metrics = Follower(workdir / "metrics.jsonl")
        self._samples = Follower(workdir / "samples.jsonl")
        self._next_look = 0.0
        document = self._document()
        rewinds = len(read_rewinds(workdir))
        self._sent = Sent(uuid.uuid4().hex[:12], rewinds)
        self._places = self._read()  # no other process writes them meanwhile
        before = self._places.get(self._place)
        if before is not None and before.rewinds == rewinds:
            self._sent = before
        self._places[self._place] = self._sent
        self._run = service.open(identity(workdir, self._sent.key, rewinds))
        self._run.config(document)
        self._write()

    def send(self) -> None:
        """Sends what has come since the last call."""
        for block in self._metrics.new_blocks():
            lines = []
            for record in block:
                numbers = {
                    name: float(value)
                    for name, value in self._sent.new("metrics", record).items()
                    if isinstance(value, int | float)  # null: unknown, or not finite
                }
                if numbers:
                    lines.append(Line(record["step"], record["time"], numbers))
            for line in lines:  # first: a table may come again after a failure, a line must not
                if rows := list(_rows(line.values)):
                    self._run.table(line.step, "eval/table", ("subject", "metric", "value"), rows)
            self._run.lines(lines)
            self._write()
        for block in self._samples.new_blocks():
            for record in block:
                for name, text in self._sent.new("samples", record).items():
                    self._run.text(record["step"], name, str(text))
            self._write()
        self._send_pictures()
        if time.monotonic() >= self._next_look:
            began = time.monotonic()
            self._send_findings()
            ended = time.monotonic()
            self._next_look = ended + max(_APART, (ended - began) / _SHARE)

    def finish(self) -> None:
        """Sends the rest, which is worth its time only at an end: last items, and the report."""
        self._next_look = 0.0
        self.send()
        self._run.config(self._document())
        items = read_lines(self._workdir / ITEMS)[:MOST_ROWS]
        if items and self._sent.new("items", {"step": items[0]["step"], "items": ""}):
            columns = list(dict.fromkeys(name for item in items for name in item))
            rows = [[_cell(item.get(name)) for name in columns] for item in items]
            self._run.table(items[0]["step"], "eval/items", columns, rows)
        report = files_of(self._workdir) / "report.html"
        command = [sys.executable, "-m", "jaxpretrain.report", str(self._workdir)]
        done = subprocess.run([*command, f"--output={report}"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the report cannot be made: {done.stderr.strip()[-300:]}")
        self._run.artifact(report)
        self._write()

    def close(self) -> None:
        """Waits until all that was sent is delivered."""
        self._run.close()

    def _send_pictures(self) -> None:
        folder = self._workdir / PICTURES
        found = [path for path in list_files(folder) if path.suffix == ".png"]
        for path in sorted(found, key=lambda path: (path.stem, str(path))):
            name = str(path.parent.relative_to(folder))
            if self._sent.new("pictures", {"step": int(path.stem), name: path}):
                self._run.picture(int(path.stem), name, local_copy(path))
                self._write()

    def _send_findings(self) -> None:
        for finding in read_run(self._workdir).findings:
            if finding.key not in self._sent.findings:
                self._run.alert(finding)
                self._sent.findings += (finding.key,)
                self._write()

    def _document(self) -> Document:
        return read_document(self._workdir / "experiment.json", ExperimentFile)

    def _read(self) -> dict[str, Sent]:
        """Returns what each place has."""
        if not self._state.exists():
            return {}
        document = read_object(self._state)
        return {place: checked(Sent, one, self._state) for place, one in document.items()}

    def _write(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        document = {place: asdict(one) for place, one in self._places.items()}
        write_atomically(self._state, json.dumps(document, indent=1) + "\n")


def identity(workdir: Path, key: str, rewinds: int) -> Identity:
    """Returns the run in a folder, as a tracker is to know it."""
    name = group = folder_name(workdir)
    labels: dict[str, str] = {}
    here = workdir if is_remote(workdir) else workdir.resolve()
    for folder in here.parents[1:3]:  # SWEEP/ARM/seedN, SWEEP/ARM/TUNED/seedN
        if (found := runs_of_sweep(folder).get(here)) is not None:
            name, group, labels = str(here.relative_to(folder)), folder_name(folder), found
    return Identity(key, f"{name} (rewind {rewinds})" if rewinds else name, group, labels)


def _rows(values: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    """Yields the subject, the metric and the value of each result of an evaluation."""
    for name, value in values.items():
        if name.startswith("eval/") and not metric_names.is_companion(name):
            subject, _, metric = name.removeprefix("eval/").rpartition("/")
            yield subject, metric, value


def _cell(value: object) -> str | float | bool | None:
    """Returns what a cell of a table takes; lists become JSON."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
