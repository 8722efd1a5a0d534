"""The flags of the engines, which `launch`, `sweep` and `scaling` take."""

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence

from jaxpretrain.config.command import Parser
from jaxpretrain.config.errors import InputError

SLURM = ("nodes", "processes_per_node", "gpus_per_node", "time", "partition")
"""The flags of SLURM alone."""

_OF_LAUNCHER = {
    "local": ("jobs",),
    "slurm": ("submit", "notice", "max_restarts", *SLURM),
    "kubernetes": ("submit", "notice", "max_restarts", "image", "accelerator"),
}
"""Launcher of many runs -> the flags that only some launchers take."""


def add_engine_flags(parser: Parser) -> None:
    """Adds the flags of SLURM and Kubernetes to a parser."""
    add = parser.add_argument_group("engines").add_argument
    add("--submit", action="store_true", help="hand it to sbatch, kubectl or gcloud")
    add("--notice", type=int, default=120, metavar="SECONDS", help="time to save before the end")
    restarts = "restarts after a crash without a newer checkpoint; with one they are not limited"
    add("--max_restarts", type=int, default=3, help=restarts)
    add = parser.add_argument_group("SLURM").add_argument
    add("--nodes", type=int, default=1, help="nodes of a run")
    add("--processes_per_node", type=int, default=1, help="processes that share a node's GPUs")
    add("--gpus_per_node", type=int, help="GPUs of a node")
    add("--time", help="time limit, as SLURM writes it: minutes, H:M:S or D-H:M:S")
    add("--partition", help="partition of the cluster")
    add = parser.add_argument_group("Kubernetes").add_argument
    add("--image", help="container image with jaxpretrain")
    machine = "machine as plan --target writes it: h100-80gb:2x8, 2xtpu-v5p:4x4x4 (two slices)"
    add("--accelerator", metavar="MACHINE", help=machine)


def add_runs_flags(parser: Parser) -> None:
    """Adds the flags of a command that trains many runs: where, how many at a time, how told."""
    add = parser.add_argument
    add("--jobs", type=int, default=1, help="runs at a time, on equal shares of GPUs and cores")
    add(
        "--launcher",
        choices=("local", "slurm", "kubernetes"),
        default="local",
        help="where the runs go: processes of this machine, a SLURM job array, an indexed Job",
    )
    add("--retry_failed", action="store_true", help="run again what failed before")
    add("--json", action="store_true", help="one JSON document on standard output")
    add_engine_flags(parser)


def foreign(
    items: Sequence[str], place: str, table: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, list[str]]]:
    """Yields each flag among arguments that is not of a place, with the places that it is of.

    `table` has the flags of each place; flags that are of none of them are passed over.
    """
    for item in items:
        name = item.partition("=")[0].removeprefix("--")
        owners = [owner for owner, names in table.items() if name in names]
        if item.startswith("--") and owners and place not in owners:
            yield name, owners


def require_runs_flags(flags: Namespace, items: Sequence[str]) -> None:
    """Raises InputError where flags of `add_runs_flags`, given as `items`, do not fit together."""
    if flags.jobs < 1:
        raise InputError(f"--jobs={flags.jobs}: must be positive")
    for name, owners in foreign(items, flags.launcher, _OF_LAUNCHER):
        wanted = " or ".join(f"--launcher={place}" for place in owners)
        raise InputError(f"--{name} goes with {wanted}, not with {flags.launcher}")
    if flags.launcher != "local" and flags.json:
        raise InputError("--json: --launcher prints what the engine gets; leave one of them out")


def require_sensible(flags: Namespace) -> None:
    """Raises InputError where a number among the flags of `add_engine_flags` is out of range."""
    for name in ("notice", "nodes", "processes_per_node", "gpus_per_node"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise InputError(f"--{name}={value}: must be positive")
    if flags.gpus_per_node is not None and flags.gpus_per_node % flags.processes_per_node:
        raise InputError(
            f"--gpus_per_node={flags.gpus_per_node} does not divide over "
            f"--processes_per_node={flags.processes_per_node}"
        )
    if flags.max_restarts < 0:
        raise InputError(f"--max_restarts={flags.max_restarts}: must not be negative")
