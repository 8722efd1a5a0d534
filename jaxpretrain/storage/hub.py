"""The Hugging Face hub, which is asked for nothing that a user did not name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from jaxpretrain.config.errors import InputError, install

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_on_hub(path: PurePath | str) -> bool:
    """Returns true for a path of the form `hf://...`."""
    return str(path).startswith("hf://")


def is_hub_name(text: str) -> bool:
    """Returns true for a text such as `allenai/OLMo-2-0425-1B`, which may also be a path."""
    return bool(_NAME.fullmatch(text)) and not text.endswith((".json", ".model"))


@contextmanager
def told_of(path: PurePath | str) -> Iterator[None]:
    """Raises one line for what fails on the hub in this block; nothing else is touched.

    The package raises errors of several libraries for a hub that cannot be reached, a name that is
    not there, and files that need a login.
    """
    if not is_on_hub(path):
        yield
        return
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file on the hub, or it needs a login") from None
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: the hub cannot be read ({reason})") from None


def fetch_file(repository: str, name: str, *, download: bool) -> Path | None:
    """Returns a file of a model on the hub, of the hub's cache on this machine or else downloaded.

    Raises InputError where it may be downloaded and cannot be; None where there is none.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{repository}: needs huggingface_hub: {install('data')}") from None
    with told_of(f"hf://{repository}/{name}"):
        for is_local in (True, False) if download else (True,):
            try:
                if not is_local:  # fails at once without network; a download tries it six times
                    huggingface_hub.model_info(repository)
                found = huggingface_hub.hf_hub_download(repository, name, local_files_only=is_local)
                return Path(found)
            except huggingface_hub.errors.EntryNotFoundError:  # also of the cache
                continue
            except huggingface_hub.errors.RepositoryNotFoundError as error:
                raise FileNotFoundError(error) from None
    return None
