r"""Starts training where an engine schedules it, and starts it again when it was cut off.

    jaxpretrain launch slurm --nodes=4 --gpus_per_node=8 -- \
        --config=olmo7b --workdir=/shared/olmo7b
    jaxpretrain launch gke --image=IMAGE --accelerator=h100-80gb:4x8 -- \
        --config=olmo7b --workdir=/shared/olmo7b
    jaxpretrain launch tpu-vm --zone=us-east5-a \
        --accelerator=tpu-v5p:4x4x8 -- --config=olmo7b --workdir=/shared/olmo7b
    jaxpretrain launch local --processes=2 -- \
        --config=olmo_nano --workdir=runs/nano

Prints a script or a manifest, to be kept and edited; --submit hands it to sbatch, kubectl or gcloud
instead. `local` trains on this machine. Behind -- stand the flags of the training command.
"""

from argparse import Namespace
from collections.abc import Sequence

from jaxpretrain.config.command import Parser, list_exit_codes, run
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.launch.flags import SLURM, add_engine_flags, foreign
from jaxpretrain.storage.paths import as_path

_TPU_VM = {"zone", "spot", "runtime_version", "install"}
_LOCAL = {"processes", "once"}
ENGINES = {
    "slurm": {"submit", "notice", "max_restarts", *SLURM},
    "gke": {"submit", "notice", "max_restarts", "image", "accelerator"},
    "tpu-vm": {"submit", "max_restarts", "accelerator", *_TPU_VM},
    "local": {"max_restarts", *_LOCAL},
    "newest": {"workdir"},
}
"""Engine -> the flags that it takes. `newest` is for the scripts of engines."""

_EXIT_CODES = {
    0: "printed, submitted, or (local) the run is complete",
    1: "the client of the engine failed",
    2: "a flag or a setting is wrong, or the client of the engine is missing",
}


def main(argv: list[str]) -> int:
    """Prints, submits or runs a launch; `local` returns the exit code of training."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser = make_parser()
    if early := [item for item in argv[:split] if item.startswith("--config")]:
        parser.error(f"write -- before {early[0]}: the flags of the training command stand behind")
    flags = parser.parse_args(argv[:split])
    _require_of_engine(flags, argv[:split])
    if flags.engine == "newest":
        from jaxpretrain.launch.rules import newest_step

        if flags.workdir is None:
            parser.error("--workdir is required: the folder of the run")
        print(newest_step(flags.workdir))
        return 0
    if split == len(argv):
        parser.error("write -- and, behind it, the flags of the training command")
    from jaxpretrain.launch.engines import launch  # after the flags: it imports JAX

    return launch(flags, argv[split + 1 :])


def make_parser() -> Parser:
    """Returns the parser of the command, with the flags of all engines."""
    parser = Parser(
        prog="jaxpretrain launch",
        usage="%(prog)s ENGINE [FLAGS] -- FLAGS OF TRAINING",
        description=__doc__,
        epilog=list_exit_codes(_EXIT_CODES),
    )
    about = "slurm, gke, tpu-vm or local; newest prints the newest step that a run has saved"
    parser.add_argument("engine", metavar="ENGINE", nargs="?", help=about)
    add_engine_flags(parser)
    add = parser.add_argument_group("TPU VMs").add_argument
    add("--zone", help="zone of the cloud")
    add("--spot", action="store_true", help="cheaper VMs, which may be taken away")
    add("--runtime_version", help="software of the VMs; by default what the cloud advises")
    install = "command by which each VM installs jaxpretrain"
    add("--install", default="pip install 'jaxpretrain[tpu,gcs]'", metavar="COMMAND", help=install)
    add = parser.add_argument_group("local").add_argument
    add("--processes", type=int, default=1, help="processes of the run on this machine")
    add("--once", action="store_true", help="start once, and exit with 75 where there was progress")
    add("--workdir", type=as_path, metavar="DIR", help="for newest: the folder of the run")
    return parser


def _require_of_engine(flags: Namespace, items: Sequence[str]) -> None:
    """Raises InputError where the engine is not known, or a flag is another engine's."""
    if flags.engine is None:
        raise InputError(f"name an engine: {', '.join(ENGINES)}")
    if flags.engine not in ENGINES:
        hint = nearest(flags.engine, ENGINES) or f" The engines are {', '.join(ENGINES)}."
        raise InputError(f"there is no engine '{flags.engine}'.{hint}")
    for name, owners in foreign(items, flags.engine, ENGINES):
        raise InputError(f"--{name} is a flag of {' and '.join(owners)}, not of {flags.engine}")


if __name__ == "__main__":
    run(main)
