"""Many processes as one run: how they find each other, agree, and end together at bad input.

JAX joins the processes and moves arrays between them. Here they talk through its coordination
service, which works before the devices are touched and has time limits, unlike sums over devices.
"""

import atexit
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import jax
from jax._src.clusters import ClusterEnv  # no public name tells what a launcher says
from jax._src.distributed import global_state  # nor is there one for the coordination service
from jax.errors import JaxRuntimeError

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.gpus import count_gpus
from jaxpretrain.display.wording import count_of
from jaxpretrain.parallel.launchers import (
    find_launcher,
    local_gpus,
    named_devices,
    require_consistent,
)
from jaxpretrain.parallel.presence import Presence
from jaxpretrain.parallel.roll_call import MissingProcesses, call_roll

PATIENCE_SECONDS = 600
"""Seconds that a process waits for the others where all must agree; one may read data slowly."""
JAX_SECONDS = 600
"""Seconds without a heartbeat after which JAX aborts the processes, with a stack of its own code.
It may do so after half of them, long after `peers.SILENT_SECONDS`: the watchdog comes first."""


class AgreedError(InputError):
    """Bad input of one process, which all of them know of."""


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    port: int | None = None,
    seconds: float = 300.0,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Joins the processes of the run where there are several, and says so in one line.

    Call it before anything that starts JAX's backend. The first three arguments are the flags that
    name the processes by hand; without them the environment decides. `port` replaces the port of a
    launcher's address. Processes that do not come within the given seconds are named, and all that
    came exit with code 1.

    `beat` is called when all have come, at about the same time in all of them.

    SIGUSR1 and SIGUSR2 are passed on as SIGTERM, which JAX's preemption service waits for.

    Raises:
      InputError: the arguments do not fit together, a launcher does not say where to meet, or the
        environment has variables of another job.
    """
    if port is not None and not 0 < port < 2**16:
        raise InputError(f"--coordinator_port={port}: ports are numbers from 1 to 65535")
    if not seconds > 0:
        raise InputError(f"--start_timeout={seconds:g}: must be positive")
    by_hand = _check(coordinator, num_processes, process_id)
    launcher, gpus = None, named_devices(os.environ)
    if not by_hand:
        launcher = find_launcher(os.environ)
        require_consistent(os.environ, launcher)
        if launcher is None:
            return
        gpus = gpus or local_gpus(os.environ, count_gpus(os.environ))
        coordinator, num_processes, process_id, _ = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, (), launcher.method, int(seconds)
        )
    assert coordinator is not None and num_processes is not None and process_id is not None
    if port is not None:
        coordinator = f"{coordinator.rpartition(':')[0]}:{port}"
    try:
        call_roll(coordinator, num_processes, process_id, seconds, _say)
    except MissingProcesses as error:
        if str(error):
            _say(f"error: {error}")
        raise SystemExit(1) from None
    beat()
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        gpus,
        cluster_detection_method="deactivate",
        # All have come: the watchdog is to notice first that one stands still from here on.
        initialization_timeout=int(seconds) + JAX_SECONDS,
        heartbeat_timeout_seconds=JAX_SECONDS,
    )
    _have_met(coordinator, num_processes, launcher.name if launcher else "flags")


def _have_met(coordinator: str, num_processes: int, source: str) -> None:
    """Sends signals on, connects the processes, and says who has met."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    _connect_presence(coordinator.rpartition(":")[0].strip("[]"), num_processes)
    if is_primary():
        _say(f"{count_of(num_processes, 'process')}, by {source}, coordinator {coordinator}")


def is_primary() -> bool:
    """Returns True in the process that prints and writes for all; the backend need not run."""
    return global_state.process_id == 0


_presences: list[Presence] = []  # one, once the processes have met


def _connect_presence(host: str, num_processes: int) -> None:
    """Connects the processes, so that they notice where one dies; `host` is that of process 0."""
    presence = Presence(process_id())
    _presences[:] = [presence]
    if is_primary():
        publish("presence", presence.listen(num_processes))
    else:
        presence.connect(host, _what_the_first_tells)


def _what_the_first_tells() -> str:
    """Waits for what process 0 tells about its connections; OSError: it tells nothing."""
    assert global_state.client is not None
    try:
        return global_state.client.blocking_key_value_get(
            "jaxpretrain/published/presence/0", 60_000
        )
    except JaxRuntimeError as error:
        raise OSError(str(error)) from error


def leave() -> None:
    """Tells the other processes that this one ends as they do, and so is not lost."""
    for presence in _presences:
        presence.leave()


def wait_until_gone(processes: Collection[int], seconds: float) -> None:
    """Waits in process 0 until others have ended, for so many seconds at most."""
    for presence in _presences:
        presence.wait_until_gone(processes, seconds)


def process_id() -> int:
    """Returns the number of this process; the backend need not run."""
    return global_state.process_id or 0


def num_processes() -> int:
    """Returns the number of processes of the run; the backend need not run."""
    return global_state.num_processes or 1


def has_others() -> bool:
    """Returns True in a run of several processes."""
    return global_state.client is not None and global_state.num_processes > 1


def publish(name: str, value: str) -> None:
    """Shows a value to the other processes, in place of the one before; waits for nobody."""
    assert global_state.client is not None
    key = f"jaxpretrain/published/{name}/{global_state.process_id}"
    global_state.client.key_value_set(key, value, allow_overwrite=True)


def published(name: str) -> dict[int, str]:
    """Returns the last value of each process that has published one under `name`."""
    assert global_state.client is not None
    found = global_state.client.key_value_dir_get(f"jaxpretrain/published/{name}/")
    return {int(path.rpartition("/")[2]): text for path, text in found}


def exchange(name: str, value: str, seconds: float = PATIENCE_SECONDS) -> list[str]:
    """Returns the value of each process, in their order; all wait until all have given one.

    All processes must call this with the same names in the same order. One that does not come for
    so many seconds, or has died, is an error (`jax.errors.JaxRuntimeError`) for the others.
    """
    client = global_state.client
    if client is None:
        return [value]
    # The service counts how often this process was here, so that names can be used again.
    turn = client.key_value_increment(f"jaxpretrain/turn/{name}/{global_state.process_id}", 1)
    key = f"jaxpretrain/{name}/{turn}"
    client.key_value_set(f"{key}/{global_state.process_id}", json.dumps(value))
    client.wait_at_barrier(key, int(seconds * 1000))
    given = {path.rpartition("/")[2]: text for path, text in client.key_value_dir_get(f"{key}/")}
    return [json.loads(given[str(i)]) for i in range(global_state.num_processes)]


def first_problem(name: str, problem: str | None) -> str | None:
    """Returns the problem of the first process that has one, the same in all processes."""
    return next((found for found in exchange(name, problem or "") if found), None)


@contextmanager
def fail_together(name: str) -> Iterator[dict[str, object]]:
    """Ends all processes where one of them raises InputError inside, so that none waits for it.

    Yields a dict for the JSON values, by name, that must be the same in all processes. The first
    process raises AgreedError, with the problem of any of them or a value that differs; the others
    raise SystemExit, with the same exit code.
    """
    same: dict[str, object] = {}
    if global_state.client is None:
        yield same
        return
    error = None
    try:
        yield same
    except InputError as caught:
        error = caught
    problem = first_problem(name, None if error is None else str(error))
    if problem is None:
        problem = _difference(exchange(name, json.dumps({k: _digest(v) for k, v in same.items()})))
    if problem is None:
        return
    if not is_primary():
        raise SystemExit(2)
    raise AgreedError(problem) from error


@contextmanager
def leaving_at_failure() -> Iterator[None]:
    """Ends this process at an exception from inside, without waiting for the others.

    JAX would have it wait at exit, for minutes, for processes that wait for its part of a sum. Once
    it is gone their sums fail, or the coordination service ends them.
    """
    try:
        yield
        leave()
    except (SystemExit, AgreedError):  # so do the others
        leave()
        raise
    except BaseException as error:
        if isinstance(error, JaxRuntimeError) and _presences and _presences[0].is_lost.wait(3.0):
            time.sleep(5.0)  # the line about the lost process says it, and ends this one
        if global_state.num_processes > 1:
            codes = {InputError: 2, KeyboardInterrupt: 130}
            # Python has printed the error by then; JAX's own, earlier registration comes later.
            atexit.register(_leave, codes.get(type(error), 1))
        raise


def _leave(code: int) -> None:
    """Ends the process after those that fail for the same reason had time to say so."""
    if (client := global_state.client) is not None:
        with suppress(jax.errors.JaxRuntimeError):
            client.wait_at_barrier("jaxpretrain/leaving", 5000)
            leave()
    if is_primary():  # the service lives here: processes that lose it are aborted
        time.sleep(0.5)
    os._exit(code)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> bool:
    """Returns True where the flags name the processes; raises InputError where they do not fit."""
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        return False
    if missing:
        raise InputError(f"{' and '.join(missing)} is missing: {', '.join(given)} go together")
    assert coordinator is not None and num_processes is not None and process_id is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator={coordinator}: write HOST:PORT, such as 10.0.0.1:1234")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: the ids of --num_processes={num_processes} processes are "
            f"0 to {num_processes - 1}"
        )
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _difference(documents: list[str]) -> str | None:
    first, *others = map(json.loads, documents)
    for i, other in enumerate(others, start=1):
        for name, digest in first.items():
            if other[name] != digest:
                return f"process {i} has another {name} than process 0: start all of them alike"
    return None
