"""Processes end with the one that they work for, also where that one is killed."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from jaxpretrain.data.processes import end_with_parent

PROGRAM = """
import multiprocessing, os, time
from jaxpretrain.data.processes import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    time.sleep(60)
"""


def test_it_ends_when_its_parent_is_killed():
    command = [sys.executable, "-c", PROGRAM]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout
        worker = Path("/proc", parent.stdout.readline().strip(), "stat")
        assert worker.exists()
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while _is_alive(worker) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _is_alive(worker)


def test_a_process_without_a_parent_of_its_kind_waits_for_none():
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before


def _is_alive(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
