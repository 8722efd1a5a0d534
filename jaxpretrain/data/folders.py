"""The files below a folder: one walk for text, token files and images.

Links are followed, and no folder is entered twice. Names that begin with a dot are left out, as
`ls` and globs leave them out: they are what systems and editors put there.
"""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from jaxpretrain.config.errors import InputError

_CONTAINERS = (
    *(".parquet", ".arrow", ".feather", ".orc", ".avro", ".csv", ".tsv", ".tfrecord", ".bin"),
    *(".bz2", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz"),
)
"""The suffixes of files that may hold a whole corpus."""

_MOST_KINDS = 8
"""The number of kinds of skipped files that a message names."""

Found = tuple[list[Path], tuple[str, ...]]
"""The files of a folder that can be read, sorted, and a line about those skipped, if any."""


def find_files(
    root: Path,
    is_read: Callable[[Path], bool],
    *,
    what: str,
    if_none: str,
    if_few: str,
    beside: tuple[str, ...] = (),
) -> Found:
    """Finds the files below an existing folder that can be read, for which `is_read` is true.

    `what` is the name of such files and their kinds, for messages; files with the suffixes `beside`
    belong to them. Raises InputError where there are none, with the advice `if_none`, or where most
    files are of other kinds, with `if_few` too.
    """
    files, num_hidden = files_below(root)
    paths = [path for path in files if is_read(path)]
    skipped = [path for path in files if not is_read(path) and path.suffix not in beside]
    counts = Counter(path.suffix.lower() or "without a suffix" for path in skipped)
    others = _listed(counts, num_hidden)
    if not paths:
        raise InputError(f"{root}: holds no {what}, but {others or 'nothing'}; {if_none}")
    if _is_most(skipped, paths):
        raise InputError(
            f"{root}: most of it would be skipped ({others}), and {len(paths):,} would be read as"
            f" {what}; move or convert the others, or {if_few}"
        )
    return paths, (f"{root}: skipped {others}",) if others else ()


def _listed(counts: Counter[str], num_hidden: int) -> str:
    """Returns the commonest kinds of files with their counts, and the rest as one sum."""
    common = counts.most_common(_MOST_KINDS)
    listed = [f"{count:,} {kind}" for kind, count in sorted(common)]
    if num_kinds := len(counts) - len(common):
        rest = counts.total() - sum(count for _, count in common)
        listed.append(f"{rest:,} of {num_kinds:,} more kinds")
    return ", ".join([*listed, *([f"{num_hidden:,} hidden"] if num_hidden else [])])


def files_below(root: Path) -> tuple[list[Path], int]:
    """Returns all files below a folder, sorted, and the number of names that begin with a dot.

    A folder that can be reached in several ways counts once, by its own name rather than a link's.
    A link that leads nowhere counts as a file: reading it is an error, where skipping it is none.
    """
    files, entered, num_hidden = [], set(), 0
    folders, links = [root], []
    while folders or links:
        # Links last, and in order, so that the names of files do not depend on the disk.
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        new_links = []
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                num_hidden += 1
            elif entry.is_dir():
                (new_links if entry.is_symlink() else folders).append(path)
            elif entry.is_file() or entry.is_symlink():
                files.append(path)
        links = sorted(links + new_links)
    return sorted(files), num_hidden


def read_list(file_list: Path, flag: str) -> list[str]:
    """Returns the names in a text file with one a line; empty lines do not count.

    Raises InputError, which begins with the flag, where it cannot be read or names nothing.
    """
    try:
        lines = file_list.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag}: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{flag}: names no files")
    return names


def matching_files(pattern: str) -> list[Path]:
    """Returns the matches of a glob, sorted; `**` stands for the folders of `files_below`."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(map(Path, glob.glob(pattern)))
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        return []
    files, _ = files_below(root)
    return [f for f in files if _matches(f.relative_to(root).parts, parts[first:])]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    named = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return named and _matches(parts[1:], pattern[1:])


def _is_most(skipped: list[Path], paths: list[Path]) -> bool:
    """Returns true where more files are skipped than read, or more bytes of possible corpora."""
    read = {_stem(path) for path in paths}  # those beside one of its name describe it (`1.json`)
    skipped = [path for path in skipped if _stem(path) not in read]
    if len(skipped) > len(paths):
        return True
    left = sum(_size(path) for path in skipped if path.suffix.lower() in _CONTAINERS)
    for path in paths:  # few of them are looked at where little is skipped
        if left <= 0:
            return False
        left -= _size(path)
    return left > 0


def _stem(path: Path) -> tuple[Path, str]:
    return path.parent, path.name.partition(".")[0]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # where a link leads nowhere
