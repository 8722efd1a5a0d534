"""Google Cloud Storage as fsspec sees it: gcsfs with one rule for retries, time limits and errors.

Every request to the bucket, Orbax's too, goes through `_request` here. What may pass is tried again
for a while, with a line for each failure; what cannot pass is an InputError of one line at once.
"""

import asyncio
import json
import os
import random
import sys
import time
from typing import Any

import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import RETRIABLE_EXCEPTIONS, HttpError, is_retriable

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.paths import patience

_SILENCE_SECONDS = 30
"""Seconds without a byte after which a request has failed."""
_LONGEST_PAUSE = 32.0
_TRANSIENT = (*RETRIABLE_EXCEPTIONS, HttpError, asyncio.TimeoutError, ConnectionError)


class Gcs(GCSFileSystem):
    """The file system of `gs://`, which never hides an error behind "there is no such file".

    Its methods raise FileNotFoundError where there is no object, InputError where there is no
    bucket or no permission, and OSError where the service did not answer for `patience()` seconds.
    """

    def __init__(self, **_: object) -> None:
        # An emulator knows no credentials; looking for them takes seconds.
        token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None
        super().__init__(
            token=token,
            consistency="size",
            use_listings_cache=False,  # other processes write here, too
            requests_timeout=aiohttp.ClientTimeout(sock_connect=10, sock_read=_SILENCE_SECONDS),
        )

    async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        where, began, pause = _place(path, args, kwargs), time.monotonic(), 0.5
        once = GCSFileSystem._request.__wrapped__  # without the retries of gcsfs
        while True:
            try:
                return await once(self, method, path, *args, **kwargs)
            except FileNotFoundError:
                if path == "b/{}/o" or "/upload/" in path:  # which an empty bucket has, too
                    bucket = where.split("/")[2]
                    raise InputError(f"{where}: there is no bucket gs://{bucket}") from None
                raise
            except FileExistsError:
                raise
            except _TRANSIENT as error:
                reason = _reason(error)
                if isinstance(error, HttpError) and not is_retriable(error):
                    raise InputError(f"{where}: {reason}") from error
            except Exception as error:  # gcsfs raises many kinds
                text = str(error).partition("\n")[2] or str(error)
                is_forbidden = str(error).startswith("Forbidden")
                problem = "there is no permission" if is_forbidden else "the request was refused"
                raise InputError(f"{where}: {problem} ({text[:160]})") from error
            spent = time.monotonic() - began
            if spent + pause > patience():
                raise OSError(5, f"{reason}, in spite of retries for {spent:.0f} s", where)
            print(f"warning: {where}: {reason}; trying again in {pause:.1f} s", file=sys.stderr)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _isdir(self, path: str) -> bool:
        """Returns true for a folder; gcsfs would say false where it has no permission."""
        try:
            about: Any = await self._info(path)
        except FileNotFoundError:
            return False
        return about["type"] == "directory"

    def mkdir(self, path: str, *_: object, **__: object) -> None:
        """Does nothing: a bucket has no folders, and nobody is to make a bucket by a typo."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing, as `mkdir`."""


def _place(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns the URL that a request is about."""
    if args:
        names = [str(part) for part in (*args[:2], kwargs.get("prefix")) if part]
        return f"gs://{'/'.join(names[:2])}".rstrip("/")
    data, name = kwargs.get("data"), ""
    bucket, _, rest = path.partition("/b/")[2].partition("/o")
    if isinstance(data, bytes) and (start := data.find(b"\n\n{")) > 0:
        name = json.JSONDecoder().raw_decode(data[start + 2 : start + 2000].decode("latin1"))[0]
        name = name.get("name", "")
    name = name or rest.partition("?")[0].lstrip("/").replace("%2F", "/")
    return f"gs://{bucket or path}/{name}".rstrip("/")


def _reason(error: BaseException) -> str:
    """Returns what has failed, in a few words."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no answer for {_SILENCE_SECONDS} s"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HttpError) and error.code:
        text = f"the service answered {error.code} ({text.partition(',')[0][:80]})"
    return text[:160]
