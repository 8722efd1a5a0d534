import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.order import permutations
from jaxpretrain.data.order.order import Order
from jaxpretrain.data.order.permutations import Hashed, Listed, Shuffled, shuffled
from jaxpretrain.storage.files import TEMPORARY

KINDS = [Shuffled, Hashed]
SIZES = [1, 2, 3, 5, 10, 64, 100, 997, 4096, 10007]


def _epoch(permutation, epoch: int, num_items: int) -> np.ndarray:
    return permutation(np.full(num_items, epoch), np.arange(num_items))


@pytest.mark.parametrize("num_items", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_is_a_permutation(kind, num_items: int):
    permutation = kind(num_items, seed=3)
    for epoch in range(3):
        items = _epoch(permutation, epoch, num_items)
        np.testing.assert_array_equal(np.sort(items), np.arange(num_items))


@pytest.mark.parametrize("num_items", [1, 2, 10, 997])
@pytest.mark.parametrize("kind", KINDS)
def test_find_is_the_inverse(kind, num_items: int):
    for size in (1, 3):
        order = Order(kind(num_items, seed=3), size * num_items, size)
        num_samples = 2 * size * num_items
        examples = order(np.arange(num_samples))
        for sample in range(0, num_samples, 7):
            assert sample in order.find(int(examples[sample]), num_samples)


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_and_seeds_differ(kind):
    num_items = 1000
    drawn = [
        _epoch(kind(num_items, seed=1), 0, num_items),
        _epoch(kind(num_items, seed=1), 1, num_items),
        _epoch(kind(num_items, seed=20), 0, num_items),
    ]
    for i, first in enumerate(drawn):
        for second in drawn[i + 1 :]:
            assert (first == second).mean() < 0.02  # chance: 0.001


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_copy_is_the_same_and_carries_no_data(kind):
    permutation = kind(5000, seed=1)
    items = _epoch(permutation, 2, 5000)
    pickled = pickle.dumps(permutation)
    assert len(pickled) < 500
    np.testing.assert_array_equal(_epoch(pickle.loads(pickled), 2, 5000), items)


def test_the_shuffle_stays_what_it_was():
    """NumPy may in principle change `shuffle`; these are the items of its versions so far."""
    assert shuffled(10, 6198).tolist() == [2, 4, 7, 3, 8, 9, 0, 6, 1, 5]


def test_at_most_two_shuffles_are_held():
    permutation = Shuffled(10, seed=0)
    permutation(np.arange(95) // 10, np.arange(95) % 10)
    assert permutation._held.cache_info().currsize <= 2


def test_more_than_32_bits_are_refused():
    with pytest.raises(InputError, match="data.order=hashed_order"):
        Shuffled(2**32 + 1, seed=0)


def test_chunks_stay_together():
    items = Order(Shuffled(25, seed=4), 100, 4)(np.arange(100, 200)).reshape(25, 4)
    np.testing.assert_array_equal(items - items[:, :1], np.tile(np.arange(4), (25, 1)))
    np.testing.assert_array_equal(items[:, 0], 4 * _epoch(Shuffled(25, seed=4), 1, 25))


def test_hashed_items_are_spread_evenly():
    """Items at consecutive positions: uniform (chi-squared) and uncorrelated."""
    num_items, num_bins = 1_000_003, 64
    items = Hashed(num_items, seed=11)(np.zeros(64_000, int), np.arange(64_000))
    counts = np.bincount(items * num_bins // num_items, minlength=num_bins)
    expected = len(items) / num_bins
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 25 < chi_squared < 120  # 63 degrees of freedom: mean 63, deviation 11
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.02


def test_hashed_items_reach_beyond_32_bits():
    num_items = 10**12 + 39
    permutation = Hashed(num_items, seed=0)
    items = permutation(np.full(1000, 7), np.arange(1000))
    assert items.min() >= 0
    assert 2**32 < items.max() < num_items
    assert len(np.unique(items)) == 1000
    assert permutation.find(7, int(items[123])) == 123


@pytest.fixture
def mapped(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shuffles of 1,000 items and more are files, in this folder."""
    monkeypatch.setattr(permutations, "MAPPED_FROM", 1000)
    return empty_cache / "orders"


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


def test_a_large_shuffle_is_a_file_and_the_same(mapped: Path, monkeypatch: pytest.MonkeyPatch):
    items = shuffled(3000, 7)
    assert _files(mapped) == ["pcg64-7-3000.uint32"]
    assert not items.flags.writeable
    monkeypatch.setattr(permutations, "MAPPED_FROM", 10**7)
    np.testing.assert_array_equal(shuffled(3000, 7), items)
    np.testing.assert_array_equal(np.fromfile(mapped / "pcg64-7-3000.uint32", "<u4"), items)


def test_a_shuffle_is_built_once_and_told_apart_by_seed_and_size(mapped: Path):
    shuffled(3000, 7)
    path = mapped / "pcg64-7-3000.uint32"
    before = path.stat()
    shuffled(3000, 7)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    permutation = Shuffled(2000, seed=7)
    _epoch(permutation, 1, 2000)
    assert _files(mapped) == ["pcg64-7-3000.uint32", "pcg64-8-2000.uint32"]


def test_a_file_that_was_cut_is_built_again(mapped: Path):
    items = shuffled(3000, 7).copy()
    path = mapped / "pcg64-7-3000.uint32"
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(shuffled(3000, 7), items)


def test_what_a_dead_process_left_is_removed_and_a_failure_leaves_nothing(
    mapped: Path, monkeypatch: pytest.MonkeyPatch
):
    mapped.mkdir(parents=True)
    (mapped / f"pcg64-7-3000.uint32{TEMPORARY}99").write_bytes(b"half")
    monkeypatch.setattr(permutations, "_shuffle", lambda items, seed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shuffled(3000, 7)
    assert _files(mapped) == []


def _build_in_child(folder: str, queue) -> None:
    permutations.MAPPED_FROM = 1000
    shuffled(3000, 7)
    queue.put((Path(folder) / "pcg64-7-3000.uint32").stat().st_ino)


def test_processes_of_a_host_share_one_file(mapped: Path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_build_in_child, args=(str(mapped), queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    inodes = {queue.get() for _ in processes}
    for process in processes:
        process.join()
    assert len(inodes) == 1
    assert _files(mapped) == ["pcg64-7-3000.uint32"]


def test_no_place_for_the_file_says_what_it_takes(
    mapped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="order of 3,000,000 examples takes 0.0 GB there: set"):
        shuffled(3_000_000, 7)


def _listed(tmp_path: Path, indices: list[int]) -> Listed:
    path = tmp_path / "global_indices.npy"
    np.array(indices, "<u4").tofile(path)
    return Listed(path, 6, Shuffled(6, seed=0))


def test_a_list_is_epoch_0_alone(tmp_path: Path):
    listed = _listed(tmp_path, [3, 1, 5, 0, 2, 4])
    assert _epoch(listed, 0, 6).tolist() == [3, 1, 5, 0, 2, 4]
    assert [listed.find(0, item) for item in range(6)] == [3, 1, 4, 0, 5, 2]
    later = Shuffled(6, seed=0)
    np.testing.assert_array_equal(_epoch(listed, 1, 6), _epoch(later, 1, 6))
    assert listed.find(1, 2) == later.find(1, 2)
    mixed = listed(np.array([1, 0, 1]), np.array([2, 2, 0]))
    assert mixed.tolist() == [
        *later(np.array([1]), np.array([2])),
        5,
        *later(np.array([1]), np.array([0])),
    ]


def test_a_list_is_checked_where_it_is_read(tmp_path: Path):
    listed = _listed(tmp_path, [3, 1, 6, 0, 2, 4])
    listed(np.zeros(2, int), np.array([0, 1]))
    with pytest.raises(InputError, match="position 2 names example 6 of 6"):
        _epoch(listed, 0, 6)
    assert listed.find(0, 5) is None


def test_a_missing_list_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="data.order.global_indices .*absent: cannot be read"):
        Listed(tmp_path / "absent", 6, Shuffled(6, seed=0))
