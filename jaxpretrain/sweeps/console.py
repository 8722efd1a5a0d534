"""The sweep command after its flags are parsed: plans, runs, answers, and prints all of it."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from jaxpretrain.config.command import EXIT_STOPPED, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.devices.chips import GIB, chip_of
from jaxpretrain.display.progress import activity
from jaxpretrain.display.wording import count_of, format_count, format_number
from jaxpretrain.launch import kubernetes, slurm
from jaxpretrain.launch.clients import KUBECTL, SBATCH, deliver
from jaxpretrain.launch.flags import require_sensible
from jaxpretrain.launch.machines import num_devices_of
from jaxpretrain.launch.training import check_training, engine_name
from jaxpretrain.planning.machines import Target, parse_target
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.run_documents import SWEEP, SweepFile
from jaxpretrain.sweeps.answer import answer
from jaxpretrain.sweeps.arms import Sweep, SweepRun, with_changes
from jaxpretrain.sweeps.board import Board
from jaxpretrain.sweeps.cost import (
    Comparison,
    Cost,
    EqualBy,
    compare,
    costs,
    equalised,
    first_setting,
    require_equal,
    setting_of,
)
from jaxpretrain.sweeps.launcher import LocalLauncher
from jaxpretrain.sweeps.parsing import DEFAULT_SEEDS, load_sweep, parse_sweep
from jaxpretrain.sweeps.runner import OnChange, flags_of, last_line, log_of, run_all
from jaxpretrain.sweeps.state import (
    State,
    find_states,
    make_document,
    read_earlier,
    require_extension,
    with_control_of,
    write_document,
)
from jaxpretrain.sweeps.told import cut, table, to_csv
from jaxpretrain.train.workdir import lock

_EXIT_FAILED = 1
_TABLE = "sweep.csv"
_MOST_COLUMNS = 40
"""The largest width of the names of arms in the plan."""


@dataclass(frozen=True)
class _Plan:
    """A sweep whose runs are known, with what they take."""

    sweep: Sweep
    target: Target | None
    """The machine that it is planned for; None where that is not known."""
    costs: dict[str, Cost]
    comparison: Comparison
    equal_by: EqualBy | None

    def document(self, states: Mapping[str, State]) -> Document:
        """Returns the content of `sweep.json` before there are metrics."""
        return make_document(self.sweep, states, self.costs, self.comparison, self.equal_by)


def run_sweep(
    flags: Namespace,
    items: Sequence[str],
    environment: Mapping[str, str],
    gpus: Sequence[tuple[str, str]],
) -> tuple[int, Document]:
    """Plans a sweep, runs it and answers; returns the exit code and the content of `sweep.json`.

    Args:
      flags: the flags of the command.
      items: the flags that say what is varied, in their order.
      environment: the environment of the runs.
      gpus: the number and the name of each GPU that the runs may use.

    Raises:
      InputError: something that was given is wrong, or the arms are not equal.
    """
    code, document = run_arms(_sweep(flags, items), flags, environment, gpus)
    if "answer" in document:  # neither a plan alone nor one that an engine runs
        out, folder = _output(flags), flags.workdir
        states = [run["state"] for arm in document["arms"] for run in arm["runs"]]
        if "done" in states:
            print("", table(document), "", *document["answer"], "", sep="\n", file=out)
        print(f"{folder / SWEEP}, {folder / _TABLE}, {folder / 'report.html'}", file=out)
    return code, document


def run_arms(
    sweep: Sweep,
    flags: Namespace,
    environment: Mapping[str, str],
    gpus: Sequence[tuple[str, str]],
    *,
    compares: bool = True,
) -> tuple[int, Document]:
    """Plans the runs of a sweep and, unless `plan_only`, trains them and writes their results.

    Args:
      sweep: the sweep.
      flags: the flags of the command; see `run_sweep`.
      environment: the environment of the runs.
      gpus: the number and the name of each GPU that the runs may use.
      compares: False for arms that are meant to differ in size and length, as on a ladder.

    Raises:
      InputError: something that was given is wrong, or the arms are not equal.
    """
    out = _output(flags)
    target = _target(flags, gpus)
    if flags.plan_only:
        plan = _planned(sweep, target, flags, None, compares=compares)
        _show(plan, out, is_refused=not flags.unequal)
        return 0, plan.document({})
    folder: Path = flags.workdir
    with lock(folder):
        earlier = read_earlier(folder)
        if earlier is not None and flags.control is None:
            sweep = with_control_of(earlier, sweep)
        plan = _planned(sweep, target, flags, earlier, compares=compares)
        sweep = plan.sweep
        if earlier is not None:
            require_extension(folder, earlier, sweep)
        _show(plan, out, is_refused=not flags.unequal)
        states = find_states(folder, sweep, earlier, plan.costs, retry_failed=flags.retry_failed)
        remaining = [run for run in sweep.runs() if states[run.folder] in ("waiting", "stopped")]
        if flags.launcher != "local" and remaining:
            document = plan.document(states)
            write_document(folder, document)
            return _hand_over(sweep, remaining, flags), document
        launcher = LocalLauncher(flags.jobs, environment, [number for number, _ in gpus])
        states = run_all(sweep, folder, launcher, states, _follow(plan, folder))
        document = answer(_with_problems(plan.document(states), folder), folder)
        write_document(folder, document)
        write_atomically(folder / _TABLE, to_csv(document))
        from jaxpretrain.reports.page import write_report  # takes a second

        write_report([folder], None)
    return _exit_code(states), document


def _output(flags: Namespace) -> TextIO:
    """Returns the stream of what is told: JSON, or what an engine gets, is alone on its own."""
    return sys.stderr if flags.json or flags.launcher != "local" else sys.stdout


def _hand_over(sweep: Sweep, runs: Sequence[SweepRun], flags: Namespace) -> int:
    """Prints what an engine gets for some runs, or submits it; returns the exit code."""
    folder: Path = flags.workdir
    require_sensible(flags)
    num_devices = num_devices_of(flags)
    trainings = [
        check_training(flags_of(sweep, run, folder), num_devices=num_devices) for run in runs
    ]
    name = engine_name(folder)
    if flags.launcher == "slurm":
        text, client = slurm.write_script(name, trainings, flags), SBATCH
    else:
        text, client = kubernetes.sweep_manifest(name, trainings, flags), KUBECTL
    return deliver(text, client, is_submitted=flags.submit)


def _follow(plan: _Plan, folder: Path) -> OnChange:
    """Returns the function that shows the runs and keeps their states in `sweep.json`."""
    runs = plan.sweep.runs()
    board = Board(folder, {run.folder: plan.costs[setting_of(run)].steps for run in runs})
    written: dict[str, State] = {}

    def on_change(states: Mapping[str, State], message: str | None) -> None:
        if message is not None:
            board.message(message)
        if states != written:
            written.update(states)
            write_document(folder, plan.document(states))
        board.update(states)

    return on_change


def _sweep(flags: Namespace, items: Sequence[str]) -> Sweep:
    if flags.sweep is None:
        seeds = DEFAULT_SEEDS if flags.seeds is None else flags.seeds
        return parse_sweep(
            flags.config, items, random=flags.random, seeds=seeds, control=flags.control
        )
    others, shared = split_overrides(items)
    if flags.random:
        others = [f"--random={flags.random}"]
    if others:
        raise InputError(f"--sweep says what is varied; leave out {others[0]}")
    return with_changes(
        load_sweep(flags.sweep), shared=shared, seeds=flags.seeds, control=flags.control
    )


def _target(flags: Namespace, gpus: Sequence[tuple[str, str]]) -> Target | None:
    """Returns the machine to plan for: the one that is named, or what a run gets here.

    None where that is a TPU, whose name only its own process can ask for, or a GPU without a name.
    """
    if flags.target not in (None, "local"):
        return parse_target(flags.target)
    if not gpus:
        return None if any(Path("/dev").glob("accel[0-9]*")) else parse_target("local")
    chip = chip_of(gpus[0][1])
    share = max(len(gpus) // flags.jobs, 1)
    return None if chip is None else parse_target(f"{chip.name}:{share}")


def _planned(
    sweep: Sweep,
    target: Target | None,
    flags: Namespace,
    earlier: SweepFile | None,
    *,
    compares: bool,
) -> _Plan:
    """Returns the sweep, its arms made equal where that is asked for, with the cost of each."""
    with activity("planning the runs"):
        found = costs(sweep, target, compiles=bool(flags.target) and not flags.equal)
        if flags.equal:
            arms = earlier.arms if earlier and earlier.equal_by == flags.equal else ()
            durations = {arm.name: dict(arm.overrides).get("train.duration") for arm in arms}
            known = {name: text for name, text in durations.items() if text is not None}
            sweep = equalised(sweep, flags.equal, found, known)
            found = costs(sweep, target, compiles=bool(flags.target))
            require_equal(sweep, flags.equal, found)
    comparison = Comparison([], [], [])
    if compares:
        comparison = compare(found, first_setting(sweep, sweep.control), flags.equal)
    return _Plan(sweep, target, found, comparison, flags.equal)


def _show(plan: _Plan, out: TextIO, *, is_refused: bool) -> None:
    """Prints the plan; raises InputError where the arms are not equal and that is refused."""
    print(_plan_text(plan), file=out, flush=True)
    if plan.comparison.refused and is_refused:
        lines = "; ".join(plan.comparison.refused)
        can_help = plan.equal_by is None and "evaluates with" not in lines
        hint = "--equal=tokens makes them equal, " * can_help + "--unequal goes on"
        raise InputError(f"the arms are not equal: {lines}; {hint}")


def _with_problems(document: Document, folder: Path) -> Document:
    """Adds the last line of its log to each run that failed, as `problem`."""
    for arm in document["arms"]:
        for run in arm["runs"]:
            if run["state"] == "failed":
                run["problem"] = last_line(log_of(folder, run["folder"]))
    return document


def _exit_code(states: Mapping[str, State]) -> int:
    if {"stopped", "waiting"} & set(states.values()):
        return EXIT_STOPPED
    return _EXIT_FAILED if "failed" in states.values() else 0


def _plan_text(plan: _Plan) -> str:
    """Returns the table of the runs with what they take, and what is equal over them."""
    sweep, found, comparison = plan.sweep, plan.costs, plan.comparison
    unit = found[first_setting(sweep, sweep.control)].unit
    width = min(max(map(len, found)), _MOST_COLUMNS)
    lines = [
        f"{count_of(len(sweep.runs()), 'run')}: {count_of(len(sweep.arms), 'arm')}"
        + (f" x {len(sweep.points)} tuned values" if sweep.tune else "")
        + f" x {count_of(len(sweep.seeds), 'seed')} from {sweep.seeds[0]}; the control is "
        f"{sweep.control} ({sweep.control_reason})",
        f"  {'':<{width}}  parameters  {unit:>8}   FLOPs  batch      GiB    hours",
    ]
    for setting, cost in found.items():
        memory = "?" if cost.memory_bytes is None else f"{cost.memory_bytes / GIB:.2f}"
        lines.append(
            f"  {cut(setting, width):<{width}}  {format_count(cost.parameters):>10}  "
            f"{format_count(cost.units):>8}  {cost.flops:>6.1e}  {cost.batch_size:>5}  "
            f"{memory:>7}  {format_number(cost.hours, 3):>7}"
        )
    planned = plan.document({})["planned"]
    hours = format_number(planned["device_hours"], 3)
    where = f" ({plan.target.name})" if plan.target else ""
    lines.append(
        f"in all {planned['flops']:.1e} FLOPs, {hours} device-hours{where}, evaluation "
        f"and start-up aside; {count_of(planned['programs'], 'program')} to compile"
    )
    same = [name.replace("_", " ") for name in comparison.equal]
    lines += [f"equal over the arms: {', '.join(same)}"] * bool(same)
    lines += _not_equal(comparison.refused + comparison.named)
    return "\n".join(lines)


def _not_equal(differences: Sequence[str]) -> list[str]:
    """Returns a line for each difference from the control, with all arms that have it."""
    arms: dict[str, list[str]] = {}
    for line in differences:
        arm, _, text = line.partition(": ")
        arms.setdefault(text, []).append(arm)
    return [
        f"not equal: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {text}"
        for text, names in arms.items()
    ]
