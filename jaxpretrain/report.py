"""A report of runs as one HTML file: python -m jaxpretrain.report --workdir=DIR [--workdir=DIR2].

Runs that go on and runs that crashed can be reported as well. The file needs no server and no
network.
"""

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import as_path


def main(argv: list[str]) -> None:
    """Writes the file and says where it is."""
    parser = Parser(prog="python -m jaxpretrain.report", description="Reports runs as HTML.")
    parser.add_argument(
        "--workdir",
        type=as_path,
        action="append",
        required=True,
        help="folder of a run; repeatable",
    )
    parser.add_argument("--output", type=as_path, help="by default report.html in the first folder")
    flags = parser.parse_args(argv)

    from jaxpretrain.reports.page import page
    from jaxpretrain.reports.runs import read_run
    from jaxpretrain.storage.files import write_atomically  # after the flags: these import JAX

    runs = [read_run(workdir) for workdir in flags.workdir]
    output = flags.output or flags.workdir[0] / "report.html"
    document = page(runs, flags.workdir)
    try:
        write_atomically(output, document)
    except OSError as error:
        raise InputError(f"--output={output}: {error.strerror}") from error
    for one in runs:
        held = [finding.title.lower() for finding in one.findings if not finding.is_over]
        print(f"{one.name}: {', '.join(held) or 'nothing stands out'}")
    print(f"{output}: {len(document.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
