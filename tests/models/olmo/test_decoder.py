import dataclasses

from tests.models.olmo.conftest import OLMO_1, T


def test_the_kernel_follows_platform_and_choice():
    config = dataclasses.replace(OLMO_1, dtype="bfloat16")
    example = {"tokens": ((T,), "int32")}
    assert config.build(example, platform="gpu").kernel == "cudnn"
    assert config.build(example, platform="cpu").kernel == "xla_blocks_float32"
    assert config.build(example, platform="tpu").kernel == "splash"
    for choice in ("xla", "xla_blocks", "cudnn"):
        chosen = dataclasses.replace(config, attention=choice)
        assert chosen.build(example, platform="gpu").kernel == choice


def test_start_up_says_that_documents_change_the_kernel():
    config = dataclasses.replace(OLMO_1, dtype="bfloat16", document_end=7)
    model = config.build({"tokens": ((T,), "int32")}, platform="gpu")
    assert "attention xla_blocks (asked: auto), inside documents (ended by token 7)" in "\n".join(
        model.describe()
    )
