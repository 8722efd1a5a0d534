import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.files import (
    atomic_file,
    cache_dir,
    complete,
    only_one_process,
    relative,
    sha256_of,
    stat_of,
    unfinished,
    write_atomically,
)


def test_a_file_has_no_name_before_it_is_whole(tmp_path: Path):
    file = unfinished(tmp_path / "x").open("wb")
    file.write(b"half")
    assert not (tmp_path / "x").exists()
    file.write(b" whole")
    complete(file, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"half whole"
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"half whole").hexdigest()


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path):
    for failure in (None, ValueError):
        with contextlib.suppress(ValueError), atomic_file(tmp_path / "x") as file:
            file.write(b"new" if failure else b"old")
            assert [path.name for path in tmp_path.glob("x*")] != ["x"]
            if failure:
                raise failure
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        assert (tmp_path / "x").read_bytes() == b"old"


def test_names_and_sizes(tmp_path: Path):
    (tmp_path / "x").write_text("four")
    assert stat_of(tmp_path / "x").st_size == 4
    with pytest.raises(InputError, match="absent: cannot be read"):
        stat_of(tmp_path / "absent")
    assert relative(tmp_path / "a" / "b", tmp_path) == Path("a/b")
    assert relative(Path("/a"), Path("/b")) == Path("/a")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    write_atomically(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "x", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_the_lock_keeps_a_second_process_waiting(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "from jaxpretrain.storage.files import only_one_process\n"
        "with only_one_process(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    held = threading.Event()

    def hold():
        with only_one_process(tmp_path / "lock"):
            held.set()

    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=root) as other:
        assert other.stdout and other.stdin
        assert other.stdout.readline() == b"mine\n"
        thread = threading.Thread(target=hold)
        thread.start()
        time.sleep(0.1)
        assert not held.is_set()
        other.stdin.close()  # the other process ends, and so lets go
        thread.join(timeout=10)
        assert held.is_set()


def test_the_environment_chooses_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"


def test_the_default_lies_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("JAXPRETRAIN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "jaxpretrain"
