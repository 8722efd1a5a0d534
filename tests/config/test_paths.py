from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jaxpretrain.config.command import Parser
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.paths import PathText, PlaceText, as_local_path, expand, expand_paths


@dataclass(frozen=True)
class Source:
    root: PathText | None = None


@dataclass(frozen=True)
class Data:
    root: PathText | None = None
    files: tuple[PathText, ...] = ()
    source: Source = Source()
    sources: dict[str, Source] | None = None
    place: PlaceText | None = None
    name: str = "~"


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ada")


def test_a_home_directory_is_expanded_in_every_path_and_in_nothing_else():
    config = Data(
        root="~/tokens",
        files=("~/a.txt", "b~.txt"),
        source=Source("~"),
        sources={"c4": Source("~/c4")},
    )
    assert expand_paths(config) == Data(
        root="/home/ada/tokens",
        files=("/home/ada/a.txt", "b~.txt"),
        source=Source("/home/ada"),
        sources={"c4": Source("/home/ada/c4")},
    )


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("root", "", "--config.root=: is empty: write a path, or none"),
        ("root", "  ", "--config.root=  : is empty: write a path, or none"),
        ("files", "a.txt,", "--config.files=a.txt,: is empty: write a path"),
        ("source.root", "", "--config.source.root=: is empty: write a path, or none"),
        ("root", "~nobody_x/a", "--config.root=~nobody_x/a: there is no user nobody_x"),
        ("place", "~nobody_x/a", "--config.place=~nobody_x/a: there is no user nobody_x"),
        ("place", "gs:/b/a", "--config.place=gs:/b/a: is neither a path nor a URL; write gs://b/a"),
        ("root", "gs:", "is neither a path nor a URL; write gs://BUCKET/FOLDER"),
        ("place", "", "--config.place=: is empty: write a path, or none"),
        ("root", "gs://b/a", "--config.root=gs://b/a: is a URL; this takes a path of this machine"),
    ],
)
def test_what_is_no_path_is_refused(path: str, text: str, message: str):
    with pytest.raises(InputError) as error:
        apply_overrides(Data(), [(path, text)])
    assert " ".join(message.split()) in str(error.value)


def test_a_place_may_be_a_url_and_is_kept_as_it_is_written():
    config = apply_overrides(Data(), [("place", "gs://bucket/~a")])
    assert expand_paths(config).place == "gs://bucket/~a"


def test_an_empty_path_of_a_config_built_in_python_is_refused():
    with pytest.raises(InputError, match=r"--config\.sources\.c4\.root=: is empty"):
        validate(replace(Data(), sources={"c4": Source("")}))


def test_the_path_of_a_flag_is_expanded_and_never_empty():
    parser = Parser(prog="main")
    parser.add_argument("--workdir", type=as_local_path)
    assert parser.parse_args(["--workdir=~/run"]).workdir == Path("/home/ada/run")
    with pytest.raises(InputError, match="--workdir: is empty: write a path"):
        parser.parse_args(["--workdir="])
    with pytest.raises(InputError, match="--workdir: there is no user nobody_x"):
        parser.parse_args(["--workdir=~nobody_x/run"])


def test_a_path_among_other_text_names_its_flag():
    assert expand("~/a.npy", "--perplexity") == Path("/home/ada/a.npy")
    with pytest.raises(InputError, match=r"^--perplexity=: is empty: write a path$"):
        expand("", "--perplexity")


def test_a_config_file_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.py").write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\nclass C:\n    x: int = 1\n"
        "get_config = C\n"
    )
    assert load_config("~/run.py").x == 1
    with pytest.raises(InputError, match=r"^--config=: is empty"):
        load_config("")
