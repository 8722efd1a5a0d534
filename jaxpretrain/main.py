"""Trains: python -m jaxpretrain.main --config=configs/olmo_nano.py --workdir=runs/nano

Any field of the config can be set on the command line: --config.optim.schedule.peak=1e-3.
The same command on the same folder goes on where it stopped. Started by SLURM, Open MPI,
Kubernetes or on the hosts of a TPU pod, its processes find each other; see docs/distributed.md.
"""

import sys
from pathlib import Path

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.describe import describe, format_help
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.parallel.host_memory import use_huge_pages

EXIT_PREEMPTED = 75


def main(argv: list[str]) -> int:
    """Exit codes: 0 done; 2 bad input; 75 asked to stop, saved, run again to go on."""
    rest, overrides = split_overrides(argv)
    parser = Parser(prog="python -m jaxpretrain.main", description="Trains a model.")
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:ARGUMENT")
    parser.add_argument("--workdir", type=Path, help="folder of the run")
    parser.add_argument("--help_config", action="store_true", help="explain every config field")
    parser.add_argument(
        "--allow_config_change",
        action="store_true",
        help="go on in a folder whose run had another config",
    )
    many = parser.add_argument_group("several processes, where no launcher tells of them")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    many.add_argument("--num_processes", type=int, help="how many there are")
    many.add_argument("--process_id", type=int, help="which of them this is, from 0")
    flags = parser.parse_args(rest)

    from jaxpretrain.parallel import distributed  # after the flags: it imports JAX

    if not flags.help_config:
        distributed.start(flags.coordinator, flags.num_processes, flags.process_id)
    with distributed.leaving_at_failure():
        with distributed.agreed("config"):
            config = load_config(flags.config)
            validate(config)
            config = apply_overrides(config, overrides)
            if flags.help_config:
                print(format_help(describe(config)))
                return 0
            if flags.workdir is None:
                parser.error("--workdir is required: the folder of the run")

        from jaxpretrain.train.run import train_experiment

        finished = train_experiment(
            config, flags.workdir, allow_config_change=flags.allow_config_change
        )
    if not finished:
        if distributed.is_primary():
            print("stopped and saved; run the same command to go on", file=sys.stderr)
        return EXIT_PREEMPTED
    return 0


if __name__ == "__main__":
    use_huge_pages()
    run(main)
