import atexit
from typing import Any

import jax
import pytest
from jax._src import cloud_tpu_init

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import distributed

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
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False, None),
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
    launcher = distributed.find_launcher(environment)
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
        distributed.find_launcher(environment)


def test_kubernetes_needs_its_package(monkeypatch: pytest.MonkeyPatch):
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package kubernetes"):
        distributed.find_launcher(environment)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())
    launcher = distributed.find_launcher(environment)
    assert launcher == distributed.Launcher("Kubernetes", None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", None, None), "--num_processes and --process_id is missing"),
        (("host:1", 2, None), "--process_id is missing: --coordinator, --num_processes,"),
        ((None, None, 0), "--coordinator and --num_processes is missing"),
        (("host", 2, 0), "--coordinator=host: write HOST:PORT"),
        (("host:", 2, 0), "write HOST:PORT"),
        ((":12", 2, 0), "write HOST:PORT"),
        (("host:99999", 2, 0), "write HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2: the ids of --num_processes=2 processes are 0 to 1"),
        (("host:1", 2, -1), "--process_id=-1"),
    ],
)
def test_flags_that_do_not_fit_together_are_one_line(flags: Any, message: str):
    with pytest.raises(InputError) as error:
        distributed.start(*flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not jax.distributed.is_initialized()


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """And an error passes as it is, and to a regular exit."""
    registered = []
    monkeypatch.setattr(atexit, "register", lambda *args: registered.append(args))
    distributed.start(None, None, None)
    assert distributed.is_primary() and not jax.distributed.is_initialized()
    assert distributed.exchange("name", "value") == ["value"]
    assert distributed.first_problem("name", None) is None
    error = InputError("one line")
    with (
        pytest.raises(InputError) as caught,
        distributed.leaving_at_failure(),
        distributed.fail_together("name") as same,
    ):
        same["config"] = {"seed": 1}
        raise error
    assert caught.value is error and not registered
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("x"), 2), (KeyboardInterrupt(), 130), (ValueError("x"), 1)]
)
def test_among_several_an_error_ends_the_process_at_once(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
):
    registered = []
    monkeypatch.setattr(atexit, "register", lambda *args: registered.append(args))
    monkeypatch.setattr(distributed.global_state, "num_processes", 2)
    with pytest.raises(type(error)), distributed.leaving_at_failure():
        raise error
    assert registered == [(distributed._leave, code)]
    for agreed in (SystemExit(2), distributed.AgreedError("x")):  # all leave together
        with pytest.raises(type(agreed)), distributed.leaving_at_failure():
            raise agreed
    assert len(registered) == 1
