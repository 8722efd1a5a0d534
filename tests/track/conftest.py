"""A folder of a run that can be written step by step, and a tracker that remembers what it gets."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from jaxpretrain.storage.jsonl import JsonlWriter
from jaxpretrain.track import contract
from jaxpretrain.track.contract import Identity, Line

CONFIG = {"seed": 0, "optim": {"schedule": {"peak": 1e-3}}, "monitor": {"trackers": ["wandb"]}}
VALUES = {step: {"train/loss": 9.0 / 3**step, "train/tokens": 4096 * step} for step in range(1, 30)}


def write_steps(folder: Path, steps: range) -> None:
    """Writes lines of steps, whose values depend on the step alone."""
    writer = JsonlWriter(folder / "metrics.jsonl")
    for step in steps:
        writer.write(step, VALUES[step])
        if step % 5 == 0:
            results = {"eval/sotu/loss": 1 / step, "eval/sotu/bits_per_byte": None}
            writer.write(step, results)
            JsonlWriter(folder / "samples.jsonl").write(step, {"samples/0": f"a <b>|{step}"})
            write_picture(folder, step)
    writer.close()


def write_sweep(folder: Path, runs: dict[str, int]) -> None:
    """Writes the document of a sweep whose runs have these folders and seeds."""
    entries = [{"folder": name, "seed": seed, "state": "done"} for name, seed in runs.items()]
    arms = [{"name": "peak", "overrides": [], "runs": entries}]
    document = {"config": "olmo_nano", "control": "peak", "arms": arms}
    (folder / "sweep.json").write_text(json.dumps(document))


def write_picture(folder: Path, step: int) -> None:
    """Writes a PNG file of one black pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        content = kind + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    path = folder / "pictures" / "digits" / "reconstructions" / f"{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """The folder of a run of 10 steps that has begun."""
    folder = tmp_path / "nano"
    folder.mkdir()
    (folder / "experiment.json").write_text(
        json.dumps({"config": CONFIG, "versions": {"jax": "1"}})
    )
    JsonlWriter(folder / "metrics.jsonl").write(0, {"run/num_devices": 1})
    write_steps(folder, range(1, 11))
    return folder


class Recorder:
    """A tracker that remembers all that it gets, by run."""

    def __init__(self, place: str = "here") -> None:
        self.place = place
        self.opened: list[Identity] = []
        self.runs: dict[str, list[tuple]] = {}
        self.num_lines_left = 10**9
        self.refusal: Exception | None = None

    def check(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def open(self, run: Identity) -> "RecorderRun":
        self.opened.append(run)
        return RecorderRun(self, self.runs.setdefault(run.key, []))

    def lines(self, place: int = -1) -> list[Line]:
        """The lines of a run, by its place in the order of their beginnings."""
        return [
            x for kind, *rest in list(self.runs.values())[place] for x in rest if kind == "line"
        ]

    def kinds(self, kind: str) -> list[tuple]:
        """What the newest run has of a kind."""
        return [tuple(rest) for one, *rest in list(self.runs.values())[-1] if one == kind]


class RecorderRun:
    """A run of the recorder."""

    def __init__(self, owner: Recorder, got: list[tuple]) -> None:
        self._owner, self._got = owner, got

    def config(self, document):
        self._got.append(("config", document))

    def lines(self, lines):
        if len(lines) > self._owner.num_lines_left:
            raise ConnectionError("the line\nis cut")
        self._got += [("line", line) for line in lines]

    def table(self, step, name, columns, rows):
        self._got.append(("table", step, name, list(columns), list(rows)))

    def text(self, step, name, text):
        self._got.append(("text", step, name, text))

    def picture(self, step, name, file):
        assert file.exists()
        self._got.append(("picture", step, name))

    def alert(self, finding):
        self._got.append(("alert", finding.key))

    def artifact(self, file):
        self._got.append(("artifact", file.name, file.stat().st_size))

    def close(self):
        self._got.append(("close",))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The tracker that `connect` returns under any name."""
    recorder = Recorder()
    monkeypatch.setattr("jaxpretrain.track.follow.connect", lambda name, folder: recorder)
    monkeypatch.setattr(contract, "connect", lambda name, folder: recorder)
    return recorder
