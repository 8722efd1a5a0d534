"""Requests to Google Cloud Storage: what is tried again, and what is one line at once."""

import asyncio
import json

import pytest

pytest.importorskip("gcsfs")

import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage import gcs


@pytest.fixture
def request_with(monkeypatch: pytest.MonkeyPatch):
    """Calls `_request` while the service answers with these, one after the other."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("JAXPRETRAIN_STORAGE_SECONDS", "100")

    async def no_sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr(gcs.asyncio, "sleep", no_sleep)

    def call(*answers: object, method="GET", path="b/{}/o/{}", args=("bucket", "run/a.json")):
        left = list(answers)

        async def once(*_: object, **__: object) -> object:
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(GCSFileSystem._request, "__wrapped__", once)
        return asyncio.run(gcs.Gcs(skip_instance_cache=True)._request(method, path, *args))

    return call


def test_what_may_pass_is_tried_again_with_a_line_each_time(request_with, capsys) -> None:
    busy, cut = HttpError({"code": 503, "message": "busy"}), aiohttp.ServerDisconnectedError()
    assert request_with(busy, cut, TimeoutError(), "ok") == "ok"
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == (
        "warning: gs://bucket/run/a.json: the service answered 503 (busy); trying again in 0.5 s"
    )
    assert "Server disconnected; trying again in 1.0 s" in second
    assert "no answer for 30 s; trying again in 2.0 s" in third


def test_after_a_while_it_is_an_error_of_the_disk(request_with, monkeypatch) -> None:
    monkeypatch.setenv("JAXPRETRAIN_STORAGE_SECONDS", "0.1")
    with pytest.raises(OSError, match="503 .busy.*, in spite of retries for 0 s") as error:
        request_with(HttpError({"code": 503, "message": "busy"}))
    assert error.value.errno == 5  # which commands end with one line for
    assert error.value.filename == "gs://bucket/run/a.json"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (OSError("Forbidden: x\nbad account"), "there is no permission (bad account)"),
        (HttpError({"code": 401, "message": "who"}), "the service answered 401 (who)"),
        (ValueError("Bad Request: x\ninvalid name"), "the request was refused (invalid name)"),
    ],
)
def test_what_cannot_pass_is_one_line_at_once(request_with, answer, line) -> None:
    with pytest.raises(InputError) as error:
        request_with(answer)
    assert str(error.value) == f"gs://bucket/run/a.json: {line}"


def test_a_missing_object_is_no_file_and_a_missing_bucket_a_bad_path(request_with) -> None:
    with pytest.raises(FileNotFoundError):
        request_with(FileNotFoundError("x"))
    with pytest.raises(InputError, match="^gs://bucket: there is no bucket gs://bucket$"):
        request_with(FileNotFoundError("x"), path="b/{}/o", args=("bucket",))


def test_folders_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")  # where nobody listens
    files = gcs.Gcs(skip_instance_cache=True)
    files.mkdir("bucket/run")
    files.makedirs("bucket", exist_ok=True)


def test_a_request_is_called_by_its_url() -> None:
    name = json.dumps({"name": "run/a.json"}).encode()
    body = b"--==0==\nContent-Type: application/json; charset=UTF-8\n\n" + name + b"\n--==0=="
    url = "http://127.0.0.1:1/upload/storage/v1/b/bucket/o"
    assert gcs._place(url, (), {"data": body}) == "gs://bucket/run/a.json"
    url = "http://127.0.0.1:1/download/storage/v1/b/bucket/o/run%2Fa.json?alt=media"
    assert gcs._place(url, (), {}) == "gs://bucket/run/a.json"
    assert gcs._place("b/{}/o", ("bucket",), {"prefix": "run/"}) == "gs://bucket/run"
