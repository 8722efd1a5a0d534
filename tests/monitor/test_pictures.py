import numpy as np
import pytest

from jaxpretrain.monitor.pictures import write_pictures


def test_pictures_are_kept_by_name_and_step(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    for step in (0, 20):
        write_pictures(tmp_path, step, {"faces/reconstructions": pixels + step})
    folder = tmp_path / "pictures" / "faces" / "reconstructions"
    assert [path.name for path in sorted(folder.iterdir())] == ["00000000.png", "00000020.png"]
    with image_module.open(folder / "00000020.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels + 20)
