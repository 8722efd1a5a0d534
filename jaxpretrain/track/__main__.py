"""Sends a run's folder to trackers, also long after the run; what they have is not sent again.

    python -m jaxpretrain.track runs/nano --to=mlflow
    WANDB_MODE=offline python -m jaxpretrain.track runs/nano --to=wandb
    python -m jaxpretrain.track runs/ablation --to=wandb,mlflow

Without --to, the trackers are those of the run's config. A folder that holds runs, such as that of
a sweep, is sent run by run.
"""

import sys
from pathlib import Path

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.paths import as_path
from jaxpretrain.storage.run_documents import ExperimentFile, read_document, runs_in
from jaxpretrain.track.contract import (
    TRACKERS,
    TrackerName,
    parse_trackers,
    require_packages,
    runs_of_sweep,
)
from jaxpretrain.track.follow import in_a_line, send


def main(argv: list[str]) -> int:
    """Sends each run to each tracker, and prints a line about it; 1 where one has failed."""
    flags = make_parser().parse_args(argv)
    given = parse_trackers(flags.to, "--to") if flags.to is not None else None
    if given is not None:
        require_packages(given, "--to")
    code = 0
    for folder in _runs(flags.folder):
        for name in _configured(folder) if given is None else given:
            try:
                send(folder, name)
            except InputError:
                raise
            except Exception as error:  # of the tracker, whatever it may be: the others go on
                print(f"error: {folder}: {name}: {in_a_line(error)}", file=sys.stderr)
                code = 1
            else:
                print(f"{folder}: {name} has all of it")
    return code


def make_parser() -> Parser:
    """Returns the parser of the command."""
    usage = "%(prog)s DIR [--to=NAME,...]"
    parser = Parser(prog="jaxpretrain track", usage=usage, description=__doc__)
    folder = "folder of a run, or a folder that holds folders of runs"
    parser.add_argument("folder", metavar="DIR", type=as_path, help=folder)
    to = f"trackers, separated by commas: {', '.join(TRACKERS)} (default: monitor.trackers)"
    parser.add_argument("--to", metavar="NAMES", help=to)
    return parser


def _runs(folder: Path) -> list[Path]:
    """Returns the folder of a run, or those of a sweep, or those right below it."""
    if not (found := runs_in(folder, runs_of_sweep(folder))):
        raise InputError(f"{folder}: no run has written metrics there; name a run's folder")
    return found


def _configured(folder: Path) -> tuple[TrackerName, ...]:
    """Returns the trackers that a run has in its config; InputError where it has none."""
    document = read_document(folder / "experiment.json", ExperimentFile)
    names = document.get("config", {}).get("monitor", {}).get("trackers", [])
    if not names:
        raise InputError(f"{folder}: its config names no trackers; add --to={','.join(TRACKERS)}")
    trackers = parse_trackers(",".join(names), "monitor.trackers")
    require_packages(trackers, "monitor.trackers")
    return trackers


if __name__ == "__main__":
    run(main)
