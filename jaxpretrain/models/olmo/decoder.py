"""The OLMo decoder, all generations: a causal transformer without biases.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2) and the released configs. What differs
between generations is a field of `DecoderConfig`; the published sizes are rows of `models.olmo`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxpretrain.models.attention import resolve_kernel
from jaxpretrain.models.contract import Constrain, Shard, unconstrained, unsharded
from jaxpretrain.models.matmul import choose_precision
from jaxpretrain.models.olmo.config import DecoderConfig
from jaxpretrain.models.olmo.model import DecoderModel


@dataclass(frozen=True)
class Decoder(DecoderConfig):
    """A decoder language model of the OLMo family."""

    def build(
        self,
        example: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        platform: str,
        constrain: Constrain = unconstrained,
        shard: Shard = unsharded,
    ) -> DecoderModel:
        """Returns the model for examples {"tokens": ((t,), "int32")} on a platform ("cpu", ...).

        Raises:
          InputError: the sizes do not fit together.
        """
        self.check()
        ((seq_len,), _) = example["tokens"]
        has_documents = self.document_end is not None
        kernel = resolve_kernel(self.attention, platform, self.dtype, documents=has_documents)
        precision = choose_precision(platform, self.dtype)
        return DecoderModel(self, seq_len, kernel, precision, constrain, shard)
