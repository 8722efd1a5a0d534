"""What every test runs on: eight virtual CPU devices, a cache of its own, and no network.

The settings are environment variables, so that JAX takes them when a test first imports it and
commands that tests start inherit them. They stand here, not in fixtures, because test modules
import JAX while pytest collects them.
"""

import ctypes
import gc
import os
import posixpath
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

from jaxpretrain.config.command import run

_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Tests compile more than they compute: unoptimised code is there up to four times sooner, and
# XLA's older emitter, which jaxlib had until 0.10, takes half of what the newer one takes.
_XLA_FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "XLA_FLAGS": " ".join(_XLA_FLAGS),
    # Threads of XLA's CPU client. On few cores, eight devices that wait for each other in two
    # collectives at once would take them all, and wait for ever.
    "NPROC": "32",
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
if not _IS_WORKER:
    # Made once and inherited by pytest-xdist's workers: a dataset is prepared once a session, and
    # what an earlier version of the code prepared is never seen.
    os.environ["JAXPRETRAIN_CACHE"] = tempfile.mkdtemp(prefix="jaxpretrain-tests-")
    # Nothing is compiled twice in a session. A folder that is named outside is kept between them.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{os.environ['JAXPRETRAIN_CACHE']}/xla")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_unconfigure() -> None:
    """Removes the cache when the session ends."""
    if not _IS_WORKER:
        shutil.rmtree(os.environ["JAXPRETRAIN_CACHE"], ignore_errors=True)


KEPT_PROGRAMS = 50
"""Compiled programs that a test module may leave behind."""


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """Frees compiled programs after each module.

    JAX keeps every program that it has compiled, 2 MB each, also for one operation on one shape:
    all tests in one process come to 2,500 programs and 5 GB.
    """
    gc.freeze()  # else collections look at it again and again, a sixth of all time
    yield
    gc.unfreeze()
    jax = sys.modules.get("jax")
    if jax is None or len(jax.devices()[0].client.live_executables()) <= KEPT_PROGRAMS:
        return
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # glibc would keep what was freed


def _is_local(host: Any) -> bool:
    """Whether a name or address means this machine; None and "" are its own addresses."""
    host = host.decode() if isinstance(host, bytes) else host
    return not host or host in ("localhost", "::1") or host.startswith("127.")


@pytest.fixture(autouse=True, scope="session")
def _unwrapped_lines() -> Iterator[None]:
    """Tests find the texts of messages whole, on one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "10000")
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Looking up or connecting to another machine fails at once."""

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                raise PermissionError(f"tests may not connect to another machine: {address}")
            return call(self, address)

        return connect

    look_up = socket.getaddrinfo

    def look_up_local(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            raise PermissionError(f"tests may not look up another machine: {host}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", look_up_local)
        yield


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the `main` of a command in this process: (exit code, standard output and error)."""

    def call(main: Callable[[list[str]], int], *flags: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, flags)])
        with pytest.raises(SystemExit) as exit_:
            run(main)
        return exit_.value.code, *capsys.readouterr()

    return call


class _MemoryBucket(MemoryFileSystem):
    """fsspec's files in memory by the name of a bucket, whose folders appear with their files."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def __init__(self, **_: object) -> None:
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").removeprefix("gcs://").strip("/")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def mkdir(self, path: str, create_parents: bool = True, **_: object) -> None:
        pass

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        parent = posixpath.dirname(self._strip_protocol(path))
        while mode == "wb" and parent != "/" and parent not in self.pseudo_dirs:
            self.pseudo_dirs.append(parent)
            parent = posixpath.dirname(parent)
        return super()._open(path, mode=mode, **kwargs)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of an empty bucket in memory, which needs no package and no server."""
    from jaxpretrain.storage import paths

    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "cache"))
    store = paths._STORES["gs"]._replace(package="fsspec")  # which is always there
    monkeypatch.setitem(paths._STORES, "gs", store)
    monkeypatch.setattr(fsspec_backend, "fs", lambda _: _MemoryBucket())
    _MemoryBucket.store.clear()
    _MemoryBucket.pseudo_dirs[:] = [""]
    return paths.parse("gs://bucket")
