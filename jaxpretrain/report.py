"""A report of runs as one HTML file: python -m jaxpretrain.report --workdir=DIR [--workdir=DIR2].

Runs that go on and runs that crashed can be reported as well. The file needs no server and no
network.
"""

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.paths import as_path


def main(argv: list[str]) -> None:
    """Writes the file, then prints the findings of each run and where the file is."""
    parser = Parser(prog="python -m jaxpretrain.report", description="Reports runs as HTML.")
    add = parser.add_argument
    workdir = "folder of a run; repeatable"
    add("--workdir", type=as_path, action="append", required=True, help=workdir)
    add("--output", type=as_path, help="by default report.html in the first folder")
    flags = parser.parse_args(argv)
    from jaxpretrain.reports.page import write_report  # after the flags: it imports JAX

    for line in write_report(flags.workdir, flags.output):
        print(line)


if __name__ == "__main__":
    run(main)
