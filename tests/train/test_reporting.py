"""The reporter of a run, as the run opens it."""

from jaxpretrain.train.program import Program
from jaxpretrain.train.reporting import work_of
from jaxpretrain.train.stages import StageProgram, Stages


def test_the_work_of_a_run_is_what_its_config_says(program: Program) -> None:
    timeline = program.experiment.timeline
    work = work_of(Stages((StageProgram(0, timeline.num_steps, num_pieces=1, program=program),)))
    assert (work.unit, work.units_per_example, work.total_steps) == ("tokens", 16, 5)
    assert (work.eval_every, work.save_every, work.num_devices) == (2, 2, 1)
    assert work.units(3) == 3 * 16 * 16
    assert work.peak_flops is None  # of a CPU
    assert 0 < work.flops_per_unit(1, True) < work.flops_per_unit(1, False)
