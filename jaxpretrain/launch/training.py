"""The training command that a launcher starts elsewhere, checked before it gets there."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxpretrain.config.command import split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.train.experiment import num_microbatches, resolve
from jaxpretrain.train.flags import make_parser

_MANY = 10**9
"""Examples of data that is not opened, for durations in epochs."""
PLACES = ("--coordinator", "--num_processes", "--process_id")
"""The flags by which a launcher tells a process its place."""


@dataclass(frozen=True)
class Training:
    """A training command and the folder of its run."""

    flags: tuple[str, ...]
    """The flags of the command, in their order."""
    workdir: Path
    """The folder of the run, as the processes see it."""

    @property
    def name(self) -> str:
        """The name of the run in the lists of an engine: letters, digits and hyphens."""
        return engine_name(self.workdir)

    @property
    def quoted(self) -> str:
        """The flags as words of a shell."""
        return shlex.join(self.flags)


def engine_name(folder: Path) -> str:
    """Returns a name for what runs in a folder that every engine takes, such as olmo7b-2."""
    words = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")
    return (words if words[:1].isalpha() else f"run-{words}")[:40].rstrip("-")


def check_training(
    flags: Sequence[str], *, num_devices: int | None = None, has_place: bool = False
) -> Training:
    """Returns the training with some flags, which are those of `python -m jaxpretrain.main`.

    Neither data nor the run's folder are opened: they may be out of reach here. Where the number of
    devices is known, the mesh and the batch must fit it. `has_place` allows the flags that name the
    processes.

    Raises:
      InputError: a flag or a field of the config does not exist or has no such value, --workdir is
        missing, a flag is the launcher's to give, or the devices do not fit.
    """
    rest, overrides = split_overrides(flags)
    parsed = make_parser("").parse_args(rest)
    given = [place for place in PLACES if any(f.partition("=")[0] == place for f in rest)]
    if given and not has_place:
        raise InputError(
            f"{given[0]}: leave it out after --; the launcher gives one to each process"
        )
    if parsed.rewind_to is not None:
        raise InputError(
            "--rewind_to after --: each start would go back again; run it once by jaxpretrain train"
        )
    if parsed.help_config is not None:
        raise InputError("--help_config after --: nothing would be trained")
    experiment = apply_overrides(load_config(parsed.config), overrides)
    if experiment.data.num_examples is None:  # resolving would open the data to count them
        experiment = replace(experiment, data=replace(experiment.data, num_examples=_MANY))
    resolve(experiment)
    if num_devices is not None and experiment.mesh != "auto":
        sizes = experiment.mesh.sizes(num_devices)
        is_open = experiment.train.microbatch_size == "auto"
        train = replace(experiment.train, microbatch_size=None) if is_open else experiment.train
        num_microbatches(train, sizes)
    if parsed.workdir is None:
        raise InputError("--workdir is required after --: the folder of the run")
    return Training(tuple(flags), parsed.workdir)
