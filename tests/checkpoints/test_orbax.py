import errno
import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint, Streamed, write_streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.train.state import TrainState

# Orbax leaves the other reads of a damaged checkpoint unfinished, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect_unfinished_reads() -> Iterator[None]:
    yield
    gc.collect()


AXES = {"w": ("embed", "vocab"), "b": ("vocab",)}


class Moments(NamedTuple):
    mu: Any
    count: Any


def _values(seed: int = 0) -> TrainState:
    """A state as numpy arrays."""
    random = np.random.default_rng(seed)
    params = {
        "w": random.normal(size=(64, 128)).astype(np.float32),
        "b": random.normal(size=128).astype(np.float32),
    }
    moments = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), params)
    return TrainState(
        step=np.int32(seed),
        rng=np.array([seed, 7], np.uint32),
        params=params,
        optimizer={"adam": Moments(moments, np.int32(seed)), "clip": ()},
    )


def _shardings(layout: Layout) -> Any:
    params = layout.tree(AXES, _values().params)
    return TrainState(
        step=layout.replicated,
        rng=layout.replicated,
        params=params,
        optimizer={"adam": Moments(params, layout.replicated), "clip": ()},
    )


def _layout(*sizes: int, num_devices: int = 8) -> Layout:
    return Layout(Mesh(*sizes).build(jax.devices()[:num_devices]))


def _state(layout: Layout, seed: int = 0) -> TrainState:
    return jax.device_put(_values(seed), _shardings(layout))


def _like(layout: Layout) -> TrainState:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        _values(),
        _shardings(layout),
    )


def _assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), b)


def _save(directory: Path, *steps: int, **kept: Any) -> None:
    checkpoints = Checkpoints(directory, **kept)
    for step in steps:
        checkpoints.save(step, _state(_layout(), step), {"data_position": step})
    checkpoints.wait()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of steps 1, 2 and 3. Tests that damage it copy it first."""
    workdir = tmp_path_factory.mktemp("saved")
    _save(workdir / "checkpoints", 1, 2, 3)
    return workdir


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Their directory, in a folder of this test alone."""
    return shutil.copytree(saved, tmp_path / "run") / "checkpoints"


def _data_files(directory: Path, step: int) -> list[Path]:
    """The files that hold the bulk of the arrays."""
    files = [path for path in (directory / str(step) / "state").rglob("d/*") if path.is_file()]
    assert files
    return sorted(files, key=lambda path: path.stat().st_size)


def test_names_are_flat_and_know_no_classes():
    names = to_named(_values())
    assert sorted(names) == [
        "optimizer/adam/count",
        "optimizer/adam/mu/b",
        "optimizer/adam/mu/w",
        "params/b",
        "params/w",
        "rng",
        "step",
    ]
    _assert_equal(from_named(_like(_layout()), names), _values())


def test_what_is_saved_comes_back_bit_for_bit_with_its_extras(saved: Path):
    checkpoints = Checkpoints(saved / "checkpoints")
    assert checkpoints.steps() == [1, 2, 3]
    layout = _layout()
    found = checkpoints.restore_newest(_like(layout))
    assert found is not None
    step, state, extra = found
    assert (step, extra) == (3, {"data_position": 3})
    _assert_equal(state, _values(3))
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(_shardings(layout)), strict=True
    ):
        assert leaf.sharding == sharding
    _assert_equal(checkpoints.restore(1, _like(layout))[0], _values(1))


@pytest.mark.parametrize(
    "layout", [_layout(num_devices=1), _layout(2, 2, 2), _layout(1, 1, 8), _layout(num_devices=4)]
)
def test_another_mesh_gets_the_same_values(saved: Path, layout: Layout):
    state, _ = Checkpoints(saved / "checkpoints").restore(2, _like(layout))
    _assert_equal(state, _values(2))
    assert state.params["w"].sharding == _shardings(layout).params["w"]


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
    layout = _layout()
    overwrite = jax.jit(
        lambda state: jax.tree.map(lambda x: x * 0 + 1, state),
        donate_argnums=0,
        out_shardings=_shardings(layout),
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for seed in range(1, 6):
        state = _state(layout, seed)
        checkpoints.save(seed, state, {})
        state = overwrite(state)
    checkpoints.wait()
    for seed in range(1, 6):
        _assert_equal(checkpoints.restore(seed, _like(layout))[0], _values(seed))
    checkpoints.wait()


def test_the_newest_are_kept_and_multiples_for_good(tmp_path: Path):
    _save(tmp_path / "checkpoints", *range(1, 8), keep_last=2, keep_every=3)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3, 6, 7]


def test_a_step_below_the_newest_is_saved_too(copy: Path):
    _save(copy, 0)
    assert Checkpoints(copy).steps() == [0, 1, 2, 3]


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path):
    assert Checkpoints(tmp_path / "checkpoints").restore_newest(_like(_layout())) is None


def test_what_interrupted_saves_left_does_not_count_and_goes_at_the_next_start(copy: Path):
    """Under the temporary names of Orbax. Who only reads leaves them: a save may be under way."""
    for name in ("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1700000000"):
        shutil.copytree(copy / "3", copy / name)
    (copy / "notes.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(copy, read_only=True).steps() == [1, 2, 3]
    assert len(list(copy.iterdir())) == 6
    checkpoints = Checkpoints(copy)
    assert {path.name for path in copy.iterdir()} == {"1", "2", "3", "notes.orbax-checkpoint-tmp"}
    checkpoints.save(4, _state(_layout(), 4), {})
    checkpoints.wait()
    _assert_equal(checkpoints.restore(4, _like(_layout()))[0], _values(4))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(InputError, match=f"checkpoints, a link to {tmp_path}/gone/away, cannot"):
        Checkpoints(tmp_path / "checkpoints")


def test_the_document_of_a_checkpoint_can_be_amended(copy: Path):
    checkpoints = Checkpoints(copy)
    checkpoints.amend(3, data_position=30)
    state, extra = checkpoints.restore(3, _like(_layout()))
    _assert_equal(state, _values(3))
    assert extra == {"data_position": 30}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
def test_damaged_arrays_fall_back_loudly_to_the_checkpoint_before(copy: Path, damage, capsys):
    damage(_data_files(copy, 3)[-1])
    found = Checkpoints(copy).restore_newest(_like(_layout()))
    assert found is not None and found[0] == 2
    _assert_equal(found[1], _values(2))
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
    found = Checkpoints(copy).restore_newest(_like(_layout()))
    assert found is not None and found[0] == 2


def test_an_array_that_orbax_does_not_list_falls_back_too(copy: Path):
    path = copy / "3" / "state" / "_METADATA"
    document = json.loads(path.read_text())
    del document["tree_metadata"]["('params/w',)"]
    path.write_text(json.dumps(document))
    found = Checkpoints(copy).restore_newest(_like(_layout()))
    assert found is not None and found[0] == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_damaged_metadata_falls_back_too(copy: Path, content: bytes):
    (copy / "3" / "meta" / "metadata").write_bytes(content)
    found = Checkpoints(copy).restore_newest(_like(_layout()))
    assert found is not None and found[0] == 2


def test_a_changed_value_is_noticed_by_its_checksum(copy: Path):
    """Storage may hand back other bytes without an error: here, another step's arrays."""
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(copy / "2" / "state", copy / "3" / "state")
    with pytest.raises(CorruptCheckpoint, match="checksum of .* differs"):
        Checkpoints(copy).restore(3, _like(_layout()))


def test_two_damaged_copies_of_a_step_are_both_kept_aside(copy: Path):
    (copy.parent / "corrupt" / "3").mkdir(parents=True)
    _truncate(_data_files(copy, 3)[-1])
    Checkpoints(copy).restore_newest(_like(_layout()))
    assert sorted(path.name for path in (copy.parent / "corrupt").iterdir()) == ["3", "3.2"]


def test_with_all_damaged_nothing_starts_anew(copy: Path):
    """Neither now nor when the same command is run again."""
    for step in (1, 2, 3):
        _truncate(_data_files(copy, step)[-1])
    for _ in range(2):
        with pytest.raises(InputError, match="no checkpoint can be read, all are in .*corrupt"):
            Checkpoints(copy).restore_newest(_like(_layout()))
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
        _truncate(_data_files(copy, step)[-1])
    found = Checkpoints(copy).restore_newest(_like(_layout()))
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
    _truncate(_data_files(copy, 3)[-1])
    with pytest.raises(InputError, match="/3 is damaged and cannot be moved: .*Read-only file sys"):
        Checkpoints(copy).restore_newest(_like(_layout()))


def _wanting(change: str) -> TrainState:
    like = _like(_layout())
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
    state, _ = Checkpoints(copy).restore(3, {"params": _like(_layout()).params})
    assert list(state) == ["params"]
    _assert_equal(state["params"], _values(3).params)


def test_the_metadata_says_what_a_checkpoint_holds(saved: Path):
    meta = json.loads((saved / "checkpoints" / "3" / "meta" / "metadata").read_text())
    assert meta["data_position"] == 3
    assert set(meta["arrays"]) == set(to_named(_values()))
    w = _values(3).params["w"]
    assert meta["arrays"]["params/w"] == {
        "shape": [64, 128],
        "dtype": "float32",
        "checksum": int(w.view(np.uint32).sum(dtype=np.uint32)),
    }


def _streamed(array: np.ndarray) -> Streamed:
    """Part by part: a row at a time."""
    return Streamed(array.shape, array.dtype, lambda: np.split(array, len(array)))


def _write_streamed(directory: Path, values: TrainState) -> None:
    count = Streamed((), np.dtype(np.int32), lambda: [np.array(7, np.int32)])
    arrays = {name: _streamed(a) for name, a in to_named(values).items() if np.ndim(a)}
    missing = set(to_named(values)) - set(arrays)
    write_streamed(directory, 3, arrays | dict.fromkeys(missing, count), {"data_position": 3})


def test_what_is_streamed_restores_as_what_is_saved(tmp_path: Path, capfd):
    """On any mesh, zeros included, and without a word from Orbax."""
    values = _values(3)
    values.params["b"][:] = 0.0
    _write_streamed(tmp_path / "checkpoints", values)
    for layout in (_layout(), _layout(2, 2, 2), _layout(num_devices=1)):
        found = Checkpoints(tmp_path / "checkpoints").restore_newest(_like(layout))
        assert found is not None and (found[0], found[2]) == (3, {"data_position": 3})
        _assert_equal(found[1].params, values.params)
        assert int(found[1].step) == int(found[1].optimizer["adam"].count) == 7
        assert found[1].params["w"].sharding == _shardings(layout).params["w"]
    assert capfd.readouterr() == ("", "")


def test_a_large_stack_is_written_in_chunks_of_a_layer(tmp_path: Path):
    """So that a layer can be written, and read, alone."""
    shape = (2, 33, 2**19)  # 66 MiB a layer
    layers = lambda: (np.full((1, *shape[1:]), layer, np.float32) for layer in range(2))  # noqa: E731
    write_streamed(tmp_path, 0, {"w": Streamed(shape, np.dtype(np.float32), layers)}, {})
    chunks = sorted(path.name for path in (tmp_path / "0" / "state" / "w").glob("[0-9]*"))
    assert chunks == [f"{layer}.{half}.0" for layer in (0, 1) for half in (0, 1)]
    parts = Checkpoints(tmp_path).stream(0)["w"].parts()
    assert [(part.shape, part.max()) for part in parts] == [((1, *shape[1:]), i) for i in (0, 1)]


def test_a_streamed_checkpoint_that_is_damaged_falls_back(copy: Path):
    _write_streamed(copy.parent / "other", _values(4))
    shutil.move(copy.parent / "other" / "3", copy / "4")
    _truncate(copy / "4" / "state" / "params" / "w" / "0.0")
    found = Checkpoints(copy).restore_newest(_like(_layout()))
    assert found is not None and found[0] == 3


def test_arrays_can_be_read_part_by_part(saved: Path):
    arrays = Checkpoints(saved / "checkpoints", read_only=True).stream(2)
    expected = to_named(_values(2))
    assert set(arrays) == set(expected)
    for name, array in arrays.items():
        parts = list(array.parts())
        found = np.concatenate(parts) if array.shape else parts[0]
        assert (array.shape, array.dtype) == (np.shape(expected[name]), found.dtype)
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
def test_damage_is_noticed_part_by_part(copy: Path, damage):
    damage(_data_files(copy, 3)[-1])
    with pytest.raises(CorruptCheckpoint):
        for array in Checkpoints(copy).stream(3).values():
            list(array.parts())


@pytest.mark.parametrize(("key", "value"), [("shape", [128, 64]), ("dtype", "int32")])
def test_arrays_that_are_not_stored_as_the_metadata_says_are_noticed(
    copy: Path, key: str, value: Any
):
    path = copy / "3" / "meta" / "metadata"
    document = json.loads(path.read_text())
    document["arrays"]["params/w"][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptCheckpoint, match="params/w is stored as"):
        list(Checkpoints(copy).stream(3)["params/w"].parts())


def test_other_bytes_are_noticed_part_by_part(copy: Path):
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(copy / "2" / "state", copy / "3" / "state")
    with pytest.raises(CorruptCheckpoint, match="the checksum of params/w differs"):
        list(Checkpoints(copy).stream(3)["params/w"].parts())
