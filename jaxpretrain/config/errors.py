"""The error that a user can cause, and hints at what they meant or what they need."""

import difflib
import importlib.metadata
import re
import shlex
from collections.abc import Iterable


class InputError(Exception):
    """A bad flag, config or input: one line that says what is wrong, where, and what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate spelled most like `name`, in any case; None where nothing is close."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_folded, n=1)
    return by_folded[matches[0]] if matches else None


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns a question that ends an error line; "" where no candidate is close."""
    match = closest(name, candidates)
    return f" Did you mean '{match}'?" if match else ""


def extras() -> dict[str, list[str]]:
    """Returns what each extra of this package requires, such as {"evals": ["pyarrow>=26"]}."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("jaxpretrain") or []:
        requirement, _, condition = line.partition(";")
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", condition):
            found.setdefault(extra[1], []).append(requirement.strip())
    return found


def install(extra: str) -> str:
    """Returns the command that installs what an extra of this package requires."""
    # A clone may have an extra that its installed metadata does not know yet.
    required = extras().get(extra, [f"jaxpretrain[{extra}]"])
    return f"pip install {' '.join(map(shlex.quote, required))}"
