"""`auto` becomes numbers that fit, and the same ones when a run goes on."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.devices.memory import is_out_of_memory
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning import auto
from jaxpretrain.planning.auto import choose, chosen_before, step_down
from jaxpretrain.planning.compiled import compile_step
from jaxpretrain.planning.machines import HEADROOM
from jaxpretrain.planning.search import open_choices
from jaxpretrain.train.experiment import Experiment
from jaxpretrain.train.workdir import describe_devices
from tests.planning.conftest import changed


@pytest.fixture
def here(one, monkeypatch: pytest.MonkeyPatch):
    """The devices at hand are one, with as much memory as is said."""

    def with_memory(num_bytes: int) -> None:
        chip = dataclasses.replace(one.chip, memory_bytes=num_bytes)
        machine = dataclasses.replace(one, chip=chip)
        monkeypatch.setattr(auto, "_machine", lambda dtype: machine)

    with_memory(2**30)
    return with_memory


def quiet(*_: object) -> None:
    pass


def save(folder: Path, experiment: Experiment, devices: str) -> None:
    document = {"config": to_dict(experiment), "devices": devices}
    (folder / "experiment.json").write_text(json.dumps(document))


def test_only_what_is_auto_is_chosen(decoder, here):
    config = changed(decoder, train__microbatch_size="auto")
    assert open_choices(config) == ("train.microbatch_size",)
    chosen, why = choose(config, quiet)
    assert open_choices(chosen) == ()
    size = chosen.train.microbatch_size
    assert isinstance(size, int)
    assert chosen == changed(decoder, train__microbatch_size=size)
    assert f"auto: train.microbatch_size={size}, " in why
    assert "GiB per device" in why


def test_less_memory_gives_a_smaller_microbatch_of_the_same_batch(decoder, one, here):
    config = changed(decoder, train__microbatch_size="auto", model__remat="full")
    needed = compile_step(changed(decoder, train__microbatch_size=4), one).total
    here(int(needed / (1 - HEADROOM)) + 10)
    chosen, _ = choose(config, quiet)
    assert chosen.train.microbatch_size == 4
    assert chosen.train.batch_size == decoder.train.batch_size


def test_nothing_that_fits_is_one_line_with_numbers(decoder, here):
    here(10_000)
    with pytest.raises(InputError, match=r"auto: nothing fits .* one example at a time takes"):
        choose(changed(decoder, train__microbatch_size="auto"), quiet)


def test_a_run_that_goes_on_takes_what_it_had(decoder, tmp_path: Path):
    before = changed(decoder, train__microbatch_size=2, model__remat="dots")
    save(tmp_path, before, describe_devices())
    config = changed(decoder, train__microbatch_size="auto", model__remat="auto")
    found = chosen_before(config, tmp_path)
    assert found is not None
    chosen, why = found
    assert chosen == before
    assert why == "auto: train.microbatch_size=2, model.remat=dots, as before"


def test_on_other_devices_it_is_chosen_anew(decoder, here, tmp_path: Path):
    save(tmp_path, changed(decoder, train__microbatch_size=2), "3 x abacus")
    config = changed(decoder, train__microbatch_size="auto")
    assert chosen_before(config, tmp_path) is None
    chosen, why = choose(config, quiet)
    assert chosen.train.microbatch_size != 2
    assert "as before" not in why


def test_an_open_mesh_takes_what_is_ranked_first_and_says_why(decoder, eight, monkeypatch):
    monkeypatch.setattr(auto, "_machine", lambda dtype: eight)
    config = dataclasses.replace(decoder, mesh="auto")
    assert open_choices(config) == ("mesh",)
    chosen, why = choose(config, quiet)
    assert isinstance(chosen.mesh, Mesh)
    assert chosen == dataclasses.replace(decoder, mesh=chosen.mesh)
    sizes = " x ".join(map(str, chosen.mesh.sizes(8)))
    assert why.startswith(f"auto: mesh={sizes} (replica x fsdp x tensor), the fastest of 10 meshes")
    assert "bound by" in why


def test_a_run_that_goes_on_keeps_its_mesh(decoder, tmp_path: Path):
    before = dataclasses.replace(decoder, mesh=Mesh(replica=2, fsdp=4))
    save(tmp_path, before, describe_devices())
    found = chosen_before(dataclasses.replace(decoder, mesh="auto"), tmp_path)
    assert found is not None and found[0] == before
    assert found[1] == "auto: mesh=2 x 4 x 1 (replica x fsdp x tensor), as before"


def test_the_microbatch_steps_down_to_the_next_that_divides(decoder):
    config = changed(decoder, train__microbatch_size="auto")
    sizes, chosen = [], changed(decoder, train__microbatch_size=12)
    while (smaller := step_down(config, chosen)) is not None:
        sizes.append(smaller.train.microbatch_size)
        chosen = smaller
    assert sizes == [6, 3, 1]


def test_a_microbatch_that_the_user_chose_is_left_alone(decoder):
    chosen = changed(decoder, train__microbatch_size=8)
    assert step_down(chosen, chosen) is None


def test_out_of_memory_is_told_from_other_failures():
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    assert is_out_of_memory(full)
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: no such luck"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
