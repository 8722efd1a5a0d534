"""Tasks of lm-evaluation-harness, EleutherAI's, as a part of the config.

The package is imported only where tasks are named: it is optional and takes seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.ranges import NonNegative
from jaxpretrain.evals.contract import Evaluation, Evaluator, Setting


@dataclass(frozen=True)
class Harness(Evaluation):
    """Tasks of lm-evaluation-harness at each evaluation; `eval.task_items` limits them too."""

    tasks: tuple[str, ...] = ()
    """Tasks, groups and tags, by the harness' names."""
    folder: PathText | None = None
    """Folder with YAML files of more tasks; none: only those that the package has."""
    num_fewshot: Annotated[int, NonNegative] | None = None
    """Examples before each question; none: as many as the task says."""

    def build(self, setting: Setting) -> Evaluator:
        """Returns the evaluator; the package is imported and the data of all tasks is loaded."""
        if not self.tasks:
            raise InputError("eval.harness.tasks is empty: name tasks of lm-evaluation-harness")
        folder = None if self.folder is None else Path(self.folder)
        if folder is not None and not folder.is_dir():
            raise InputError(f"eval.harness.folder={folder}: no such folder")
        tokenizer = setting.require_task_tokenizer("eval.harness.tasks")
        from jaxpretrain.evals.harness_model import HarnessTasks

        return HarnessTasks(setting, tokenizer, self.tasks, folder, self.num_fewshot)
