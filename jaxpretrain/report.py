"""A report of runs as one HTML file: python -m jaxpretrain.report DIR...

Runs that go on and runs that crashed can be reported as well. The file needs no server and no
network.
"""

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import as_path


def main(argv: list[str]) -> None:
    """Writes the file, then prints the findings of each run and where the file is."""
    parser = Parser(prog="python -m jaxpretrain.report", description="Reports runs as HTML.")
    add = parser.add_argument
    folder = "folder of a run, or a folder that holds folders of runs"
    add("folders", metavar="DIR", type=as_path, nargs="*", help=folder)
    further = "a further DIR; repeatable"
    add("--workdir", metavar="DIR", type=as_path, action="append", default=[], help=further)
    where = "by default report.html in the run's folder, or in the one that holds all runs"
    add("--output", metavar="FILE", type=as_path, help=where)
    table = "writes the table of the runs as CSV too; a link on the page saves the same"
    add("--csv", metavar="FILE", type=as_path, help=table)
    flags = parser.parse_args(argv)
    if not (workdirs := [*flags.folders, *flags.workdir]):
        raise InputError("give the folder of a run, such as runs/quickstart")
    from jaxpretrain.reports.page import write_report  # after the flags: it imports JAX

    for line in write_report(workdirs, flags.output, flags.csv):
        print(line)


if __name__ == "__main__":
    run(main)
