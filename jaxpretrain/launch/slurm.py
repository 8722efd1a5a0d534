"""The script of a SLURM job: one run, or an array of runs.

The script starts the processes by `srun` and restarts them inside of the job, so that a crash costs
no place in the queue. It requeues the job where it was asked to stop, or a node is of no more use.
docs/distributed.md explains each line.
"""

import re
import shlex
from argparse import Namespace
from collections.abc import Sequence

from jaxpretrain.config.command import console_command
from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.rules import codes_of
from jaxpretrain.launch.training import Training

_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))")

_SCRIPT = """\
#!/bin/bash
{directives}

{runs}
newest() {{ {program} launch newest --workdir="$workdir"; }}
held() {{ squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i | grep -q '[.][0-9]'; }}

# The comment of the job keeps the count of failed starts over a requeue, as long as no newer step
# is saved.
comment=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%k)
before=$(newest) || exit
failures=0
if [[ $comment =~ ^([0-9]+)" failed at step $before"$ ]]; then failures=${{BASH_REMATCH[1]}}; fi
while true; do
    srun --kill-on-bad-exit=0 --wait=120 --cpu-bind=none {program} train "${{flags[@]}}"
    code=$?
    case $code in
        {never}) exit $code ;;
        {at_once})
            scontrol requeue "$SLURM_JOB_ID"
            exit $code
            ;;
    esac
    after=$(newest) || exit
    failures=$((after > before ? 0 : failures + 1))
    before=$after
    echo "exit code $code at step $after; $failures failed in a row without progress" >&2
    if ((failures > {max_restarts})); then exit $code; fi
    if held && sleep 30 && held; then # a node does not let go of the last start: take others
        scontrol update JobId="$SLURM_JOB_ID" Comment="$failures failed at step $after"
        scontrol requeue "$SLURM_JOB_ID"
        exit $code
    fi
done
"""


def write_script(name: str, trainings: Sequence[Training], flags: Namespace) -> str:
    """Returns the script of a job: an array of runs where there are several trainings.

    `flags` are those of `add_engine_flags`.

    Raises:
      InputError: a flag has no such value.
    """
    if flags.partition is not None and not re.fullmatch(r"[\w.,+-]+", flags.partition):
        raise InputError(f"--partition={flags.partition}: is no name of a partition")
    if flags.time is not None and 0 < _seconds(flags.time) <= flags.notice:  # 0: no limit
        raise InputError(
            f"--time={flags.time} is over before --notice={flags.notice} seconds: the job would be "
            "told to stop when it starts"
        )
    options = {
        "job-name": name,
        "array": f"0-{len(trainings) - 1}" if len(trainings) > 1 else None,
        "nodes": flags.nodes,
        "ntasks-per-node": flags.processes_per_node,
        "gpus-per-node": flags.gpus_per_node,
        "time": flags.time,
        "partition": flags.partition,
        "signal": f"TERM@{flags.notice}",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    return _SCRIPT.format(
        directives="\n".join([*lines, "#SBATCH --requeue"]),
        runs=_runs(trainings),
        program=console_command(),
        never=" | ".join(map(str, codes_of("never"))),
        at_once=" | ".join(map(str, codes_of("at once"))),
        max_restarts=flags.max_restarts,
    )


def _runs(trainings: Sequence[Training]) -> str:
    """Returns the lines that set `workdir` and `flags`, in an array to those of its run."""
    if len(trainings) == 1:
        return _run(trainings[0], "")
    cases = [f"    {i})\n{_run(t, ' ' * 8)}        ;;" for i, t in enumerate(trainings)]
    return "\n".join(["case $SLURM_ARRAY_TASK_ID in", *cases, "esac\n"])


def _run(training: Training, indent: str) -> str:
    workdir = shlex.quote(str(training.workdir))
    return f"{indent}workdir={workdir}\n{indent}flags=({training.quoted})\n"


def _seconds(time: str) -> int:
    """Returns the seconds of a time limit of SLURM; InputError where it is none."""
    found = _TIME.fullmatch(time)
    if found is None:
        raise InputError(f"--time={time}: write minutes, H:M:S or D-H:M:S, such as 24:00:00")
    days, day_hours, day_minutes, day_seconds, hours, minutes, seconds, alone = (
        int(part or 0) for part in found.groups()
    )
    return (
        86400 * days
        + 3600 * (day_hours + hours)
        + 60 * (day_minutes + minutes + alone)
        + day_seconds
        + seconds
    )
