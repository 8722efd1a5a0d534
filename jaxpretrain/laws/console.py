"""The scaling command after its flags are parsed: points, fits, a prediction, the page."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.metric_names import lower_is_better
from jaxpretrain.display.progress import activity
from jaxpretrain.laws.analysis import analyse, describe
from jaxpretrain.laws.ladder import make_ladder, parse_numbers
from jaxpretrain.laws.points import (
    Points,
    Row,
    parse_columns,
    points_of,
    read_table,
    require_column,
)
from jaxpretrain.laws.prediction import (
    doubts,
    parse_target,
    predict,
    require_place,
    write_prediction,
)
from jaxpretrain.laws.runs import points_in, scores_in
from jaxpretrain.laws.told import tell
from jaxpretrain.sweeps.arms import Override
from jaxpretrain.sweeps.console import run_arms

FEW_RESAMPLINGS = 100
"""The number of resamplings below which the ends of intervals are rough."""
PAGE = "scaling.html"
"""The page about the law of runs, in the first of the folders that were named."""


def run_ladder(
    flags: Namespace,
    overrides: Sequence[Override],
    environment: Mapping[str, str],
    gpus: Sequence[tuple[str, str]],
) -> tuple[int, Document]:
    """Plans a ladder of runs and trains them, as `sweep` does; returns exit code and document.

    Args:
      flags: the flags of the command.
      overrides: the settings of all runs.
      environment: the environment of the runs.
      gpus: the number and the name of each GPU that the runs may use.

    Raises:
      InputError: something that was given is wrong.
    """
    if flags.config is None or (flags.workdir is None and not flags.plan_only):
        raise InputError("--sizes: give --config and --workdir, the folder of the ladder")
    if flags.multiples and flags.budgets:
        raise InputError("--multiples and --budgets both say how long runs are: give one of them")
    ladder = make_ladder(
        flags.config,
        list(filter(None, flags.sizes.split(","))),
        multiples=parse_numbers("--multiples", flags.multiples) or [1.0],
        budgets=parse_numbers("--budgets", flags.budgets),
        rule=flags.rule,
        shared=overrides,
    )
    flags = Namespace(**vars(flags), unequal=True, equal=None, control=None)
    return run_arms(ladder, flags, environment, gpus, compares=False)


def tell_scaling(flags: Namespace, overrides: Sequence[Override]) -> str:
    """Does what `run_scaling` does; returns words or, with `--json`, the document."""
    document = run_scaling(flags, overrides)
    return json.dumps(document) if flags.json else "\n".join(tell(document))


def run_scaling(flags: Namespace, overrides: Sequence[Override]) -> Document:
    """Fits laws to the points that flags name, predicts what they ask for; returns the document.

    Raises:
      InputError: something that was given is wrong, or determines no law.
    """
    hindcast = False
    if overrides and not flags.predict:
        raise InputError(f"--config.{overrides[0][0]} goes with --predict=CONFIG or --sizes=LIST")
    if flags.hindcast and not flags.workdir:
        raise InputError("--hindcast: give --predict=CONFIG and --workdir, the folder of the run")
    if flags.workdir and not flags.predict:
        raise InputError("--workdir is the folder of the run that --predict=CONFIG is about")
    if flags.points and not flags.workdir and (flags.metric or flags.last > 1):
        raise InputError(
            "--metric and --last: say with --points how the run of --workdir is scored"
        )
    if flags.workdir and flags.points and not _is_loss(flags.metric or ""):
        raise InputError(
            f"--metric={flags.metric or 'NAME'}: name the loss of the run that the points are "
            "about, such as eval/validation/loss; the prediction is scored by it"
        )
    if flags.predict and flags.workdir:
        hindcast = require_place(flags.workdir, hindcast=flags.hindcast)
    target = flags.predict and parse_target(flags.predict, tuple(overrides))
    budgets = parse_numbers("--budgets", flags.budgets)
    points = read_points(flags)
    with activity("fitting"):
        found = analyse(points, flags.bootstraps, are_optima=flags.optima)
        document = describe(found, budgets)
    if flags.bootstraps < FEW_RESAMPLINGS:
        document["warnings"].append(f"--bootstraps={flags.bootstraps}: intervals are rough")
    if flags.folders:
        document["scored"], unscored = scores_in(flags.folders)
        document["warnings"] += unscored
    if target:
        document["prediction"] = predict(found, target, last=flags.last, hindcast=hindcast)
        document["warnings"] += doubts(found.points, target)
        if flags.workdir:
            write_prediction(flags.workdir, document["prediction"])
    if output := flags.output or (flags.folders and flags.folders[0] / PAGE):
        from jaxpretrain.reports.page import write_scaling  # takes a second

        write_scaling(document, output)
    return document


def _is_loss(metric: str) -> bool:
    return metric.startswith(("eval/", "train/")) and lower_is_better(metric)


def read_points(flags: Namespace) -> Points:
    """Returns the points of a table or of run folders, without those that flags leave out.

    Raises:
      InputError: there are none, or a file cannot be read.
    """
    if flags.points is None:
        points = points_in(flags.folders, flags.metric, flags.last, predicted=flags.workdir)
        return points.without_highest(flags.drop_highest)
    if flags.columns is None:
        raise InputError("--points: name its columns, --columns=n=NAME,d=NAME,loss=NAME")
    rows = read_table(flags.points)
    columns = parse_columns(flags.columns, rows)
    points = points_of(rows, columns, flags.where, parse_tasks(flags.tasks, rows))
    points = replace(points, metric=flags.metric or points.metric)
    return points.without_highest(flags.drop_highest)


def parse_tasks(texts: Sequence[str], rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Returns the columns of each task in `NAME=BITS_PER_BYTE:ACCURACY`, names of columns.

    Raises:
      InputError: a text has another form, or the table has no such column.
    """
    found = {}
    for text in texts:
        name, equals, columns = text.partition("=")
        bits, colon, share = columns.partition(":")
        if not (name and equals and colon):
            raise InputError(f"--tasks={text}: write NAME=BITS_PER_BYTE_COLUMN:ACCURACY_COLUMN")
        if name in found:
            raise InputError(f"--tasks={text}: {name} is there twice")
        flag = f"--tasks={text}"
        found[name] = (require_column(bits, rows, flag), require_column(share, rows, flag))
    return found
