"""The NVIDIA GPUs that a process may use, found without JAX, which would take their memory."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def count_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """Returns the number of GPUs that a process with this environment sees."""
    allowed = _allowed(environment)
    if allowed is not None:
        return len(allowed)
    return len([path for path in devices.glob("nvidia*") if path.name[6:].isdecimal()])


def gpu_ids(environment: Mapping[str, str]) -> list[str]:
    """Returns what `CUDA_VISIBLE_DEVICES` calls each GPU that such a process sees."""
    return _allowed(environment) or [str(number) for number in range(count_gpus(environment))]


def named_gpus(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the id and the name of each GPU that such a process sees, as the driver says."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split(", ", 2) for line in done.stdout.splitlines() if line.count(", ") > 1]
    allowed = _allowed(environment)
    return [
        (wanted, name)
        for wanted in ([index for index, _, _ in rows] if allowed is None else allowed)
        for index, uuid, name in rows
        # The driver takes the beginning of a UUID too.
        if wanted == index or (wanted.startswith("GPU-") and uuid.startswith(wanted))
    ]


def _allowed(environment: Mapping[str, str]) -> list[str] | None:
    text = environment.get(_VISIBLE)
    return None if text is None else [one.strip() for one in text.split(",") if one.strip()]
