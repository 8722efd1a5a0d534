import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.sweeps.parsing import load_sweep, make_sweep, parse_sweep, split_sweep

PEAK = "optim.schedule.peak"


def names(*items, **settings):
    return [arm.name for arm in parse_sweep("olmo_nano", items, **settings).arms]


def test_a_grid_is_the_product_of_its_lists():
    sweep = parse_sweep(
        "olmo_nano", ["--grid.model.qk_norm=true,false", f"--grid.{PEAK}=3e-3,6e-3"]
    )
    assert [arm.name for arm in sweep.arms] == [
        "qk_norm=true,peak=3e-3",
        "qk_norm=true,peak=6e-3",
        "qk_norm=false,peak=3e-3",
        "qk_norm=false,peak=6e-3",
    ]
    assert (sweep.control, sweep.control_reason) == (
        "qk_norm=true,peak=6e-3",
        "the config as it stands",
    )
    assert sweep.seeds == (6198, 6199, 6200)


def test_each_arm_takes_the_settings_up_to_the_next():
    items = ["--config.model.d_ff=64", "--arm=a", "--config.model.qk_norm=false", "--arm=b"]
    sweep = parse_sweep("olmo_nano", items)
    assert sweep.shared == (("model.d_ff", "64"),)
    assert [(arm.name, arm.overrides) for arm in sweep.arms] == [
        ("a", (("model.qk_norm", "false"),)),
        ("b", ()),
    ]
    assert sweep.control == "b"


def test_arms_are_combined_with_a_grid():
    arms = ["--arm=a", "--config.model.qk_norm=false", "--arm=b"]
    assert names(*arms, f"--grid.{PEAK}=1e-3,2e-3") == [
        "a,peak=1e-3",
        "a,peak=2e-3",
        "b,peak=1e-3",
        "b,peak=2e-3",
    ]


def test_random_points_lie_in_their_ranges_and_are_whole_where_the_field_is():
    items = [f"--range.{PEAK}=1e-4..1e-2", "--range.model.d_ff=100..400"]
    sweep = parse_sweep("olmo_nano", items, random=4)
    assert len(sweep.arms) == 4
    for arm in sweep.arms:
        config = sweep.configured(arm.overrides)
        assert 1e-4 <= config.optim.schedule.peak <= 1e-2
        assert 100 <= config.model.d_ff <= 400
    assert parse_sweep("olmo_nano", items, random=6).arms[:4] == sweep.arms


def test_a_class_is_chosen_before_shared_fields_are_set():
    items = ["--config.optim.weight_decay=0.2", "--grid.optim=adamw,lion"]
    sweep = parse_sweep("olmo_nano", items)
    decays = [sweep.configured(arm.overrides).optim.weight_decay for arm in sweep.arms]
    assert decays == [0.2, 0.2]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], r"nothing is varied"),
        (["--grid.model.qk_norm=true"], r"nothing is varied"),
        ([f"--tune.{PEAK}=1e-3,2e-3"], r"nothing is varied"),
        (["--grid.model.qk_nrom=true,false"], r"--grid.model.qk_nrom: .* mean 'qk_norm'\?"),
        (["--grid.model.qk_norm=true,maybe"], r"--grid.model.qk_norm=maybe: expected one of"),
        (["--grid.model.qk_norm=true,true"], r"two arms are called qk_norm=true"),
        ([f"--grid.{PEAK}=3e-3,0.003"], r"peak=3e-3 and peak=0.003 are the same run"),
        (["--grid.model.qk_norm="], r"--grid.model.qk_norm=: has no value"),
        (["--grid.model.qk_norm"], r"--grid.model.qk_norm is not complete"),
        (["--grid.model.qk_norm=true", "--grid.model.qk_norm=false"], r"is given twice"),
        (["--arm=a", "--arm=a"], r"two arms of that name"),
        (["--arm="], r"is not complete"),
        (["--arm=../a", "--arm=b"], r"a name begins with a letter"),
        (["--grid.seed=1,2"], r"seed: all arms have the same seeds"),
        (["--grid.model.qk_norm=true,false", f"--tune.{PEAK}=1e-3"], r"name 2 values or more"),
        (
            [f"--grid.{PEAK}=1e-3,2e-3", f"--tune.{PEAK}=1e-3,2e-3"],
            r"peak is varied in two ways at once",
        ),
        ([f"--range.{PEAK}=1e-3..1e-2"], r"--random=N and --range.PATH=LOW..HIGH go together"),
        (["--config.model.qk_nrom=true"], r"--config.model.qk_nrom: .* mean 'qk_norm'\?"),
    ],
)
def test_bad_flags_are_one_line_that_names_them(items, message):
    with pytest.raises(InputError, match=message) as error:
        parse_sweep("olmo_nano", items)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["2e-2..1e-2", "x", "0..1:log"])
def test_a_range_without_numbers_names_its_flag(text):
    with pytest.raises(InputError, match=rf"--range.{PEAK}={text}: "):
        parse_sweep("olmo_nano", [f"--range.{PEAK}={text}"], random=2)


def test_the_flags_of_a_sweep_are_split_from_the_others():
    argv = ["--config=x", "--config.a=1", "--jobs=2", "--grid.b=1,2", "--arm=a", "--seeds=3"]
    rest, items = split_sweep(argv)
    assert rest == ["--config=x", "--jobs=2", "--seeds=3"]
    assert items == ["--config.a=1", "--grid.b=1,2", "--arm=a"]


def test_values_may_be_python_values():
    written = make_sweep("olmo_nano", grid={"model.qk_norm": (True, False), PEAK: (3e-3,)})
    assert written == make_sweep("olmo_nano", grid={"model.qk_norm": "true,false", PEAK: "0.003"})


def test_a_sweep_is_read_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    head = "from jaxpretrain.api import make_sweep\n\ndef get_sweep():\n    return "
    file.write_text(head + "make_sweep('olmo_nano', grid={'model.qk_norm': (True, False)})\n")
    assert [arm.name for arm in load_sweep(str(file)).arms] == ["qk_norm=true", "qk_norm=false"]
    for text, message in (
        (head + "make_sweep('olmo_nano')\n", r"mine.py: nothing is varied"),
        (head + "3\n", r"needs a function get_sweep\(\)"),
        ("x = 1\n", r"needs a function get_sweep\(\)"),
        ("def get_sweep(:\n", r"mine.py:1: "),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_sweep(str(file))
    with pytest.raises(InputError, match=r"none.py: no such file"):
        load_sweep(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match=r"--sweep=mine: no such sweep"):
        load_sweep("mine")
