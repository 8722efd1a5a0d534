import pytest
from jax._src import cloud_tpu_init

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import launchers
from jaxpretrain.parallel.launchers import (
    Launcher,
    local_gpus,
    named_devices,
    require_consistent,
)

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}
TPU = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "on_tpu", "method"),
    [
        ({}, False, None),
        (SLURM, False, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False, None),
        ({name: value for name, value in SLURM.items() if "LOCALID" not in name}, False, None),
        (MPI, False, "ompi"),
        (MPI | SLURM, False, "ompi"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        (TPU, True, "gketpu"),
        (TPU, False, None),
        (TPU | {"TPU_WORKER_HOSTNAMES": "host-0"}, True, None),
        ({}, True, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),
    ],
)
def test_a_launcher_is_known_by_its_environment(
    environment: dict[str, str],
    on_tpu: bool,
    method: str | None,
    monkeypatch: pytest.MonkeyPatch,
):
    """Also that it started several: the script of a batch job, or one task, is a run by itself."""
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", on_tpu)
    launcher = launchers.find_launcher(environment)
    assert (launcher.method if launcher else None) == method


def test_what_is_found_is_what_jax_finds(monkeypatch: pytest.MonkeyPatch):
    """JAX goes by names of its own, and needs more of the environment than we look at."""
    from jax._src.clusters import ClusterEnv

    clusters = {cluster.name: cluster for cluster in ClusterEnv._cluster_types}
    assert {"slurm", "ompi", "gketpu", "gcetpu"} <= clusters.keys()
    for environment, method, place in ((SLURM, "slurm", (4, 3)), (MPI, "ompi", (2, 0))):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            cluster = clusters[method]
            assert cluster.is_env_present()
            assert (cluster.get_process_count(), cluster.get_process_id()) == place


def test_open_mpi_without_an_address_is_told_to_name_one():
    environment = {name: value for name, value in MPI.items() if "hnp" not in name}
    with pytest.raises(InputError, match="add --coordinator=HOST:PORT --num_processes="):
        launchers.find_launcher(environment)


def test_kubernetes_needs_its_package(monkeypatch: pytest.MonkeyPatch):
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package kubernetes"):
        launchers.find_launcher(environment)
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: object())
    launcher = launchers.find_launcher(environment)
    assert launcher == launchers.Launcher("Kubernetes", None)


SLICES = {
    "MEGASCALE_COORDINATOR_ADDRESS": "host-0",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


@pytest.mark.parametrize(
    ("environment", "launcher", "message"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1"},
            Launcher("SLURM", "slurm"),
            "JAX_COORDINATOR_ADDRESS=a:1, but the processes are started by SLURM: unset it",
        ),
        (SLICES, Launcher("SLURM", "slurm"), "MEGASCALE_NUM_SLICES=2 is for .* started by SLURM"),
        (SLICES, None, "but no launcher is found: it is of another job; unset MEGASCALE_"),
        (
            {"MEGASCALE_NUM_SLICES": "2"},
            Launcher("GKE on TPU", "gketpu"),
            "is set without MEGASCALE_COORDINATOR_ADDRESS and MEGASCALE_SLICE_ID",
        ),
        (
            SLICES | {"MEGASCALE_SLICE_ID": "2"},
            Launcher("GKE on TPU", "gketpu"),
            "MEGASCALE_SLICE_ID=2 is none of MEGASCALE_NUM_SLICES=2",
        ),
    ],
)
def test_variables_of_another_job_are_refused_by_name(environment, launcher, message):
    with pytest.raises(InputError, match=message):
        require_consistent(environment, launcher)


def test_what_fits_together_is_taken():
    require_consistent({}, None)
    require_consistent(SLURM, Launcher("SLURM", "slurm"))
    require_consistent(SLICES, Launcher("GKE on TPU", "gketpu"))


def test_slurm_variables_of_another_job_are_refused():
    with pytest.raises(InputError, match="SLURM_PROCID=9 is no place among SLURM_NTASKS=4"):
        launchers.find_launcher(SLURM | {"SLURM_PROCID": "9"})
    with pytest.raises(InputError, match="SLURM_NTASKS=many: must be a number"):
        launchers.find_launcher(SLURM | {"SLURM_NTASKS": "many"})


@pytest.mark.parametrize(
    ("tasks", "node", "place", "visible", "gpus"),
    [
        ("1(x2)", 1, 0, 8, list(range(8))),  # one process a node has all
        ("8(x2)", 1, 3, 8, [3]),  # one a GPU
        ("2(x2)", 0, 1, 8, [4, 5, 6, 7]),
        ("4,2", 1, 1, 8, [4, 5, 6, 7]),  # nodes that differ
        ("8(x2)", 0, 3, 1, None),  # --gpus-per-task: it sees its own alone
        ("2(x2)", 0, 1, 4, None),  # and so where these are several
        ("2(x2)", 0, 1, 0, None),  # no GPUs
    ],
)
def test_the_gpus_of_a_process_are_found(tasks, node, place, visible, gpus):
    environment = SLURM | {
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(place),
        "SLURM_GPUS_ON_NODE": "8",
    }
    assert local_gpus(environment, visible) == gpus
    assert local_gpus(environment | {"JAX_LOCAL_DEVICE_IDS": "5"}, visible) is None


def test_gpus_that_do_not_divide_are_asked_for_in_one_line():
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_NODEID": "0"}
    with pytest.raises(InputError, match="8 GPUs do not divide over the 3 .*JAX_LOCAL_DEVICE_IDS="):
        local_gpus(environment, 8)


def test_open_mpi_says_who_shares_a_host():
    environment = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert local_gpus(environment, 4) == [2, 3]
    assert local_gpus({}, 4) is None


def test_devices_by_name_are_numbers():
    assert named_devices({}) is None and named_devices({"JAX_LOCAL_DEVICE_IDS": ""}) is None
    assert named_devices({"JAX_LOCAL_DEVICE_IDS": "0, 3"}) == [0, 3]
    for text in ("abc", "0,", "-1", "0 1"):
        with pytest.raises(InputError, match=f"^JAX_LOCAL_DEVICE_IDS={text}: must be numbers"):
            named_devices({"JAX_LOCAL_DEVICE_IDS": text})


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_PROCID"])
def test_slurm_variables_that_are_no_numbers_are_refused_by_name(name: str):
    with pytest.raises(InputError, match=f"^{name}=abc: must be a number"):
        launchers.find_launcher(SLURM | {name: "abc"})
