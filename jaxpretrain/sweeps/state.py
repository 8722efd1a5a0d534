"""What a sweep's folder knows: `sweep.json`, and the state of each run.

The file is there from the first moment on, so that an interrupted sweep is known: the same command
goes on with it, and more seeds, arms or values extend it.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, checked, diff, read_object, to_dict
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.run_documents import SWEEP, SweepFile
from jaxpretrain.sweeps.arms import Sweep
from jaxpretrain.sweeps.cost import Comparison, Cost, setting_of
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.workdir import lock, saved_document

State = Literal["waiting", "running", "done", "failed", "stopped"]
# Fields that may be changed in a run's folder, or are chosen there.
_FREE = ("checkpoint.", "monitor.", "mesh.", "data.num_examples")


def make_document(
    sweep: Sweep,
    states: Mapping[str, State],
    costs: Mapping[str, Cost],
    comparison: Comparison,
    equal_by: str | None,
) -> Document:
    """Returns the content of `sweep.json` before there are metrics."""
    runs = sweep.runs()
    hours = [costs[setting_of(run)].device_hours for run in runs]
    return {
        "config": sweep.config,
        "shared": sweep.shared,
        "control": sweep.control,
        "control_reason": sweep.control_reason,
        "tune": sweep.tune or {},
        "seeds": sweep.seeds,
        "equal_by": equal_by,
        "equal": comparison.equal,
        "differences": comparison.refused + comparison.named,
        "are_losses_comparable": comparison.are_losses_comparable,
        "planned": {
            "device_hours": None if None in hours else sum(filter(None, hours)),
            "flops": sum(costs[setting_of(run)].flops for run in runs),
            "programs": len({cost.program for cost in costs.values()}),
            "settings": {setting: _described(cost) for setting, cost in costs.items()},
        },
        "arms": [
            {
                "name": arm.name,
                "overrides": arm.overrides,
                "runs": [
                    {
                        "folder": run.folder,
                        "seed": run.seed,
                        "tuned": run.tuned,
                        "state": states.get(run.folder, "waiting"),
                    }
                    for run in runs
                    if run.arm == arm.name
                ],
            }
            for arm in sweep.arms
        ],
    }


def write_document(folder: Path, document: Mapping[str, Any]) -> None:
    """Writes `sweep.json`."""
    write_atomically(folder / SWEEP, json.dumps(document, indent=2) + "\n")


def read_earlier(folder: Path) -> SweepFile | None:
    """Returns what the sweep's folder holds from an earlier start; None where it is new.

    Raises:
      InputError: the folder is that of a run, or its `sweep.json` is damaged.
    """
    if (folder / "experiment.json").exists():
        raise InputError(f"--workdir={folder} is the folder of a run; take another one")
    path = folder / SWEEP
    return checked(SweepFile, read_object(path), path) if path.exists() else None


def with_control_of(earlier: SweepFile, sweep: Sweep) -> Sweep:
    """Returns the sweep with the control of its earlier start, if it still has that arm."""
    if earlier.control == sweep.control or earlier.control not in [a.name for a in sweep.arms]:
        return sweep
    return replace(sweep, control=earlier.control, control_reason="as before")


def require_extension(folder: Path, earlier: SweepFile, sweep: Sweep) -> None:
    """Checks that a sweep is the one in the folder, or that one with more runs.

    Raises:
      InputError: it is another sweep; the line says in what.
    """
    names = {arm.name for arm in earlier.arms}
    there, here = _identity(earlier, names), _identity(sweep, names)
    changes = [f"{path} was {was}, is {now}" for path, was, now in diff(there, here)]
    folders = {run.folder for run in sweep.runs()}
    runs = [run.folder for arm in earlier.arms for run in arm.runs]
    changes += [f"it has {run}, and this one has not" for run in runs if run not in folders]
    if changes:
        raise InputError(
            f"--workdir={folder} holds another sweep: {'; '.join(changes[:3])}; give the same "
            "flags, or more values, arms or seeds, or take another folder"
        )


def find_states(
    folder: Path,
    sweep: Sweep,
    earlier: SweepFile | None,
    costs: Mapping[str, Cost],
    *,
    retry_failed: bool,
) -> dict[str, State]:
    """Returns the state of each run before any is started: done, failed, stopped or waiting.

    Raises:
      InputError: the folder of a run holds another one than the sweep would run, or a process
        still trains there.
    """
    noted = {run.folder: run.state for arm in earlier.arms for run in arm.runs} if earlier else {}
    states: dict[str, State] = {}
    for run in sweep.runs():
        state, workdir = noted.get(run.folder, "waiting"), folder / run.folder
        if (workdir / "experiment.json").exists():
            with lock(workdir):  # refuses what still trains, after a sweep that was killed
                document = saved_document(workdir)
            experiment = costs[setting_of(run)].experiment
            _require_unchanged(workdir, document["config"], replace(experiment, seed=run.seed))
            # One that an engine has run is complete although nobody has noted it.
            is_complete = document.get("last_saved") == experiment.timeline.num_steps
            if state != "failed" and is_complete:
                states[run.folder] = "done"
                continue
        elif state == "done":
            state = "waiting"  # its folder is gone
        failed = state == "failed" and not retry_failed
        started = (workdir / "metrics.jsonl").exists()
        states[run.folder] = "failed" if failed else "stopped" if started else "waiting"
    return states


def _require_unchanged(workdir: Path, saved: Document, experiment: Resolved) -> None:
    for path, there, here in diff(saved, to_dict(experiment)):
        if not path.startswith(_FREE) and here != "auto":
            raise InputError(
                f"{workdir} was changed by hand: {path} is {there} there, and the sweep has "
                f"{here}; put it back, or delete that folder to run it again"
            )


def _described(cost: Cost) -> Document:
    return {
        "parameters": cost.parameters,
        cost.unit: cost.units,
        "steps": cost.steps,
        "flops": cost.flops,
        "batch_size": cost.batch_size,
        "memory_bytes_per_device": cost.memory_bytes,
        "hours": cost.hours,
        "device_hours": cost.device_hours,
    }


def _identity(sweep: Sweep | SweepFile, arms: Collection[str]) -> Document:
    """Returns what may not change when a sweep goes on, with some of its arms."""
    return {
        "config": sweep.config,
        "shared": dict(sweep.shared),
        "control": sweep.control,
        "arms": {arm.name: dict(arm.overrides) for arm in sweep.arms if arm.name in arms},
    }
