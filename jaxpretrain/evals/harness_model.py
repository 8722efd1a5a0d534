"""Tasks of lm-evaluation-harness, EleutherAI's, on our models.

`HarnessModel` answers what the harness asks: log-likelihoods by the scorer, texts by the generator.
How texts are cut into windows and ended is the harness' own, as its `hf` model has it, so that both
give the same numbers on the same weights. Texts are encoded as in training, without the special
tokens that a tokenizer's template would put around them.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.errors import InputError, install, nearest
from jaxpretrain.display.wording import format_table
from jaxpretrain.evals.contract import Evaluator, Items, Results, Setting
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.generation.token_loop import Sampling
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.models.contract import Params

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise InputError(
        f"tasks of lm-evaluation-harness need the package {error.name}: {install('harness')}"
    ) from error

_NOT_SAMPLING = ("until", "max_gen_toks", "do_sample")
"""The options of generation that are no fields of `Sampling`."""


class HarnessModel(TemplateLM):
    """A model in the form that the harness asks for.

    Scorer, generator and parameters are of one model, the generator of the same tokenizer. Raises
    InputError where no token is known to end texts, since the harness begins texts with it.
    """

    max_gen_toks = 256
    """The number of tokens to generate where a task does not say it."""

    def __init__(
        self, scorer: Scorer, generator: Generator, params: Params, tokenizer_path: Path
    ) -> None:
        super().__init__()
        if not generator.end_ids:
            raise InputError(f"{tokenizer_path} does not tell which of its tokens ends texts")
        self._end_id = generator.end_ids[0]
        self._scorer = scorer
        self._generator = generator
        self._params = params
        self._tokenizer = generator.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: that which begins texts, or else ends them."""
        return next(iter(self._generator.begin_ids), self._end_id)

    @property
    def max_length(self) -> int:
        """The number of tokens of the context."""
        return self._scorer.context_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the token ids of a text, which begins as in training unless it goes on."""
        begin = [] if add_special_tokens is False else self._generator.begin_ids
        return [*begin, *self._tokenizer.encode(string).ids]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each whole text, scored in windows of the context."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for owner, text in enumerate(texts):
            ids = self.tok_encode(text, add_special_tokens=False)
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(owner)
        sums = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += value
        for text, value in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for texts, _, continuation in requests:
            if not continuation:
                raise InputError(f"the harness asks for a continuation without tokens: {texts!r}")
        pieces, owners = [], []
        for owner, (_, context, continuation) in enumerate(requests):
            for first in range(0, len(continuation), self.max_length):
                before, rest = continuation[:first], continuation[first:]
                pieces.append(Request([*context, *before], rest[: self.max_length]))
                owners.append(owner)
        if num_long := sum(len(continuation) > self.max_length for *_, continuation in requests):
            print(
                f"harness: continuations longer than the context, scored in windows of it: "
                f"{num_long:,}",
                file=sys.stderr,
            )
        scores = self._scorer(self._params, self._scorer.prepare(pieces))
        sums, is_greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        np.add.at(sums, owners, scores.log_likelihoods)
        np.logical_and.at(is_greedy, owners, scores.is_greedy)
        answers = list(zip(sums.tolist(), is_greedy.tolist(), strict=True))
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:  # a text itself, not a window of one
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Returns the continuation of each context, up to the first text that is to end it."""
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(number)
        found: dict[int, str] = {}
        for numbers in alike.values():
            contexts = [requests[number].args[0] for number in numbers]
            asked = requests[numbers[0]].args[1]
            found |= zip(numbers, self._generate(contexts, asked), strict=True)
            for number, context in zip(numbers, contexts, strict=True):
                self.cache_hook.add_partial("generate_until", (context, asked), found[number])
        return [found[number] for number in range(len(requests))]

    def _generate(self, contexts: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        end_text = self._tokenizer.decode([self._end_id], skip_special_tokens=False)
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(asked), self.max_gen_toks))
        until = handle_stop_sequences(options["until"], end_text)
        room = self.max_length - options["max_gen_toks"]
        if room < 1:
            raise InputError(
                f"the harness asks for {options['max_gen_toks']} tokens (max_gen_toks), but the "
                f"context has {self.max_length}"
            )
        drawn = {name: value for name, value in options.items() if name not in _NOT_SAMPLING}
        drawn.setdefault("temperature", 0.0)
        try:
            sampling = Sampling(**drawn)
        except TypeError:
            raise InputError(f"the harness asks to generate as we cannot: {dict(asked)}") from None
        prompts = [(self.tok_encode(text) or [self.prefix_token_id])[-room:] for text in contexts]
        generated = self._generator(
            self._params, prompts, options["max_gen_toks"], sampling, [*filter(None, until)]
        )
        return [continuation.text for continuation in generated]


class HarnessTasks(Evaluator):
    """Evaluates tasks of the harness, whose data is loaded at once.

    The requests are the harness' own, so their shapes are compiled at the first evaluation. Raises
    InputError where a name is unknown, data cannot be loaded, or the tokenizer does not fit.
    """

    def __init__(
        self,
        setting: Setting,
        tokenizer: Path,
        names: Sequence[str],
        folder: Path | None,
        num_fewshot: int | None,
    ) -> None:
        self._scorer = setting.scorer
        parts = setting.model, setting.layout, tokenizer
        self._generator = Generator(*parts, end_ids=setting.end_ids)
        self._tokenizer = tokenizer
        self._num_fewshot = num_fewshot
        self._limit = setting.task_items
        self._manager = TaskManager(include_path=None if folder is None else str(folder))
        known = self._manager.all_tasks
        for name in names:
            if not self._manager.match_tasks([name]):
                raise InputError(f"the harness has no task {name!r}.{nearest(name, known)}")
        self._tasks = [task for name in names for task in self._load(name)]

    def __call__(self, params: Params) -> Results:
        """Returns the metrics of tasks and groups by the harness' names, such as `acc,none`."""
        model = HarnessModel(self._scorer, self._generator, params, self._tokenizer)
        with redirect_stdout(sys.stderr):  # where --json prints one document, and no more
            results: Any = simple_evaluate(
                model,
                tasks=list(self._tasks),
                num_fewshot=self._num_fewshot,
                limit=self._limit,
                task_manager=self._manager,
                log_samples=False,
            )
        metrics = {
            name: {metric: x for metric, x in found.items() if isinstance(x, int | float)}
            for name, found in results["results"].items()
        }
        named = [(name, metric, x) for name in metrics for metric, x in metrics[name].items()]
        scalars = {f"eval/{name}/{metric}": x for name, metric, x in named}
        table = [*format_table([("harness", "metric", "value"), *named])]
        return Results(scalars=scalars, items=Items({"harness": metrics}, table))

    def _load(self, name: str) -> list[Any]:
        """Returns the task or the group of that name, or the tasks that it is a tag of."""
        try:
            with redirect_stdout(sys.stderr):
                loaded = self._manager.load([name])
        except Exception as error:  # of any package that a task's own code or its data need
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"eval.harness.tasks={name}: its data cannot be loaded: {reason}. Most tasks "
                "download from the Hugging Face Hub; load them where it can be reached (they stay "
                "in its cache), or name local files in a task of eval.harness.folder"
            ) from error
        group = loaded["groups"].get(name)
        return list(loaded["tasks"].values()) if group is None else [group]
