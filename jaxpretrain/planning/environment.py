"""Environment variables that JAX reads when it is imported, so nothing here imports it."""

import os
import re


def prepare_environment(target: str) -> None:
    """Hides this host's accelerators from JAX, in this process and those that it starts.

    For the target "local", the devices at hand, nothing changes. `parse_target` refuses names that
    are no targets.
    """
    if target.startswith("local"):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if cpus := re.fullmatch(r"cpu:(\d+)", target):
        count = f"--xla_force_host_platform_device_count={cpus[1]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    # Without it, the CUDA plugin refuses to load where there is no driver.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Without them, libtpu asks the network where it is and serves one process at a time.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    # Compilers warn of memory that they cannot save; the plan says the same.
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
