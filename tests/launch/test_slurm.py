import subprocess

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.slurm import write_script
from tests.launch.conftest import check_script, flags_of, training


def script(*flags: str, runs: int = 1) -> str:
    trainings = [training(f"run {i}", f"--config.seed={i}") for i in range(runs)]
    return write_script("nano", trainings, flags_of("slurm", *flags))


def test_flags_become_directives():
    text = script("--nodes=4", "--processes_per_node=8", "--gpus_per_node=8", "--time=1-00:00:00")
    for line in ("nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=1-00:00:00"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --signal=TERM@120\n" in text and "#SBATCH --requeue\n" in text
    assert "partition" not in text and "array" not in text
    assert "#SBATCH --partition=a100,h100\n" in script("--partition=a100,h100")


@pytest.mark.parametrize("runs", [1, 3])
def test_the_script_has_no_fault(runs: int):
    check_script(script("--nodes=2", runs=runs))


def test_each_job_of_an_array_has_its_run():
    text = script(runs=3)
    assert "#SBATCH --array=0-2\n" in text
    cases = text[text.index("case $SLURM_ARRAY") : text.index("newest()")]
    shown = subprocess.run(
        [
            "bash",
            "-c",
            f'SLURM_ARRAY_TASK_ID=1\n{cases}\necho "$workdir"; printf "%s\\n" "${{flags[@]}}"',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == [
        "/shared/it's run 1",
        "--config=olmo_nano",
        "--workdir=/shared/it's run 1",
        "--config.seed=1",
    ]


# A script is run with programs that play srun and the command: exit codes and newest steps come
# from lists.
PLAYED = """
codes=({codes})
steps=({steps})
starts=0
srun() {{ starts=$((starts + 1)); return "${{codes[starts - 1]}}"; }}
scontrol() {{ echo "scontrol $1 ${{3:-}}"; }}
squeue() {{ echo "{comment}"; }}
held() {{ [[ "{codes}" == 137\ 9* ]]; }}
sleep() {{ :; }}
trap 'echo "$starts starts"' EXIT
SLURM_JOB_ID=7
"""


@pytest.mark.parametrize(
    ("codes", "steps", "end", "told"),
    [
        ("0", "-1", 0, ["1 starts"]),
        ("2", "-1", 2, ["1 starts"]),
        ("3", "-1", 3, ["1 starts"]),
        ("75", "-1", 75, ["scontrol requeue", "1 starts"]),
        ("137 134 0", "-1 10 20 20", 0, ["3 starts"]),
        ("1 1 1 1", "-1", 1, ["3 starts"]),  # given up
        (  # a node is lost
            "137 9",
            "10 20",
            137,
            ["scontrol update Comment=0 failed at step 20", "scontrol requeue", "1 starts"],
        ),
        (  # and again, before there was progress
            "137 9 1",
            "10",
            137,
            ["scontrol update Comment=1 failed at step 10", "scontrol requeue", "1 starts"],
        ),
        ("137 1 1 0", "-1 10 10 10", 0, ["4 starts"]),  # counted since the last progress
    ],
)
def test_exit_codes_and_progress_decide(codes: str, steps: str, end: int, told: list[str]):
    text = script("--max_restarts=2")
    body = text[text.index("# The comment") :]
    # The newest step before a start is the list's at the number of starts, or its last.
    newest = 'newest() { echo "${steps[starts < ${#steps[@]} ? starts : ${#steps[@]} - 1]}"; }\n'
    played = (
        PLAYED.format(codes=codes, steps=steps, comment="(null)") + newest + "flags=()\n" + body
    )
    done = subprocess.run(["bash", "-c", played], capture_output=True, text=True, timeout=20)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert (done.returncode, lines) == (end, told), done.stderr


@pytest.mark.parametrize(
    ("comment", "num_starts"),
    [
        ("1 failed at step 10", 2),
        ("1 failed at step 5", 3),  # there was progress since
        ("2 nodes of mine", 3),
    ],
)
def test_failed_starts_are_counted_over_a_requeue(comment: str, num_starts: int):
    text = script("--max_restarts=2")
    played = PLAYED.format(codes="1 1 1", steps="-1", comment=comment)
    played += "newest() { echo 10; }\nflags=()\n" + text[text.index("# The comment") :]
    done = subprocess.run(["bash", "-c", played], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.split()) == (1, [str(num_starts), "starts"]), done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--time=soon", "--time=soon: write minutes, H:M:S or D-H:M:S"),
        ("--time=1:2:3:4", "write minutes"),
        ("--time=2", "--time=2 is over before --notice=120 seconds"),
        ("--partition=a b", "is no name of a partition"),
    ],
)
def test_bad_values_are_one_line(flag: str, message: str):
    with pytest.raises(InputError, match=message):
        script(flag)


@pytest.mark.parametrize("time", ["0", "3", "2:01", "0:2:01", "1-0", "1-0:0", "0-0:2:1"])
def test_times_of_slurm_are_understood(time: str):
    assert f"--time={time}\n" in script(f"--time={time}")
