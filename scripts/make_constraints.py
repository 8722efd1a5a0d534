"""Writes constraints.txt: exact versions of all that `pip install '.[dev]'` brings.

    python scripts/make_constraints.py python3.11 python3.12

pip resolves the dependencies for each interpreter without installing them. Versions that differ get
environment markers, so that one file serves all; the last interpreter also speaks for newer ones.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

EXTRAS = "dev,vision,evals,gcs,site"
HEADER = f"""\
# Exact versions of what `pip install '.[{EXTRAS}]'` brings, resolved on Linux x86-64.
# Use: pip install -c constraints.txt -e '.[dev]'. Written by `make constraints`; not by hand.
"""


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Returns the version of an interpreter, such as "3.11", and its packages with versions."""
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", "-", f".[{EXTRAS}]"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    report = json.loads(output)
    packages = (item["metadata"] for item in report["install"])
    versions = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"] for p in packages}
    del versions["jaxpretrain"]
    return report["environment"]["python_version"], versions


def merge(resolved: list[tuple[str, dict[str, str]]]) -> list[str]:
    """Returns a line for each package and each range of Pythons with the same version of it."""
    pythons = [python for python, _ in resolved]
    lines = []
    for name in sorted(set().union(*(versions for _, versions in resolved))):
        found = [versions.get(name) for _, versions in resolved]
        starts = [i for i, version in enumerate(found) if i == 0 or version != found[i - 1]]
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            bounds = [f'python_version >= "{pythons[start]}"'] if start else []
            bounds += [f'python_version < "{pythons[end]}"'] if end else []
            if found[start]:
                marker = f"; {' and '.join(bounds)}" if bounds else ""
                lines.append(f"{name}=={found[start]}{marker}")
    return lines


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Writes constraints.txt.")
    parser.add_argument("python", nargs="+", help="interpreters to resolve for")
    resolved = [resolve(python) for python in parser.parse_args().python]
    resolved.sort(key=lambda item: tuple(map(int, item[0].split("."))))
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(merge(resolved)) + "\n")


if __name__ == "__main__":
    main()
