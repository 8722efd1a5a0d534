"""The kinds of faults: each a small function that makes one, and says how the run must end.

A kind starts a run with a fault, checks exit codes and lines, and lets the run go on (`recover`),
which compares the end with that of a run that nothing interrupted.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.faults import buckets, damage, points
from tests.faults.case import Case, Failed, NotHere
from tests.faults.points import PHASES, at, only
from tests.faults.world import NUM_STEPS, SAVE_EVERY

SIGKILL = -int(signal.SIGKILL)
ANY_FAILURE = frozenset({1, 76, 134, -6})
"""How a process may end that has lost another one: by itself, or aborted by JAX."""
FROM_KILL = frozenset({SIGKILL})
BAD_STEP = 8
SAVES = NUM_STEPS // SAVE_EVERY
STEADY = ("step", "evaluation", "save is written")
"""Phases that come again and again."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    make: Callable[[Case], None]
    num_processes: tuple[int, ...] = (1, 1, 2)
    """What is drawn from for each fault."""


def _after_death(case: Case, victim: int, arm: Callable[[], None]) -> None:
    """One process dies where it is armed to; all others end too, and the run goes on."""
    gang = case.start(only(victim, arm))
    case.check_codes(
        gang, *(FROM_KILL if i == victim else ANY_FAILURE for i in range(case.num_processes))
    )
    case.recover(gang)


def killed_at(
    case: Case, phase: str, *, calls: tuple[int, ...] = (1,), after: bool = False
) -> None:
    victim = 0 if phase in points.OF_THE_FIRST else case.anyone()
    call = case.draw.choice(calls)
    place = partial(at, PHASES[phase], points.kill, call=call, after=after)
    _after_death(case, victim, place)


def killed_in_start(case: Case) -> None:
    killed_at(case, case.draw.choice(["start", "restore", "compile", "first batch"]))


def killed_in_write(case: Case) -> None:
    soon = points.kill_soon(case.draw.uniform(0.0, 0.08))
    call = case.draw.randint(1, SAVES)
    _after_death(case, case.anyone(), partial(at, PHASES["save is written"], soon, call=call))


def killed_in_removal(case: Case) -> None:
    call = case.draw.randint(3, SAVES)
    removed = partial(at, PHASES["old save is removed"], points.half_remove, call=call)
    _after_death(case, 0, removed)


def killed_at_random(case: Case) -> None:
    victim, seconds = case.anyone(), case.draw.uniform(0.0, case.usual_seconds)
    # It may die before the others have met it, and they wait as long as they are told to.
    waits = [f"--start_timeout={max(60.0, 2 * case.usual_seconds):.0f}"]
    flags = waits if case.num_processes > 1 else []
    gang = case.start(only(victim, points.kill_soon(seconds)), *flags)
    others = ANY_FAILURE | {0}
    expected = (FROM_KILL | {0} if i == victim else others for i in range(case.num_processes))
    case.check_codes(gang, *expected)
    case.recover(gang)


def killed_again(case: Case) -> None:
    """Killed in the start that follows a kill."""
    for phase in ("step", case.draw.choice(["start", "restore", "compile", "save is written"])):
        call = 7 if phase == "step" else 1
        gang = case.start(only(0, partial(at, PHASES[phase], points.kill, call=call)))
        case.check_codes(gang, FROM_KILL, ANY_FAILURE)
    case.recover(gang)


def told_to_stop_in_start(case: Case) -> None:
    told_to_stop(case, case.draw.choice(["start", "restore", "first batch"]), signal.SIGTERM)


def told_to_stop_at_the_end(case: Case) -> None:
    """All is done by then; only what is printed may be missing."""
    gang = case.start(only(case.anyone(), partial(_tell, "end", signal.SIGTERM, 1)))
    case.check_codes(gang, {0, -int(signal.SIGTERM)})
    case.recover(gang)


def told_to_stop(case: Case, phase: str, number: int, *, last: int = 1) -> None:
    case.note = phase
    call = case.draw.randint(1, last)
    gang = case.start(only(case.anyone(), partial(_tell, phase, number, call)))
    if case.has_stopped(gang):
        case.check_line(gang, r"^stopped and saved; run the same command to go on$")
    case.recover(gang)


def _tell(phase: str, number: int, call: int) -> None:
    at(PHASES[phase], points.send(number), call=call)


def interrupted(case: Case) -> None:
    phases = ["start", "restore", "compile", "first batch", "step", "evaluation"]
    case.note = phase = case.draw.choice([*phases, "save begins", "save is written"])
    gang = case.start(only(0, partial(_tell, phase, signal.SIGINT, 1)))
    case.check_codes(gang, {75})
    case.check_line(gang, "^SIGINT: stopping (after this step|once the first step is compiled)")
    case.recover(gang)


def interrupted_twice(case: Case) -> None:
    phases = ["start", "restore", "compile", "step", "evaluation", "save is written", "save begins"]
    case.note = phase = case.draw.choice(phases)
    call = 1 if phase in ("start", "restore", "compile") else case.draw.randint(1, 3)
    arm = partial(at, PHASES[phase], points.interrupt_twice, call=call)
    gang = case.start(only(0, arm))
    case.check_codes(gang, {130})
    case.recover(gang)


def interrupted_among_others(case: Case) -> None:
    victim = case.anyone()
    gang = case.start(only(victim, partial(_tell, "step", signal.SIGINT, 6)))
    codes = ({130} if i == victim else ANY_FAILURE | {130} for i in range(case.num_processes))
    case.check_codes(gang, *codes)
    case.recover(gang)


def stopped(case: Case) -> None:
    """A process is stopped as a whole, as on a host that hangs."""
    victim = case.anyone()
    phase = case.draw.choice(["rendezvous", "start", "restore", "compile", "first batch", *STEADY])
    call = case.draw.randint(1, 3) if phase in STEADY else 1
    stands_still(case, victim, phase, call, has_limit=case.draw.random() < 0.75)


def stands_still(case: Case, victim: int, phase: str, call: int, *, has_limit: bool) -> None:
    """The others notice that they make no progress, or that it says nothing more."""
    case.note = f"process {victim}, {phase} {call}, {'a' if has_limit else 'no'} limit"
    flags = [case.stall()] if has_limit else []

    def arm(process: int) -> None:
        if phase == "rendezvous":  # whose five minutes no flag makes shorter
            points.shorten_default(30.0)
        if process == victim:
            at(PHASES[phase], points.send(signal.SIGSTOP), call=call)

    gang = case.start(arm, *flags, *(["--start_timeout=30"] if phase == "rendezvous" else []))
    others = [i for i in range(case.num_processes) if i != victim]
    gang.wait_for(lambda: gang.poll() and all(i in gang.codes for i in others))
    gang.kill()
    case.check_codes(gang, *(FROM_KILL if i == victim else {76} for i in range(case.num_processes)))
    noticed = rf"^error: (no progress|process {victim} says nothing) for \d+ s"
    case.check_line(gang, rf"{noticed}.*process {victim} does not answer", others[0])
    damage.check_stacks(case, others)
    case.recover(gang)


def hangs_at(case: Case, phase: str, words: str, call: int = 1) -> None:
    victim = case.anyone()
    hang = partial(at, PHASES.get(phase, phase), points.hang, call=call)
    gang = case.start(only(victim, hang), case.stall())
    case.check_codes(gang, {76})
    case.check_line(gang, rf"^error: no progress for \d+ s.*{words}")
    damage.check_stacks(case, range(case.num_processes))
    case.recover(gang)


def data_fails(case: Case, action: Callable[[], None], line: str) -> None:
    victim = case.anyone()
    gang = case.start(only(victim, partial(at, points.READ, action, call=case.draw.randint(1, 9))))
    codes = ({1} if i == victim else ANY_FAILURE for i in range(case.num_processes))
    case.check_codes(gang, *codes)
    if line not in gang.text(victim):
        raise Failed(f"no line says {line!r}: {case.ends(gang)}")
    case.recover(gang)


def not_a_number(case: Case) -> None:
    gang = case.start(lambda process: points.poison(BAD_STEP))
    case.check_codes(gang, {3})
    case.check_line(gang, rf"^error: loss is nan at step {BAD_STEP}; that step is not saved")
    if max(case.committed(), default=0) >= BAD_STEP:
        raise Failed(f"steps {case.committed()} are saved")
    case.recover(gang)


def out_of_memory(case: Case) -> None:
    arm = partial(at, PHASES["step"], points.run_out_of_memory, call=case.draw.randint(1, 9))
    gang = case.start(lambda process: arm())
    case.check_codes(gang, {2})
    case.check_line(gang, "^error: out of memory: RESOURCE_EXHAUSTED")
    case.recover(gang)


def clock_jumps(case: Case) -> None:
    seconds = case.draw.choice([86_400.0, -86_400.0, 3e8, -3600.0])
    gang = case.start(lambda process: points.shift_clock(seconds, call=case.draw.randint(1, 6)))
    case.check_codes(gang, {0})
    case.recover(gang)


def peer_never_comes(case: Case) -> None:
    timeout = f"--start_timeout={max(5.0, case.usual_seconds / 2):.0f}"
    gang = case.start(None, timeout, leave_out=case.num_processes - 1)
    case.check_codes(gang, {1})
    case.check_line(gang, rf"^error: process {case.num_processes - 1} of .* did not come to")
    case.recover(gang)


def peer_is_lost_at(case: Case, phase: str) -> None:
    victim = case.num_processes - 1
    gang = case.start(only(victim, partial(at, PHASES[phase], points.kill)))
    codes = (FROM_KILL if i == victim else ANY_FAILURE | {0} for i in range(case.num_processes))
    case.check_codes(gang, *codes)
    case.recover(gang)


def two_starts(case: Case) -> None:
    first = case.start()
    if case.draw.random() < 0.5:
        case.wait_step(first, case.draw.randint(1, 6))
    second = case.start()
    codes = sorted([max(first.finish()), max(second.finish())])
    if codes == [0, 0] and " steps are done" in first.text() + second.text():
        raise NotHere("one start came to its end before the other looked")
    if codes != [0, 2]:
        raise Failed(f"they end with {codes}: {case.ends(first)} {case.ends(second)}")
    loser = second if second.codes[0] == 2 else first
    case.check_line(loser, "^error: --workdir=.*: another process (trains|has just begun)")
    case.compare()


def other_processes(case: Case) -> None:
    """Goes on with another number of processes, one among them, and back."""
    case.is_joined = True
    gang = case.start(only(0, partial(_tell, "step", signal.SIGTERM, 4)))
    case.require_stopped(gang)
    other = case.draw.choice([n for n in (1, 2, 4) if n != case.num_processes])
    case.note = f"{other} processes in between"
    gang = case.start(only(0, partial(_tell, "step", signal.SIGTERM, 2)), num_processes=other)
    case.require_stopped(gang)
    case.recover(gang)


def _kind(name: str, make: Callable[..., None], *arguments: object, **options: object) -> Kind:
    """Returns a kind whose function takes more than the case; `on` are its numbers of processes."""
    on = options.pop("on", Kind.num_processes)
    assert isinstance(on, tuple)
    return Kind(name, lambda case: make(case, *arguments, **options), on)


KINDS = (
    _kind("killed at a random time", killed_at_random, on=(1, 1, 2, 4)),
    _kind("killed in the start", killed_in_start),
    _kind("killed in a step", killed_at, "step", calls=range(1, NUM_STEPS), on=(1, 2, 4)),
    _kind("killed in an evaluation", killed_at, "evaluation", calls=(1, 2, 3, 5, 6)),
    _kind("killed before a save", killed_at, "save begins", calls=range(1, SAVES + 1)),
    _kind("killed in the write of a save", killed_in_write, on=(1, 2, 4)),
    _kind("killed before the rename", killed_at, "save is committed", calls=(1, 2, 4)),
    _kind("killed after the rename", killed_at, "save is committed", calls=(1, 3, 4), after=True),
    _kind("killed before a removal", killed_at, "old save is removed", calls=(3, 4)),
    _kind("killed in a removal", killed_in_removal),
    _kind("killed after a removal", killed_at, "old save is removed", calls=(3, 4), after=True),
    _kind("killed at the end", killed_at, "end"),
    _kind("killed again at once", killed_again),
    _kind("SIGTERM in a step", told_to_stop, "step", signal.SIGTERM, last=8, on=(1, 2, 4)),
    Kind("SIGTERM in the start", told_to_stop_in_start),
    Kind("SIGTERM at the end", told_to_stop_at_the_end),
    _kind("SIGTERM in the compilation", told_to_stop, "compile", signal.SIGTERM),
    _kind("SIGTERM in an evaluation", told_to_stop, "evaluation", signal.SIGTERM, last=3),
    _kind("SIGTERM in the first save", told_to_stop, "save is written", signal.SIGTERM),
    _kind("SIGUSR2 in a step", told_to_stop, "step", signal.SIGUSR2, last=8),
    _kind("Ctrl-C", interrupted, on=(1,)),
    _kind("Ctrl-C twice", interrupted_twice, on=(1,)),
    _kind("Ctrl-C of one of several", interrupted_among_others, on=(2,)),
    _kind("a process stands still", stopped, on=(2, 2, 4)),
    _kind("a read that never returns", hangs_at, points.READ, "batch of step", call=10),
    _kind("a step that never ends", hangs_at, "step", "step", call=7),
    _kind("a restore that never ends", hangs_at, "restore", "restore"),
    _kind("a save that never ends", hangs_at, "save is written", "save of step"),
    _kind("an error of the disk in a read", data_fails, points.fail(5), "Input/output error"),
    _kind("an exception in a read", data_fails, points.raise_error, "a fault of the data"),
    _kind("a loss that is no number", not_a_number, on=(1, 2)),
    _kind("out of memory", out_of_memory, on=(1,)),
    _kind("the clock jumps", clock_jumps),
    _kind("a process never comes", peer_never_comes, on=(2, 4)),
    _kind("a process is lost at a save", peer_is_lost_at, "save is written", on=(2, 4)),
    _kind("a process is lost at the end", peer_is_lost_at, "end", on=(2,)),
    _kind("two starts at once", two_starts, on=(1,)),
    Kind("other numbers of processes", other_processes, (2, 4)),
    _kind("a file is cut", damage.damaged, damage.truncate),
    _kind("a bit is flipped", damage.damaged, damage.flip),
    _kind("a file is missing", damage.damaged, damage.remove),
    _kind("a file is empty", damage.damaged, damage.empty),
    _kind("the disk is full", damage.disk_fills),
    _kind("the disk is full for a while", damage.disk_fills, for_a_while=True),
    _kind("the disk is full at the start", damage.disk_is_full_at_the_start, on=(1, 2)),
    _kind("the folder can only be read", damage.read_only, on=(1, 2)),
    _kind("killed, in a bucket", buckets.ends, signal.SIGKILL, {SIGKILL}),
    _kind("SIGTERM, in a bucket", buckets.ends, signal.SIGTERM, {75}),
    _kind("the server fails for a while, in a bucket", buckets.server_fails),
    _kind("the server takes no more, in a bucket", buckets.server_refuses, on=(1, 2)),
    _kind("a copy of the data is damaged, in a bucket", buckets.copy_is_damaged, on=(1,)),
    _kind("a local checkpoint is damaged", damage.local_part_is_damaged, on=(1, 2)),
    _kind("what dead processes left", damage.stale_lock, on=(1, 2)),
)
"""All kinds, in the order in which they are taken."""
