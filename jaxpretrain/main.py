"""Trains a model, or goes on with a run where it stopped.

    jaxpretrain train --config=olmo_nano --workdir=runs/nano
    jaxpretrain train --config=mine.py --workdir=runs/mine --config.seed=1

Started by SLURM, Open MPI, Kubernetes or on the hosts of a TPU pod, its processes find each other.
"""

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.describe import describe, format_help
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.devices.startup import use_huge_pages
from jaxpretrain.display.progress import activity
from jaxpretrain.train import flags as flags_of_training


def main(argv: list[str]) -> int:
    """Trains, or prints help; returns the exit code."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    if flags.help_config is not None:
        config = apply_overrides(load_config(flags.config), overrides)
        print(format_help(describe(config), flags.help_config))
        return 0
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.planning.training import run_training

    return run_training(
        flags.config,
        overrides,
        flags.workdir,
        preflight_only=flags.preflight_only,
        allow_config_change=flags.allow_config_change,
        processes=(
            flags.coordinator,
            flags.num_processes,
            flags.process_id,
            flags.coordinator_port,
            flags.start_timeout,
        ),
        skipped_steps=flags.skip_steps,
        rewind_to=flags.rewind_to,
    )


def make_parser() -> Parser:
    """Returns the parser of the command."""
    return flags_of_training.make_parser(__doc__ or "")


if __name__ == "__main__":
    use_huge_pages()
    run(main)
