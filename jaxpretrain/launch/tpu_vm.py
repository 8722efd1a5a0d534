"""A script that asks Google Cloud for TPU VMs, as a queued resource, and trains on them.

Each host runs the startup script at every boot. In it, `launch local` starts the training again on
its host; the hosts meet again by themselves. docs/distributed.md explains each line.
"""

import math
import shlex
from argparse import Namespace

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.machines import read_accelerator
from jaxpretrain.launch.training import Training

_TYPES = {
    "tpu-v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "tpu-v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "tpu-v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}
"""Name of a chip -> the cloud's name, the number it counts for each chip, the usual software."""

_SCRIPT = """\
#!/bin/bash
set -euo pipefail
name={name}
zone={zone}

startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
cat > "$startup" <<'END'
#!/bin/bash
export HOME=/root JAXPRETRAIN_JOB={job}
{install} || exit
exec jaxpretrain launch local --max_restarts={max_restarts} -- {flags}
END

# What was taken away, or never came, is removed before it is asked for again.
state=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \\
    --format='value(state.state)' 2>/dev/null || true)
case $state in
    SUSPENDED | FAILED)
        gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
        ;;
esac
gcloud compute tpus queued-resources create "$name" --zone="$zone" \\
    {options}
"""


def write_script(training: Training, flags: Namespace) -> str:
    """Returns the script for a run; `flags` are those of `launch`.

    Raises:
      InputError: the machine is not known or is no TPU, or the zone is missing.
    """
    if not flags.zone or not flags.accelerator:
        raise InputError(
            "--zone and --accelerator are required: --zone=us-east5-a --accelerator=tpu-v5p:4x4x4"
        )
    target = read_accelerator(flags, "the TPU VM service", _TYPES)
    assert target.chip is not None
    kind, cores, software = _TYPES[target.chip.name]
    options = [
        f"--accelerator-type={kind}-{cores * math.prod(target.shape)}",
        f"--runtime-version={shlex.quote(flags.runtime_version or software)}",
        '--metadata-from-file=startup-script="$startup"',
    ]
    if target.num_slices > 1:
        options += [f"--node-count={target.num_slices}", '--node-prefix="$name"']
    else:
        options += ['--node-id="$name"']
    if flags.spot:
        options += ["--spot"]
    return _SCRIPT.format(
        name=training.name,
        zone=shlex.quote(flags.zone),
        job=shlex.quote(f"TPU VMs {training.name} in {flags.zone}"),
        install=flags.install,
        max_restarts=flags.max_restarts,
        flags=training.quoted,
        options=" \\\n    ".join(options),
    )
