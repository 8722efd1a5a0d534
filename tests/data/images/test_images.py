import io
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.data.images.image_codec import resized
from jaxpretrain.data.images.image_sources import Folder
from jaxpretrain.data.images.images import (
    NUM_DRAWS,
    Augment,
    BadImages,
    ImageData,
    centre_box,
    sample_draws,
)
from jaxpretrain.data.loader import load_in_workers
from jaxpretrain.data.order.order import HashedOrder, OlmoCoreOrder, OlmoOrder

Box = tuple[int, int, int, int]


def _draws(sample: int) -> np.ndarray:
    return sample_draws(0, sample, NUM_DRAWS)


def _one_by_one(width: int, height: int, draws: np.ndarray) -> Box:
    """The published rule, written as a loop."""
    u = iter(zip(draws[:10], draws[10:20], strict=True))
    for area, aspect in u:
        target = width * height * (0.2 + 0.8 * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1))
            return left, top, left + w, top + h
    return centre_box(width, height, (3 / 4, 4 / 3))


@pytest.mark.parametrize("size", [(640, 480), (300, 1000), (50, 50), (2000, 90), (1, 1)])
def test_boxes_follow_the_published_rule(size: tuple[int, int]):
    for sample in range(300):
        assert Augment().box(*size, _draws(sample)) == _one_by_one(*size, _draws(sample))


def test_boxes_have_the_areas_and_aspects_asked_for():
    boxes = np.array([Augment().box(1000, 800, _draws(sample)) for sample in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 1000 and bottom.max() <= 800
    area = (right - left) * (bottom - top) / (1000 * 800)
    aspect = (right - left) / (bottom - top)
    assert 0.199 < area.min() < 0.22 and 0.95 < area.max() <= 1.0
    assert 0.745 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.34
    assert abs(np.mean(left / (1000 - (right - left) + 1e-9)) - 0.5) < 0.03  # anywhere alike


def test_what_no_box_fits_gives_its_middle():
    assert Augment().box(1000, 10, _draws(0)) == (493, 0, 506, 10)  # at most 4/3 as wide as high
    assert centre_box(10, 1000, (3 / 4, 4 / 3)) == (0, 493, 10, 506)


@pytest.mark.parametrize(
    ("size", "box"),
    [((64, 48), (8, 0, 56, 48)), ((48, 65), (0, 8, 48, 56)), ((7, 7), (0, 0, 7, 7))],
)
def test_the_middle_square(size: tuple[int, int], box: Box):
    assert centre_box(*size) == box


def test_half_of_the_images_are_mirrored():
    gradient = np.zeros((32, 32, 3), np.uint8)
    gradient[:] = np.arange(0, 256, 8, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(gradient)

    def num_mirrored(augment: Augment) -> int:
        cuts = [augment(image, 8, _draws(sample)).astype(int) for sample in range(1000)]
        return sum(cut[0, 0, 0] > cut[0, -1, 0] for cut in cuts)

    assert num_mirrored(Augment(flip=0.0)) == 0
    assert num_mirrored(Augment(flip=1.0)) == 1000
    assert 430 < num_mirrored(Augment()) < 570  # 500, deviation 16


def test_draws_depend_on_seed_and_sample_alone():
    draws = np.array([sample_draws(seed, k, 1000) for seed in (0, 1, -1) for k in (0, 1, 10**12)])
    again = sample_draws(1, 10**12, 1000)
    np.testing.assert_array_equal(draws[5], again)
    assert len(np.unique(draws)) == draws.size
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.02


def test_draws_stay_what_they_are():
    """Philox4x64-10 is a fixed function: other numbers would change every run."""
    expected = [0.08910064623458391, 0.33189185276481004, 0.16520897668188295]
    assert sample_draws(3, 5, 3).tolist() == expected


def test_what_lies_around_a_box_does_not_leak_into_it():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 100
    assert (resized(Image.fromarray(pixels), (10, 10, 30, 30), 8) == 100).all()


@pytest.mark.parametrize(
    ("augment", "complaint"),
    [
        (Augment(area=(0.0, 1.0)), "data.augment.area.0=0.0: must be above 0"),
        (Augment(area=(0.5, 1.5)), "data.augment.area.1=1.5: must be .* 1 or less"),
        (Augment(area=(0.5, 0.4)), "data.augment.area is 0.5,0.4"),
        (Augment(aspect=(2.0, 1.0)), "data.augment.aspect is 2,1"),
        (Augment(flip=1.5), "data.augment.flip=1.5: must be from 0 to 1"),
    ],
)
def test_values_that_cannot_be_are_refused(augment: Augment, complaint: str):
    with pytest.raises(InputError, match=complaint):
        validate(augment, "data.augment")
        augment.check()


Image = pytest.importorskip("PIL.Image")

SIZE = 16
NUM_IMAGES = 40
BROKEN = ("cats/07.jpg", "dogs/21.jpg")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of several sizes in two classes; two of them are broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = root / ("cats", "dogs")[number >= NUM_IMAGES // 2] / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        content = io.BytesIO()
        small.resize((30 + number, 70 - number)).save(content, "JPEG")
        broken = path.relative_to(root).as_posix() in BROKEN
        path.write_bytes(content.getvalue()[: 200 if broken else None])
    return root


@pytest.fixture
def data(folder: Path) -> ImageData:
    return ImageData(Folder(root=str(folder)), size=SIZE, validation_fraction=0.2)


@pytest.fixture
def sound(data: ImageData, folder: Path, tmp_path: Path) -> ImageData:
    """The same without what is broken."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    path = tmp_path / "list.txt"
    path.write_text("\n".join(name for name in names if name not in BROKEN))
    return replace(data, source=Folder(root=str(folder), file_list=str(path)))


def _batch(data: ImageData, samples, seed: int = 0) -> np.ndarray:
    return data.open(seed=seed, limits={}).batch(np.asarray(samples, np.int64))["images"]


def test_batches_are_as_the_spec_says(data: ImageData):
    (name, (shape, dtype)), *others = data.example_spec().items()
    images = _batch(data, range(5))
    assert (name, others) == ("images", [])
    assert images.shape == (5, *shape) and images.dtype == dtype
    assert _batch(data, []).shape == (0, *shape)
    assert images.std() > 20


def test_a_sample_depends_on_seed_and_number_alone(data: ImageData):
    """Not on the samples beside it, on the batch before, or on who reads it."""
    whole = _batch(data, range(100, 164))
    np.testing.assert_array_equal(_batch(data, range(100, 164)), whole)
    np.testing.assert_array_equal(_batch(data, range(101, 164, 2)), whole[1::2])
    training = data.open(seed=0, limits={})
    training.batch(np.arange(10))
    training = pickle.loads(pickle.dumps(training))
    np.testing.assert_array_equal(training.batch(np.array([163]))["images"], whole[-1:])
    assert (_batch(data, range(100, 164), seed=1) != whole).any(axis=(1, 2, 3)).all()


def test_an_epoch_shows_each_image_once_and_the_next_cuts_it_otherwise(sound: ImageData):
    plain = replace(sound, augment=Augment(area=(1, 1), aspect=(0.01, 100), flip=0))
    num_examples = plain.open(seed=0, limits={}).num_examples
    both = _batch(plain, range(2 * num_examples)).reshape(2, num_examples, -1)
    first, second = (np.unique(epoch, axis=0) for epoch in both)
    assert len(first) == num_examples
    np.testing.assert_array_equal(first, second)
    cut = _batch(sound, range(2 * num_examples))
    assert len(np.unique(cut.reshape(2 * num_examples, -1), axis=0)) == 2 * num_examples


def test_held_out_images_are_others_and_fixed(sound: ImageData):
    training = sound.open(seed=0, limits={})
    (held_out,) = sound.open_evals(limits={})
    assert training.num_examples + held_out.num_examples == NUM_IMAGES - len(BROKEN)
    assert not set(training.indices) & set(held_out.indices)
    indices = np.arange(held_out.num_examples)
    images = held_out.batch(indices)["images"]
    np.testing.assert_array_equal(held_out.batch(indices[::-1])["images"], images[::-1])
    with Image.open(held_out.images.root / held_out.images.name(held_out.indices[0])) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        middle = image.crop((left, top, left + side, top + side))
    expected = middle.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[0], np.asarray(expected))
    assert held_out.target_bytes({"images": images}) is None
    assert replace(sound, validation_fraction=0.0).open_evals(limits={}) == []


def test_another_image_stands_in_for_a_broken_one(data: ImageData):
    """The same one whenever it is asked for; other samples stay what they are."""
    data = replace(data, validation_fraction=0.0)
    training = data.open(seed=0, limits={})
    names = [training.images.name(index) for index in training.indices]
    epoch = [names[index] for index in training.order(np.arange(NUM_IMAGES))]
    samples = [epoch.index(name) for name in BROKEN]
    images = training.batch(np.arange(NUM_IMAGES))["images"]
    for line, name in zip(sorted(training.report()), BROKEN, strict=True):
        assert line.startswith(f"warning: another image stands in for {name}: OSError: ")
    for sample in reversed(samples):
        again = _batch(data, [sample])
        np.testing.assert_array_equal(again[0], images[sample])
        assert again.std() > 20
    training.batch(np.arange(3 * NUM_IMAGES))
    assert training.report() == []


def test_more_broken_images_than_allowed_are_an_error(data: ImageData):
    training = replace(data, validation_fraction=0.0, max_undecodable=1).open(seed=0, limits={})
    with pytest.raises(InputError, match=r"2 images cannot be decoded.*max_undecodable=1"):
        training.batch(np.arange(NUM_IMAGES))


def test_no_image_at_all_is_an_error_whatever_is_allowed(tmp_path: Path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no picture")
    data = ImageData(Folder(root=str(tmp_path)), size=SIZE, validation_fraction=0.0)
    with pytest.raises(InputError, match="none can be decoded"):
        _batch(data, [0])


def test_the_next_held_out_image_stands_in(data: ImageData, folder: Path):
    held_out = replace(data, source=Folder(str(folder), validation_root=str(folder)))
    (images,) = held_out.open_evals(limits={})
    broken = [images.images.name(index) for index in range(NUM_IMAGES)].index(BROKEN[0])
    pair = images.batch(np.array([broken, broken + 1]))["images"]
    np.testing.assert_array_equal(pair[0], pair[1])
    assert [BROKEN[0] in line for line in images.bad.report()] == [True]


def test_labels_go_with_their_images(data: ImageData):
    for split in ("train", "validation"):
        labelled = data.open_labelled(split)
        indices = np.arange(labelled.num_examples)
        names = [labelled.images.name(index) for index in labelled.indices]
        labels = labelled.labels(indices)
        assert labels.dtype == np.int32
        assert [labelled.classes[label] for label in labels] == [n.split("/")[0] for n in names]
        np.testing.assert_array_equal(labelled.labels(indices[::-1]), labels[::-1])
    assert data.open_labelled("validation").num_examples < data.open_labelled("train").num_examples


def test_images_without_labels_are_not_labelled(data: ImageData, folder: Path):
    flat = replace(data, source=Folder(root=str(folder / "cats")))
    with pytest.raises(InputError, match=r"cats: has no labels to classify by; a folder needs"):
        flat.open_labelled("train")
    with pytest.raises(InputError, match="no images are held out"):
        replace(data, validation_fraction=0.0).open_labelled("validation")


def test_the_fingerprint_tells_other_samples(data: ImageData, sound: ImageData):
    def fingerprint(data: ImageData) -> str:
        return data.open(seed=0, limits={}).fingerprint

    others = [
        sound,
        replace(data, size=8),
        replace(data, order=HashedOrder()),
        replace(data, augment=Augment(flip=0)),
        replace(data, validation_fraction=0.3),
    ]
    assert len({fingerprint(data), *map(fingerprint, others)}) == 1 + len(others)
    assert fingerprint(replace(data, num_workers=3, max_undecodable=5)) == fingerprint(data)


def test_a_declared_number_is_verified(data: ImageData):
    num_examples = data.open(seed=0, limits={}).num_examples
    replace(data, num_examples=num_examples).open(seed=0, limits={})
    with pytest.raises(InputError, match=f"declares 7 images.*data.num_examples={num_examples}"):
        replace(data, num_examples=7).open(seed=0, limits={})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"size": 0}, "data.size=0"),
        ({"validation_fraction": 1.0}, "data.validation_fraction=1.0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"augment": Augment(flip=-1.0)}, "data.augment.flip=-1"),
        ({"augment": Augment(area=(0.9, 0.8))}, "data.augment.area is 0.9,0.8"),
    ],
)
def test_sizes_that_cannot_be_are_refused(data: ImageData, change, complaint: str):
    with pytest.raises(InputError, match=complaint):
        changed = replace(data, **change)
        validate(changed, "data")
        changed.open(seed=0, limits={})


def test_two_workers_read_what_a_thread_reads(data: ImageData):
    """Batches of several parts, with broken images among them, which are reported here."""
    data = replace(data, validation_fraction=0.0)
    training = data.open(seed=0, limits={})

    def samples(step: int) -> np.ndarray:
        return 50 * step + np.arange(5, 40)

    with load_in_workers(training.batch, samples, 3, 6, num_workers=2) as batches:
        found = [batch["images"] for batch in batches]
    for step, images in zip((3, 4, 5), found, strict=True):
        np.testing.assert_array_equal(images, _batch(data, samples(step)))
    assert len(training.report()) == len(BROKEN)


def test_a_worker_passes_errors_on(data: ImageData):
    data = replace(data, validation_fraction=0.0, max_undecodable=0)
    training = data.open(seed=0, limits={})
    with (
        load_in_workers(training.batch, lambda _: np.arange(40), 0, 9, num_workers=1) as batches,
        pytest.raises(InputError, match=r"1 images cannot be decoded, the last is .*\.jpg"),
    ):
        list(batches)


def test_images_need_neither_tensorflow_nor_jax(data: ImageData, folder: Path):
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['jax'] = None\n"
        "import numpy as np\n"
        "from jaxpretrain.data.images.images import ImageData\n"
        "from jaxpretrain.data.images.image_sources import Folder\n"
        f"data = ImageData(Folder({str(folder)!r}), size=16)\n"
        "print(data.open(seed=0, limits={}).batch(np.arange(2))['images'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 16, 16, 3)", done.stderr


def test_an_epoch_of_images_is_cut_as_the_order_says(data: ImageData):
    whole = data.open(seed=0, limits={})
    cut = replace(data, order=OlmoOrder(epoch_multiple=4)).open(seed=0, limits={})
    assert cut.num_examples == whole.num_examples // 4 * 4
    pairs = replace(data, order=OlmoCoreOrder(chunk=2)).open(seed=0, limits={})
    assert pairs.num_examples == whole.num_examples // 2 * 2
    first = pairs.order(np.arange(2))
    assert first[1] == first[0] + 1 and first[0] % 2 == 0


def test_each_image_is_reported_once_whoever_finds_it():
    bad = BadImages(limit=10)
    elsewhere = pickle.loads(pickle.dumps(bad))
    bad.add("a.jpg", "broken\nin two")
    elsewhere.add("a.jpg", "broken, in other words")
    elsewhere.add("b.jpg", "empty")
    assert bad.report() == [
        "warning: another image stands in for a.jpg: broken in two",
        "warning: another image stands in for b.jpg: empty",
    ]
    assert bad.report() == []
    bad.add("b.jpg", "empty")
    assert bad.report() == []


def test_one_more_than_the_limit_is_an_error_across_processes():
    bad = BadImages(limit=2)
    elsewhere = pickle.loads(pickle.dumps(bad))
    bad.add("a.jpg", "broken")
    bad.add("b.jpg", "broken")
    elsewhere.add("a.jpg", "broken")
    with pytest.raises(InputError, match=r"^3 images .* c\.jpg: empty; .*max_undecodable=2$"):
        elsewhere.add("c.jpg", "empty")


def test_the_file_goes_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bad = BadImages(limit=1)
    copy = pickle.loads(pickle.dumps(bad))
    del copy
    assert len(list(tmp_path.iterdir())) == 1
    del bad
    assert list(tmp_path.iterdir()) == []
