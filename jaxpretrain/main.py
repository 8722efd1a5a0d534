"""Trains: python -m jaxpretrain.main --config=configs/olmo_nano.py --workdir=runs/nano

Any field of the config can be set on the command line: --config.optim.schedule.peak=1e-3.
The same command on the same folder goes on where it stopped. Started by SLURM, Open MPI,
Kubernetes or on the hosts of a TPU pod, its processes find each other; see docs/distributed.md.
"""

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.describe import describe, format_help
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_path
from jaxpretrain.devices.huge_pages import use_huge_pages


def main(argv: list[str]) -> int:
    """Trains; returns the exit code.

    0 done; 1 the last state could not be saved; 2 bad input; 3 the run judged itself: a loss that
    is no number, or a finding of `monitor.stop_on`; 75 asked to stop, saved, run again to go on.
    """
    rest, overrides = split_overrides(argv)
    flags = _parser().parse_args(rest)
    if flags.help_config:
        print(format_help(describe(apply_overrides(load_config(flags.config), overrides))))
        return 0
    from jaxpretrain.planning.launch import launch  # after the flags: it imports JAX

    return launch(
        flags.config,
        overrides,
        flags.workdir,
        preflight_only=flags.preflight_only,
        allow_config_change=flags.allow_config_change,
        processes=(flags.coordinator, flags.num_processes, flags.process_id),
    )


def _parser() -> Parser:
    parser = Parser(prog="python -m jaxpretrain.main", description="Trains a model.")
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:ARGUMENT")
    parser.add_argument("--workdir", type=as_path, help="folder of the run")
    parser.add_argument("--help_config", action="store_true", help="explain every config field")
    parser.add_argument(
        "--allow_config_change",
        action="store_true",
        help="go on in a folder whose run had another config",
    )
    parser.add_argument(
        "--preflight_only",
        action="store_true",
        help="compile, say what the run takes of the devices' memory, and do not train",
    )
    many = parser.add_argument_group("several processes, where no launcher tells of them")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    many.add_argument("--num_processes", type=int, help="how many there are")
    many.add_argument("--process_id", type=int, help="which of them this is, from 0")
    return parser


if __name__ == "__main__":
    use_huge_pages()
    run(main)
