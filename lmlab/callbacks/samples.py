"""Lets the model write a few texts at several stages of the training, so that a person can see it learn."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lmlab.budget import Spent
from lmlab.callbacks.budget import clock_of, objective_of
from lmlab.data.batch import Example
from lmlab.data.tasks import TaskViews
from lmlab.data.views import View
from lmlab.nn.evaluation import evaluating
from lmlab.run.directory import RunDirectory
from lmlab.run.samples import append_samples


class Samples(Callback):
    """Writes `samples.jsonl`: what the model makes of the same few validation texts, from the untrained model to the end.

    Args:
        run: The run's folder.
        num_texts: How many texts; of each task, where there are several.
        times: Stages over the budget, besides the untrained model.
    """

    def __init__(self, run: RunDirectory, num_texts: int = 3, times: int = 5) -> None:
        """Chooses no texts yet."""
        self.run, self.num_texts, self.times = run, num_texts, times
        self._before = Spent()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the untrained model; a resumed run only notes where it stands."""
        self._before = clock_of(pl_module).spent
        if not self._before.steps:
            self.write(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes if a stage was passed since the last validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        meter = clock_of(pl_module)
        if meter.config.is_due(self.times, self._before, meter.spent):
            self._before = meter.spent
            self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks the objective for its samples, outside the training clock; every rank does, for its weights may be in parts."""
        clock, objective = clock_of(pl_module), objective_of(pl_module)
        with clock.paused():
            with evaluating(pl_module):
                samples = pl_module((self._texts(trainer, objective.texts_per_sample), clock.spent.steps), "written")
            if trainer.is_global_zero:
                append_samples(self.run.samples_path, samples)

    def _texts(self, trainer: Trainer, per_sample: int) -> Sequence[Example]:
        view = trainer.datamodule.view("val")  # pyright: ignore[reportAttributeAccessIssue]  set by a connector
        num = self.num_texts * per_sample
        if not isinstance(view, TaskViews):
            return _spread(view, num)
        return [
            example._replace(extra={**(example.extra or {}), "task": task})
            for task, own in view.views.items()
            for example in _spread(own, num)
        ]


def _spread(view: View, num: int) -> list[Example]:
    """A few examples, evenly spread."""
    indices = [i * len(view) // num for i in range(min(num, len(view)))]
    return [view[index]._replace(position=index) for index in indices]
