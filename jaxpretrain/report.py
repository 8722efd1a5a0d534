"""Reports runs as one HTML file, also runs that go on and runs that failed.

    python -m jaxpretrain.report runs/nano
    python -m jaxpretrain.report runs/a runs/b --output=both.html
    python -m jaxpretrain.report runs

The file needs no server and no network.
"""

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.paths import as_path


def main(argv: list[str]) -> None:
    """Writes the file, then prints the findings of each run and where the file is."""
    flags = make_parser().parse_args(argv)
    if not (workdirs := [*flags.folders, *flags.workdir]):
        raise InputError("give the folder of a run, such as runs/quickstart")
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.reports.page import write_report

    for line in write_report(workdirs, flags.output, flags.csv):
        print(line)


def make_parser() -> Parser:
    """Returns the parser of the command."""
    usage = "%(prog)s DIR... [FLAGS]"
    parser = Parser(prog="jaxpretrain report", usage=usage, description=__doc__)
    add = parser.add_argument
    folder = "folder of a run, or a folder that holds folders of runs"
    add("folders", metavar="DIR", type=as_path, nargs="*", help=folder)
    add(
        "--workdir",
        metavar="DIR",
        type=as_path,
        action="append",
        default=[],
        help="another DIR; repeatable",
    )
    where = "HTML file to write (default: report.html in the folder of the run, or of several runs "
    add("--output", metavar="FILE", type=as_path, help=where + "in the folder above)")
    add("--csv", metavar="FILE", type=as_path, help="CSV file for the table of the runs")
    return parser


if __name__ == "__main__":
    run(main)
