"""The results of a checkpoint as a table, a JSON document, CSV and predictions."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxpretrain.config.serialize import finite
from jaxpretrain.display.wording import format_table
from jaxpretrain.evals.contract import Items, Results


@dataclass(frozen=True)
class CheckpointResults:
    """The results of the evaluations of one checkpoint."""

    step: int
    results: Sequence[Results]
    is_own: bool = False
    """True where they are of the run's own evaluations, which go by the names that it logs."""
    weights: str | None = None
    """`plain` or `average`, where the run keeps an average of its weights too."""

    def document(self) -> dict[str, object]:
        """Returns {"step", "own", "tasks": {task: {metric: value}}, "groups", "harness",
        "perplexity", "speed"}; numbers that are not finite, which JSON cannot say, are None.
        """
        document: dict[str, object] = {"step": self.step}
        if self.weights is not None:
            document["weights"] = self.weights
        document["own"] = self._own()
        document |= {"tasks": {}, "groups": {}, "harness": {}, "perplexity": {}, "speed": None}
        for items in self._items():
            document |= items.document
        return {key: finite(part) for key, part in document.items()}

    def table(self) -> str:
        """Returns lines for the terminal."""
        weights = "" if self.weights is None else f", {self.weights} weights"
        lines = [line for items in self._items() for line in items.table]
        own = format_table([*self._own().items()])
        return "\n".join([f"step {self.step:,}{weights}", *lines, *own])

    def predictions(self) -> Iterator[str]:
        """Yields a JSON object for each item: the choice by each accuracy, and the likelihoods."""
        for items in self._items():
            for row in items.predictions:
                yield json.dumps({"step": self.step, **row}, ensure_ascii=False)

    def csv_rows(self) -> Iterator[tuple[object, ...]]:
        """Yields (step, kind, name, metric, value) for each number."""
        for kind, part in self.document().items():
            groups = part.items() if isinstance(part, Mapping) else ()
            for name, metrics in groups:
                if isinstance(metrics, Mapping):  # and not a single number
                    for metric, value in metrics.items():
                        yield self.step, kind, name, metric, value
        for name, value in self._own().items():
            yield self.step, "own", *name.removeprefix("eval/").split("/", 1), value

    def _items(self) -> Iterator[Items]:
        return (result.items for result in self.results if result.items is not None)

    def _own(self) -> dict[str, float | None]:
        """Returns all that the run logs of its own evaluations, by name."""
        results = self.results if self.is_own else ()
        return {name: value for result in results for name, value in result.scalars.items()}


def to_csv(outcomes: Sequence[CheckpointResults]) -> str:
    """Returns CSV with a line for each number of the outcomes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "kind", "name", "metric", "value"))
    writer.writerows(row for outcome in outcomes for row in outcome.csv_rows())
    return text.getvalue()
