import pickle
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.bad_images import BadImages


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
