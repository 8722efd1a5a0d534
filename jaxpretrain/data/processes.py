"""A way for processes that work for another one not to outlive it."""

import multiprocessing
import multiprocessing.process
import os
import threading


def end_with_parent() -> None:
    """Ends this process when its parent ends: one that is killed tells its processes nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
