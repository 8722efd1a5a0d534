from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.olmo_keys import NO_EFFECT, OlmoKeys


@pytest.fixture
def read(tmp_path: Path):
    """The keys of a YAML text."""

    def read(text: str, *ignored: str) -> OlmoKeys:
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return OlmoKeys(file, ignored)

    return read


def test_every_key_of_a_file_has_its_line(read):
    keys = read("seed: 6198\nmodel:\n  d_model: 64\n  pad_token_id: 1\ncompile: null\n")
    assert keys.take("seed") == 6198 and keys.number("model.d_model") == 64
    keys.skip("model.pad_token_id", "there is none")
    assert keys.report() == [
        "seed = 6198: used",
        "model.d_model = 64: used",
        "model.pad_token_id = 1: no effect: there is none",
        "compile = None: no effect: says how fast or where, not what",
    ]


def test_numbers_are_read_however_yaml_takes_them(read):
    """YAML 1.1 takes 5e12 for a text; OLMo does not."""
    keys = read("a: 5e12\nb: 1e-5\nc: 739_328\nd: 3.0e-4\ne: null\nf: many\n")
    found = [keys.number(key) for key in ("a", "b", "c", "d", "e", "absent")]
    assert found == [5 * 10**12, 1e-5, 739328, 3e-4, None, None]
    assert isinstance(found[0], int) and isinstance(found[2], int)
    with pytest.raises(InputError, match="f='many' is not a number"):
        keys.number("f")


def test_a_key_can_refer_to_another(read):
    keys = read("save_interval: 250\neval_interval: ${save_interval}\nrun: ${oc.env:HOME}\n")
    assert keys.take("eval_interval") == 250
    assert keys.take("run") == "${oc.env:HOME}"


def test_what_is_not_supported_is_refused_with_the_way_out(read):
    text = "model:\n  alibi: true\n  warp: 9\n"
    keys = read(text)
    assert keys.only("model.alibi", False, default=False) is False
    keys.only("model.include_bias", False, default=True)
    with pytest.raises(InputError) as error:
        keys.report()
    assert str(error.value) == (
        f"{keys.file}: not supported: model.alibi=True (here: False); model.include_bias=True, "
        "which is not given and OLMo's default (here: False); model.warp=9 (not known here). "
        "To train without what a key says, take it out of the file, or name it: "
        "FILE.yaml,ignore=KEY"
    )


def test_what_is_ignored_is_said(read):
    keys = read("model:\n  alibi: true\n  warp: 9\n", "model.alibi", "model.warp")
    assert keys.only("model.alibi", False, default=False) is False
    ending = "ignored, as asked: what it says is not done"
    assert keys.report() == [f"model.alibi = True: {ending}", f"model.warp = 9: {ending}"]


def test_only_keys_of_the_file_can_be_ignored(read):
    with pytest.raises(InputError, match=r"has no key model\.alibl to ignore"):
        read("model:\n  alibi: true\n", "model.alibl")


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "just text\n"])
def test_what_is_no_config_is_refused(read, text):
    with pytest.raises(InputError, match="no config|no YAML"):
        read(text)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="none.yaml: cannot be read"):
        OlmoKeys(tmp_path / "none.yaml", ())


def test_no_key_has_two_reasons():
    patterns = [pattern for group in NO_EFFECT.values() for pattern in group.split()]
    assert len(patterns) == len(set(patterns))
