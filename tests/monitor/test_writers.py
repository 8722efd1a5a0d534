import errno
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.monitor.writers import Writers, open_writers, write_pictures
from jaxpretrain.storage.jsonl import JsonlWriter, has_lines, read_lines


def steps(workdir):
    return [record["step"] for record in read_lines(workdir / "metrics.jsonl")]


def write(workdir, resume_step, new_steps):
    with open_writers(workdir, print, resume_step=resume_step, tensorboard=False) as writers:
        for step in new_steps:
            writers.scalars(step, {"train/loss": np.float32(1.5)})


def test_resuming_goes_on_after_the_restored_step(tmp_path):
    write(tmp_path, None, range(6))
    write(tmp_path, 3, range(4, 8))
    assert steps(tmp_path) == list(range(8))


def test_starting_anew_drops_an_attempt_that_never_saved(tmp_path):
    write(tmp_path, None, range(6))
    write(tmp_path, None, range(2))
    assert steps(tmp_path) == [0, 1]


def test_numbers_of_numpy_and_jax_and_unknown_ones_are_written(tmp_path):
    with open_writers(tmp_path, print, resume_step=None, tensorboard=False) as writers:
        writers.scalars(1, {"a": jnp.float32(0.1), "b": np.int32(3), "c": None, "d": math.nan})
    [record] = read_lines(tmp_path / "metrics.jsonl")
    assert [record[name] for name in "abcd"] == [0.1, 3, None, None]


def test_only_the_primary_process_writes(tmp_path):
    with Writers(print) as writers:
        writers.scalars(0, {"train/loss": 1.0})
        writers.texts(0, {"a": "b"})
        writers.images(0, {"a": np.zeros((2, 2, 3), np.uint8)})
        writers.hparams({"seed": 0})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_warning_and_writing_resumes_when_there_is_room(tmp_path):
    class FullFor3Lines(JsonlWriter):
        num_lines = 0

        def write(self, step, scalars):
            self.num_lines += 1
            if self.num_lines <= 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(step, scalars)

    messages = []
    writers = Writers(messages.append, {"metrics": FullFor3Lines(tmp_path / "metrics.jsonl")})
    for step in range(5):
        writers.scalars(step, {"train/loss": 1.0})
    writers.close()
    assert len(messages) == 1 and "No space left" in messages[0]
    assert steps(tmp_path) == [3, 4]


def test_numbers_of_layers_have_a_file_of_their_own(tmp_path):
    with open_writers(tmp_path, print, resume_step=None, tensorboard=False) as writers:
        for step in (1, 2, 3):
            writers.signals(step, {"a/blocks": np.array([0.123456, np.inf]), "a/head": np.array(2)})
    with open_writers(tmp_path, print, resume_step=2, tensorboard=False):
        pass
    lines = read_lines(tmp_path / "signals.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert (lines[0]["a/blocks"], lines[0]["a/head"]) == ([0.1235, None], 2)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_pictures_are_written_below_the_folder_of_the_run(tmp_path):
    with open_writers(tmp_path, print, resume_step=None, tensorboard=False) as writers:
        writers.images(3, {"faces": np.zeros((2, 2, 3), np.uint8)})
    assert (tmp_path / "pictures" / "faces" / "00000003.png").exists()


def test_pictures_that_cannot_be_written_are_a_warning(tmp_path):
    (tmp_path / "pictures").write_text("in the way")
    messages = []
    with open_writers(tmp_path, messages.append, resume_step=None, tensorboard=False) as writers:
        writers.images(3, {"faces": np.zeros((2, 2, 3), np.uint8)})
    assert len(messages) == 1
    assert messages[0].startswith("warning: the pictures of step 3 are not kept")


def test_pictures_are_kept_by_name_and_step(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    for step in (0, 20):
        write_pictures(tmp_path, step, {"faces/reconstructions": pixels + step})
    folder = tmp_path / "pictures" / "faces" / "reconstructions"
    assert [path.name for path in sorted(folder.iterdir())] == ["00000000.png", "00000020.png"]
    with image_module.open(folder / "00000020.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels + 20)


def test_items_are_a_file_that_is_written_whole(tmp_path):
    file = tmp_path / "items.jsonl"
    with open_writers(tmp_path, print, resume_step=None, tensorboard=False) as writers:
        writers.items([])
        assert not file.exists()
        writers.items([{"step": 1, "item": "a"}, {"step": 1, "item": "b"}])
        writers.items({"step": 2, "item": name} for name in "ab")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"step": 2, "item": "a"}, {"step": 2, "item": "b"}]


def test_items_that_cannot_be_written_are_a_warning(tmp_path):
    messages = []
    (tmp_path / "items.jsonl").mkdir()
    writers = Writers(messages.append, workdir=tmp_path)
    writers.items([{"step": 1}])
    assert len(messages) == 1
    assert messages[0].startswith("warning: the items of the last evaluation are not kept")


def test_a_run_in_a_bucket_gets_its_files_when_they_are_published(bucket):
    workdir = bucket / "run"

    def session(resume_step, steps):
        with open_writers(workdir, print, resume_step=resume_step, tensorboard=False) as writers:
            for step in steps:
                writers.scalars(step, {"train/loss": np.float32(step)})
                writers.texts(step, {"sample": "text"})
            writers.images(steps[-1], {"mask": np.zeros((2, 2, 3), np.uint8)})
            before = has_lines(workdir / "samples.jsonl")
            writers.publish()
            return before, [line["step"] for line in read_lines(workdir / "metrics.jsonl")]

    assert session(None, [1, 2, 3]) == (False, [1, 2, 3])
    assert session(2, [3, 4]) == (True, [1, 2, 3, 4])
    assert [*(workdir / "pictures" / "mask").glob("*")] == [
        workdir / "pictures" / "mask" / f"{step:08d}.png" for step in (3, 4)
    ]
    assert session(None, [1]) == (False, [1])  # from the beginning
