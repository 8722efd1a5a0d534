import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.console import parse_tasks, read_points
from jaxpretrain.scaling import make_parser
from tests.laws.published import DATA

TABLE = f"--points={DATA / 'olmo_ladder.csv'}"
COLUMNS = "--columns=n=N_non_embedding,d=D_tokens,loss=ce5_c4_en"


def points(*flags):
    return read_points(make_parser().parse_args(flags))


def test_a_table_gives_points_under_the_name_of_a_metric():
    found = points(TABLE, COLUMNS, "--where=model=190M,370M", "--drop_highest=2")
    assert (len(found), found.metric) == (10, "ce5_c4_en")
    named = points(TABLE, COLUMNS, "--metric=eval/c4/loss")
    assert named.metric == "eval/c4/loss"


def test_tasks_are_columns_of_the_table():
    rows = [{"bpb": 1, "acc": 2}]
    assert parse_tasks(["a=bpb:acc"], rows) == {"a": ("bpb", "acc")}
    with pytest.raises(InputError, match="Did you mean 'acc'"):
        parse_tasks(["a=bpb:ac"], rows)
    with pytest.raises(InputError, match="a is there twice"):
        parse_tasks(["a=bpb:acc", "a=acc:bpb"], rows)
