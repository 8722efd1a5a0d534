"""All that one command evaluates on a checkpoint: tasks, those of the harness, and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_bytes
from jaxpretrain.evals.downstream import Downstream
from jaxpretrain.evals.outcome import Outcome
from jaxpretrain.evals.perplexity import Perplexity
from jaxpretrain.evals.scoring.encode import TextEncoder
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.tasks.catalogue import Selection

if TYPE_CHECKING:  # needs a package that may not be there
    from jaxpretrain.evals.harness import Harness


@dataclass(frozen=True)
class Asked:
    """What is wanted of a checkpoint."""

    selection: Selection
    sets: Mapping[str, Sequence[Path]]
    """Name -> raw token files."""
    harness: "Harness | None" = None
    """Tasks of lm-evaluation-harness."""
    token_dtype: Literal["uint16", "uint32"] | None = None
    """Of their ids; None: the smallest that holds all of the model's, as OLMo's files have."""
    trust_token_dtype: bool = False
    """Whether the files are read as such even where their ids look like another type."""


class Evaluation:
    """Evaluates checkpoints of one model; planned and compiled once.

    Args:
      scorer: of the model.
      tokenizer: a `tokenizer.json`; None: there is none.
      asked: what is wanted.
      end_ids: tokens that end a text, as for `Generator`.

    Raises:
      InputError: there is no tokenizer for the tasks, or what is asked for does not fit the model.
    """

    def __init__(
        self, scorer: Scorer, tokenizer: Path | None, asked: Asked, end_ids: Sequence[int] = ()
    ) -> None:
        self._downstream = self._harness = self._perplexity = None
        if asked.selection.tasks or asked.harness:
            if tokenizer is None:
                raise InputError(
                    "the checkpoint has no tokenizer.json to read the tasks with: set --tokenizer"
                )
            encode = TextEncoder(tokenizer, scorer.vocab_size)
            if asked.selection.tasks:
                self._downstream = Downstream(scorer, encode, asked.selection)
            if asked.harness:
                self._harness = asked.harness.on(scorer, tokenizer, end_ids)
        if asked.sets:
            bytes_v = None if tokenizer is None else token_bytes(read_tokenizer(tokenizer))
            smallest = "uint16" if scorer.vocab_size <= 2**16 else "uint32"
            dtype = asked.token_dtype or smallest
            self._perplexity = Perplexity(
                scorer,
                asked.sets,
                dtype=dtype,
                trust_dtype=asked.trust_token_dtype,
                token_bytes=bytes_v,
            )

    def __call__(self, step: int, params: Any) -> Outcome:
        """The outcome of the parameters of a step."""
        return Outcome(
            step,
            None if self._downstream is None else self._downstream.report(params),
            {} if self._perplexity is None else self._perplexity(params),
            {} if self._harness is None else self._harness(params),
        )
