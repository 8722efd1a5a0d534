"""The named choices of how a layer is computed: kernels and recomputation."""

from typing import Literal

AttentionKernel = Literal["xla", "xla_blocks", "xla_blocks_float32", "cudnn", "splash"]
"""The implementations of attention."""

AttentionChoice = Literal["auto", "xla", "xla_blocks", "cudnn", "splash"]
"""The kernels that a config may name; auto becomes a kernel when the model is built."""

RematPolicy = Literal["none", "full", "dots", "attention"]
"""The activations that are recomputed in the backward pass."""

RematChoice = Literal["auto", "none", "full", "dots", "attention"]
"""The policies that a config may name; auto becomes a policy before the model is built."""
