from typing import get_args, get_type_hints

import pytest

from jaxpretrain.data.contract import DataConfig
from jaxpretrain.data.sources import DataChoice
from jaxpretrain.train.experiment import Experiment


@pytest.mark.parametrize("source", get_args(DataChoice))
def test_a_source_keeps_the_contract_and_a_run_takes_it(source: type):
    assert issubclass(source, DataConfig)
    assert source in get_args(get_type_hints(Experiment)["data"])
    unit, per_example = source().units_per_example()
    assert unit in ("tokens", "images") and per_example >= 1
    assert set(source().example_spec()) <= {"tokens", "images"}
