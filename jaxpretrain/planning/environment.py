"""What this process tells JAX before a plan; so JAX is not imported here."""

import os
import re


def prepare_environment(target: str) -> None:
    """Keeps JAX, in this process and those it starts, from this host's accelerators.

    Unless the target is "local", the devices at hand. Names that are no target are left to
    `parse_target`.
    """
    if target.startswith("local"):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if cpus := re.fullmatch(r"cpu:(\d+)", target):
        count = f"--xla_force_host_platform_device_count={cpus[1]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    # Or the CUDA plugin refuses to load where there is no driver.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Or libtpu asks the network where it is, and lets one process at a time describe TPUs.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    # What compilers say of memory that they cannot save is no news here.
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
