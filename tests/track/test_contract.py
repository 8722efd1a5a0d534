import importlib.util
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.track.contract import (
    TRACKERS,
    connect,
    files_of,
    parse_trackers,
    require_packages,
)


def test_a_list_of_trackers_is_read_in_one_order() -> None:
    assert parse_trackers("mlflow, wandb", "--to") == ("wandb", "mlflow")
    with pytest.raises(InputError, match="--to=wandb,mlfow: there is no tracker 'mlfow'. Did you"):
        parse_trackers("wandb,mlfow", "--to")
    with pytest.raises(InputError, match="The trackers are wandb, mlflow"):
        parse_trackers("x", "--to")
    with pytest.raises(InputError, match="--to=: names no tracker; there are wandb, mlflow"):
        parse_trackers("", "--to")


def test_a_missing_package_is_a_line_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"F=mlflow: the package mlflow is missing: pip install"):
        require_packages(["mlflow"], "F")
    require_packages([], "F")


def test_files_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    assert files_of(tmp_path) == tmp_path / "trackers"
    assert (tmp_path / "trackers").is_dir()


def test_files_of_a_run_in_a_bucket_lie_on_this_machine(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "cache"))
    assert files_of(bucket / "run").parent == tmp_path / "cache" / "trackers"


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_has_a_service(name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    service = connect(name, tmp_path)
    service.check()  # asks nobody
    assert service.place == {"wandb": "offline", "mlflow": "mlflow.db, jaxpretrain"}[name]
