"""The clients of the engines, which take a script or a manifest and do the scheduling."""

import shutil
import subprocess
import sys
from typing import NamedTuple

from jaxpretrain.config.errors import InputError


class Client(NamedTuple):
    """A program that must be installed, and the command that reads what it gets from its input."""

    name: str
    command: tuple[str, ...]


SBATCH = Client("sbatch", ("sbatch",))
KUBECTL = Client("kubectl", ("kubectl", "create", "-f", "-"))
GCLOUD = Client("gcloud", ("bash", "-s"))  # its script calls it several times


def deliver(text: str, client: Client, *, is_submitted: bool) -> int:
    """Prints a script or a manifest, or hands it to the client of its engine.

    Returns 0, or 1 where the client failed, which then says why on standard error.

    Raises:
      InputError: the client is not installed.
    """
    if not is_submitted:
        sys.stdout.write(text)
        return 0
    if shutil.which(client.name) is None:
        raise InputError(
            f"--submit needs {client.name}, which is not on this machine; without --submit, what "
            "it would get is printed"
        )
    done = subprocess.run(client.command, input=text, text=True, check=False)
    return min(done.returncode, 1) if done.returncode >= 0 else 1
