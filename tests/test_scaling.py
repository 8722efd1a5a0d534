"""The scaling command, from a ladder of tiny runs to the score of a prediction."""

import json

import pytest

from jaxpretrain.main import main as train
from jaxpretrain.report import main as report
from jaxpretrain.scaling import main
from tests.laws.published import DATA, SHARED, needs_shared
from tests.sweeps.tiny import Ended, HereLauncher, write_config

LADDER = DATA / "olmo_ladder.csv"
COLUMNS = "--columns=n=N_non_embedding,d=D_tokens,loss=ce5_c4_en"
FITTED = ("--where=length=1xC,2xC,5xC,10xC", "--where=N_non_embedding<2e9", "--bootstraps=30")
SIZES = """

def get_config(place="8"):
    from dataclasses import replace
    size, _, length = place.partition("-")
    config = get_base()
    steps = round(4 * float(length.removesuffix("x") or 1))
    return replace(
        config,
        model=replace(config.model, d_ff=int(size)),
        train=replace(config.train, duration=f"{steps} steps"),
    )
"""


@pytest.fixture
def config(tmp_path):
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace("def get_config()", "def get_base()") + SIZES)
    return path


def test_a_published_ladder_predicts_its_large_run(run_command):
    flags = (f"--points={LADDER}", COLUMNS, *FITTED, "--predict=n=13202396160,d=5e12")
    code, output, _ = run_command(main, *flags, "--json")
    document = json.loads(output)
    assert code == 0
    assert document["prediction"]["loss"] == pytest.approx(2.34437, abs=5e-6)
    assert document["prediction"]["low"] < 2.437876 < document["prediction"]["high"]
    assert {"A", "B", "E", "alpha", "beta", "objective", "num_points", "intervals"} <= set(
        document["fits"][0]
    )
    code, output, _ = run_command(main, *flags)
    assert "13.2B parameters and 5T tokens: ce5_c4_en 2.3444" in output


@needs_shared
def test_the_fit_of_chinchilla_is_reproduced(run_command):
    points = SHARED / "epoch_chinchilla_svg_extracted_data.csv"
    columns = "--columns=n=Model Size,c=Training FLOP,loss=loss"
    flags = (f"--points={points}", columns, "--drop_highest=5", "--bootstraps=2", "--json")
    huber = json.loads(run_command(main, *flags)[1])["fits"][0]
    assert huber["objective"] == pytest.approx(1.01827e-3, abs=1e-8)
    assert huber["num_points"] == 240


def test_published_optima_have_the_published_exponent(run_command):
    conditions = ("dataset=rw", "hparams=tuned")
    where = [f"--where={condition}" for condition in conditions]
    flags = (f"--points={DATA / 'porian_optima.csv'}", "--columns=n=n_opt,c=flops,loss=loss")
    code, output, _ = run_command(main, *flags, *where, "--optima", "--json")
    assert code == 0
    assert json.loads(output)["fits"][0]["n_exponent"] == pytest.approx(0.497, abs=0.01)


def test_a_ladder_is_planned_as_a_whole(run_command, config):
    flags = (f"--config={config}", "--sizes=8,16", "--multiples=1,2", "--plan_only", "--json")
    code, output, error = run_command(main, *flags)
    assert code == 0
    assert [arm["name"] for arm in json.loads(output)["arms"]] == ["8-1x", "8-2x", "16-1x", "16-2x"]
    assert "in all" in error


def test_the_same_command_goes_on_with_a_ladder_that_may_grow(
    run_command, config, monkeypatch, tmp_path
):
    started = []

    class Failing(HereLauncher):
        def start(self, command, log):
            started.append(log.stem)
            log.parent.mkdir(parents=True, exist_ok=True)
            return Ended(1)

    monkeypatch.setattr("jaxpretrain.sweeps.console.LocalLauncher", lambda *_: Failing())
    flags = (f"--config={config}", f"--workdir={tmp_path / 'ladder'}", "--multiples=1,2")
    assert run_command(main, *flags, "--sizes=8,16")[0] == 1
    assert len(started) == 4
    code, output, _ = run_command(main, *flags, "--sizes=8,16,24")
    assert code == 1
    assert "6 runs: 6 arms x 1 seed" in output
    assert len(started) == 6  # what has failed waits for --retry_failed


@pytest.mark.slow
def test_a_ladder_is_trained_fitted_and_its_prediction_scored(
    run_command, config, monkeypatch, tmp_path
):
    launcher = HereLauncher()
    monkeypatch.setattr("jaxpretrain.sweeps.console.LocalLauncher", lambda *_: launcher)
    ladder, large = tmp_path / "ladder", tmp_path / "large"
    flags = (f"--config={config}", "--sizes=8,16,32", "--multiples=1,2,4", f"--workdir={ladder}")
    code, output, error = run_command(main, *flags)
    assert code == 0, error
    assert "9 runs: 9 arms x 1 seed" in output
    assert "not equal" not in output
    assert len(launcher.commands) == 9
    assert run_command(main, *flags)[0] == 0
    assert len(launcher.commands) == 9  # finished runs are kept

    fit = (ladder, "--bootstraps=10", f"--predict={config}:64-8x", f"--workdir={large}")
    code, output, error = run_command(main, *fit)
    assert code == 0, error
    said = json.loads((large / "prediction.json").read_text())
    assert (said["metric"], said["hindcast"], said["num_points"]) == (
        "eval/validation/loss",
        False,
        9,
    )
    assert f"Prediction for {said['parameters'] / 1e3:.3g}k parameters" in output

    assert train([f"--config={config}:64-8x", f"--workdir={large}"]) == 0
    code, output, _ = run_command(report, large)
    assert "prediction scored (eval/validation/loss)" in output
    code, _, error = run_command(main, *fit)
    assert code == 2
    assert "has already begun" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([f"--points={LADDER}"], "--columns=n=NAME"),
        ([], "give the folders of runs, --points=FILE with --columns, or --sizes=LIST"),
        ([f"--points={LADDER}", COLUMNS, "--where=model=13B"], "1 points: a law with 5"),
        ([f"--points={LADDER}", COLUMNS + "_"], "Did you mean 'ce5_c4_en'"),
        ([f"--points={LADDER}", COLUMNS, "--workdir=x"], "--predict=CONFIG is about"),
        ([f"--points={LADDER}", COLUMNS, "--predict=a", "--workdir=x"], "--metric=NAME"),
        (
            [f"--points={LADDER}", COLUMNS, "--predict=a", "--workdir=x", "--metric=b"],
            "--metric=b: ",
        ),
        (
            [f"--points={LADDER}", COLUMNS, "--where=length!=", "--drop_highest=99"],
            "--drop_highest=99: it is 0 to 31",
        ),
        ([f"--points={LADDER}", COLUMNS, "--tasks=a=b"], "write NAME=BITS_PER_BYTE"),
        ([f"--points={LADDER}", COLUMNS, "--hindcast"], "--hindcast: give --predict"),
        ([f"--points={LADDER}", COLUMNS, "--rule=step_law"], "--rule goes with --sizes"),
        (["runs/x", "--multiples=1"], "--multiples goes with --sizes"),
        ([f"--points={LADDER}", COLUMNS, "--config.seed=3"], "--config.seed goes with --predict"),
        (["--sizes=1,2"], "give --config and --workdir"),
        (["--sizes=1,2", "runs/x"], "runs/x: folders of runs do not go with --sizes=LIST"),
        ([f"--points={LADDER}", "runs/x"], "do not go with --points=FILE"),
        (["--bootstraps=0", "runs/x"], "--bootstraps=0: must be positive"),
        (["--last=0", "runs/x"], "--last=0: must be positive"),
        (["runs/x", COLUMNS], "--columns goes with --points=FILE, not with folders of runs"),
        (["runs/x", "--jobs=2"], "--jobs goes with --sizes=LIST, not with folders of runs"),
        ([f"--points={LADDER}", COLUMNS, "--retry_failed"], "--retry_failed goes with --sizes"),
        ([f"--points={LADDER}", COLUMNS, "--launcher=slurm"], "--launcher goes with --sizes"),
        ([f"--points={LADDER}", COLUMNS, "--last=5"], "how the run of --workdir is scored"),
        ([f"--points={LADDER}", COLUMNS, "--metric=a"], "how the run of --workdir is scored"),
        ([f"--points={LADDER}", COLUMNS, "--budgets="], "--budgets= has no value"),
        ([f"--points={LADDER}", COLUMNS, "--optima", "--budgets=1"], "not with --optima"),
        (["--sizes=1,2", "--drop_highest=2"], "--drop_highest goes with --points=FILE or folders"),
        (["--config=a", "--sizes=1", "--workdir=x", "--multiples=1", "--budgets=1"], "one of them"),
    ],
)
def test_bad_flags_are_one_line(run_command, flags, words):
    code, _, error = run_command(main, *flags)
    assert code == 2
    assert words in error
    assert len(error.strip().splitlines()) == 1
