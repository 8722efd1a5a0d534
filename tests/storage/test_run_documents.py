import json
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.run_documents import ExperimentFile, PlanFile, read_document


def _written(folder: Path, document: object) -> Path:
    path = folder / "experiment.json"
    path.write_text(json.dumps(document))
    return path


def test_a_document_keeps_what_it_has_beyond_its_fields(tmp_path: Path):
    document = {"eos_id": 3, "sessions": [{"first_step": 0, "more": 1}], "note": "kept"}
    assert read_document(_written(tmp_path, document), ExperimentFile) == document


def test_the_config_of_an_earlier_version_is_read_as_todays(tmp_path: Path):
    old = {"config": {"optim": {"class": "adamw", "beta1": 0.8, "beta2": 0.9}}}
    found = read_document(_written(tmp_path, old), ExperimentFile)
    assert found == {"config": {"optim": {"class": "adamw", "betas": [0.8, 0.9]}}}


@pytest.mark.parametrize(
    ("document", "kind", "message"),
    [
        ({"eos_id": "3"}, ExperimentFile, r"experiment\.json: eos_id: expected a whole number"),
        ({"config": 3}, ExperimentFile, r"experiment\.json: config: expected an object"),
        ({"device_hours": "long"}, PlanFile, r"experiment\.json: device_hours: expected a number"),
        ([], PlanFile, "is not a JSON object"),
    ],
)
def test_a_field_of_another_type_is_one_line(tmp_path: Path, document, kind, message):
    with pytest.raises(InputError, match=message):
        read_document(_written(tmp_path, document), kind)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"experiment\.json: no such file"):
        read_document(tmp_path / "experiment.json", ExperimentFile)
