import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Layout
from jaxpretrain.train.step import TrainState
from tests.checkpoints.conftest import (
    assert_equal,
    data_files,
    flip,
    layout_of,
    like_of,
    save,
    shardings,
    state_of,
    truncate,
    values_of,
)

# Orbax leaves the other reads of a damaged checkpoint unfinished, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_names_are_flat_and_know_no_classes():
    names = to_named(values_of())
    assert sorted(names) == [
        "optimizer/adam/count",
        "optimizer/adam/mu/b",
        "optimizer/adam/mu/w",
        "params/b",
        "params/w",
        "rng",
        "step",
    ]
    assert_equal(from_named(like_of(layout_of()), names), values_of())


def test_what_is_saved_comes_back_bit_for_bit_with_its_extras(saved: Path):
    checkpoints = Checkpoints(saved / "checkpoints")
    assert checkpoints.steps() == [1, 2, 3]
    layout = layout_of()
    found = checkpoints.restore_newest(like_of(layout))
    assert found is not None
    step, state, extra = found
    assert (step, extra) == (3, {"data_position": 3})
    assert_equal(state, values_of(3))
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(shardings(layout)), strict=True
    ):
        assert leaf.sharding == sharding
    assert_equal(checkpoints.restore(1, like_of(layout))[0], values_of(1))


@pytest.mark.parametrize(
    "layout",
    [layout_of(num_devices=1), layout_of(2, 2, 2), layout_of(1, 1, 8), layout_of(num_devices=4)],
)
def test_another_mesh_gets_the_same_values(saved: Path, layout: Layout):
    state, _ = Checkpoints(saved / "checkpoints").restore(2, like_of(layout))
    assert_equal(state, values_of(2))
    assert state.params["w"].sharding == shardings(layout).params["w"]


def test_bits_survive_that_are_no_numbers(tmp_path: Path):
    """NaN payloads, negative zero, subnormals; and a dtype of two bytes."""
    values = {
        "f": np.array([0x7FC00001, 0x80000000, 1, 0xFF800000], np.uint32).view(np.float32),
        "h": np.array([1.5, -0.0, np.nan]).astype(jnp.bfloat16),
        "i": np.array([-(2**31), 2**31 - 1], np.int32),
    }
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = jax.device_put(values)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    like = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for name, x in state.items()
    }
    found, _ = checkpoints.restore(1, like)
    checkpoints.wait()
    for name, value in values.items():
        assert np.asarray(found[name]).tobytes() == value.tobytes(), name


def test_a_saved_state_may_be_donated_at_once(tmp_path: Path):
    """The save is asynchronous: what the next step writes into the same memory must not show."""
    layout = layout_of()
    overwrite = jax.jit(
        lambda state: jax.tree.map(lambda x: x * 0 + 1, state),
        donate_argnums=0,
        out_shardings=shardings(layout),
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for seed in range(1, 6):
        state = state_of(layout, seed)
        checkpoints.save(seed, state, {})
        state = overwrite(state)
    checkpoints.wait()
    for seed in range(1, 6):
        assert_equal(checkpoints.restore(seed, like_of(layout))[0], values_of(seed))
    checkpoints.wait()


def test_the_newest_are_kept_and_multiples_for_good(tmp_path: Path):
    save(tmp_path / "checkpoints", *range(1, 8), keep_last=2, keep_every=3)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3, 6, 7]


def test_a_step_below_the_newest_is_saved_too(copy: Path):
    save(copy, 0)
    assert Checkpoints(copy).steps() == [0, 1, 2, 3]


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path):
    assert Checkpoints(tmp_path / "checkpoints").restore_newest(like_of(layout_of())) is None


def test_what_interrupted_saves_left_does_not_count_and_goes_at_the_next_start(copy: Path):
    """Under the temporary names of Orbax. Who only reads leaves them: a save may be under way."""
    for name in ("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1700000000"):
        shutil.copytree(copy / "3", copy / name)
    (copy / "notes.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(copy, read_only=True).steps() == [1, 2, 3]
    assert len(list(copy.iterdir())) == 6
    checkpoints = Checkpoints(copy)
    assert {path.name for path in copy.iterdir()} == {"1", "2", "3", "notes.orbax-checkpoint-tmp"}
    checkpoints.save(4, state_of(layout_of(), 4), {})
    checkpoints.wait()
    assert_equal(checkpoints.restore(4, like_of(layout_of()))[0], values_of(4))


def test_in_a_bucket_a_step_counts_from_its_commit_on(bucket: Path):
    """What interrupted saves left goes at the next start; other names are nobody's business."""
    for name in ("5/commit_success.txt", "5/state/0", "15/state/0", "corrupt/commit_success.txt"):
        (bucket / "checkpoints" / name).write_text("")
    assert Checkpoints(bucket / "checkpoints", read_only=True).steps() == [5]
    assert (bucket / "checkpoints/15/state/0").exists()
    assert Checkpoints(bucket / "checkpoints").steps() == [5]
    assert not (bucket / "checkpoints/15").exists()
    assert (bucket / "checkpoints/5/state/0").exists()
    assert (bucket / "checkpoints/corrupt/commit_success.txt").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(InputError, match=f"checkpoints, a link to {tmp_path}/gone/away, cannot"):
        Checkpoints(tmp_path / "checkpoints")


def test_the_document_of_a_checkpoint_can_be_amended(copy: Path):
    checkpoints = Checkpoints(copy)
    checkpoints.amend(3, data_position=30)
    state, extra = checkpoints.restore(3, like_of(layout_of()))
    assert_equal(state, values_of(3))
    assert extra == {"data_position": 30}


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damaged_arrays_fall_back_loudly_to_the_checkpoint_before(copy: Path, damage, capsys):
    damage(data_files(copy, 3)[-1])
    found = Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert found is not None and found[0] == 2
    assert_equal(found[1], values_of(2))
    aside = copy.parent / "corrupt" / "3"
    assert aside.is_dir() and not (copy / "3").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("warning: checkpoint 3 is damaged")
    assert str(aside) in error


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("arrays",), [1]),
        (("arrays", "params/w"), None),
        (("arrays", "params/w", "shape"), 64),
        (("arrays", "params/w", "dtype"), "float3"),
        (("arrays", "params/w", "checksum"), "1"),
        (("clock",), [1]),
        (("clock",), {"train": "1"}),
        (("origin",), 3),
    ],
)
def test_metadata_of_other_types_falls_back_too(copy: Path, keys: tuple[str, ...], value: Any):
    path = copy / "3" / "meta" / "metadata"
    document = json.loads(path.read_text())
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(document))
    found = Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert found is not None and found[0] == 2


def test_an_array_that_orbax_does_not_list_falls_back_too(copy: Path):
    path = copy / "3" / "state" / "_METADATA"
    document = json.loads(path.read_text())
    del document["tree_metadata"]["('params/w',)"]
    path.write_text(json.dumps(document))
    found = Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert found is not None and found[0] == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_damaged_metadata_falls_back_too(copy: Path, content: bytes):
    (copy / "3" / "meta" / "metadata").write_bytes(content)
    found = Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert found is not None and found[0] == 2


def test_a_changed_value_is_noticed_by_its_checksum(copy: Path):
    """Storage may hand back other bytes without an error: here, another step's arrays."""
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(copy / "2" / "state", copy / "3" / "state")
    with pytest.raises(CorruptCheckpoint, match="checksum of .* differs"):
        Checkpoints(copy).restore(3, like_of(layout_of()))


def test_two_damaged_copies_of_a_step_are_both_kept_aside(copy: Path):
    (copy.parent / "corrupt" / "3").mkdir(parents=True)
    truncate(data_files(copy, 3)[-1])
    Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert sorted(path.name for path in (copy.parent / "corrupt").iterdir()) == ["3", "3.2"]


def test_with_all_damaged_nothing_starts_anew(copy: Path):
    """Neither now nor when the same command is run again."""
    for step in (1, 2, 3):
        truncate(data_files(copy, step)[-1])
    for _ in range(2):
        with pytest.raises(InputError, match="no checkpoint can be read, all are in .*corrupt"):
            Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert len(list((copy.parent / "corrupt").iterdir())) == 3


def test_where_checkpoints_are_a_link_to_another_file_system_a_damaged_one_stays_there(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """`corrupt/` then has a link to it. Nothing of it is copied, however large it is."""
    there, rename = tmp_path / "other file system", os.rename
    copy.rename(there)
    copy.symlink_to(there)

    def rename_inside(source: Any, target: Any) -> None:
        if Path(source).resolve().is_relative_to(there) != (Path(target).parent.resolve() == there):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_inside)
    for step in (3, 2):
        truncate(data_files(copy, step)[-1])
    found = Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert found is not None and found[0] == 1
    assert Checkpoints(copy).steps() == [1]
    error = capsys.readouterr().err
    for step in (2, 3):
        aside = copy.parent / "corrupt" / str(step)
        assert (aside / "meta" / "metadata").exists() and f"moved to {aside}" in error
    shutil.move(copy.parent, tmp_path / "renamed")  # links hold when the run is moved
    assert (tmp_path / "renamed" / "corrupt" / "3" / "state").is_dir()


def test_a_damaged_checkpoint_that_cannot_be_moved_is_one_line(
    copy: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    truncate(data_files(copy, 3)[-1])
    with pytest.raises(InputError, match="/3 is damaged and cannot be moved: .*Read-only file sys"):
        Checkpoints(copy).restore_newest(like_of(layout_of()))


def _wanting(change: str) -> TrainState:
    like = like_of(layout_of())
    w = like.params["w"]
    if change == "name":
        like.params["extra"] = w
    if change == "shape":
        like.params["w"] = jax.ShapeDtypeStruct((32, 128), w.dtype, sharding=w.sharding)
    if change == "dtype":
        like.params["w"] = jax.ShapeDtypeStruct(w.shape, jnp.bfloat16, sharding=w.sharding)
    return like


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name", r"checkpoint .*/3 has no params/extra$"),
        ("shape", r"params/w is .*\[64, 128\].*, not .*\[32, 128\]"),
        ("dtype", r"params/w is .*float32.*, not .*bfloat16"),
    ],
)
def test_another_models_checkpoint_is_refused_and_left_where_it_is(
    copy: Path, change: str, message: str
):
    with pytest.raises(InputError, match=message):
        Checkpoints(copy).restore_newest(_wanting(change))
    assert sorted(int(path.name) for path in copy.iterdir()) == [1, 2, 3]


def test_only_what_is_asked_for_is_read(copy: Path):
    """Evaluation and sampling need the parameters alone, whatever the optimizer was."""
    state, _ = Checkpoints(copy).restore(3, {"params": like_of(layout_of()).params})
    assert list(state) == ["params"]
    assert_equal(state["params"], values_of(3).params)


def test_the_metadata_says_what_a_checkpoint_holds(saved: Path):
    meta = json.loads((saved / "checkpoints" / "3" / "meta" / "metadata").read_text())
    assert meta["data_position"] == 3
    assert set(meta["arrays"]) == set(to_named(values_of()))
    w = values_of(3).params["w"]
    assert meta["arrays"]["params/w"] == {
        "shape": [64, 128],
        "dtype": "float32",
        "checksum": int(w.view(np.uint32).sum(dtype=np.uint32)),
    }
