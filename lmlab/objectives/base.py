"""The objective: feed, backbone, head and loss as one LightningModule. Techniques are its subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lmlab.backbones.base import BackboneConfig
from lmlab.checkpoint import FORMAT
from lmlab.config import Recorded
from lmlab.data.batch import IGNORE_INDEX, Batch, Example, Feed
from lmlab.data.loader import Window
from lmlab.errors import ConfigError
from lmlab.losses import Losses, Means, Tally
from lmlab.nn.seeding import reseed
from lmlab.objectives.passes import Outcome, Pass, Step
from lmlab.optim import OptimizerConfig, ScheduleConfig, set_learning_rate
from lmlab.ranks import data_rank, sum_over_data
from lmlab.run.samples import Sample
from lmlab.tokenizer import Tokenizer


class Prediction(NamedTuple):
    """One example of `lmlab predict`.

    Args:
        input: What the model was shown.
        target: The tokens it was asked for, in order.
        predicted: The likeliest token for each of them, given what came before in the text.
    """

    input: str
    target: str
    predicted: str


class Progress(Protocol):
    """Who knows how much of the budget is spent; the budget callback."""

    def progress_within(self, window: Window, world_size: int, flops: int) -> float:
        """Share of the budget that will be spent in the middle of a window, in [0, 1].

        Args:
            window: The window about to begin.
            world_size: Ranks with a share like this one's.
            flops: Of the window, on this rank, as far as its first micro-batch tells.
        """
        ...


class Objective(Recorded, LightningModule, ABC):
    """Base of every pretraining technique.

    A leaf gives `feed()`, `build()` and `losses()`. The base owns the hooks, the accounting, the optimiser and what goes into
    a checkpoint. `__init__` of a leaf stores configs and builds nothing; `configure_model()` builds.

    Args:
        tokenizer: Gives vocabulary size and special ids; on the command line it is linked from `tokenizer`.
        backbone: Sizes and bricks of the network.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
    """

    texts_per_sample: ClassVar[int] = 1
    """Texts that `samples` is given for each that it shows; more than 1 where it looks for texts among others."""

    def __init__(self, tokenizer: Tokenizer, backbone: BackboneConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> None:
        """Stores the configs."""
        super().__init__()
        self.tokenizer, self.backbone_config = tokenizer, backbone
        self.optimizer_config, self.schedule_config = optimizer, schedule
        self.meter: Progress | None = None
        self.called_through: Callable[[Any, str], Any] | None = None
        self._plateau = schedule.plateau_state()
        self._train_tally, self._eval_tally = Tally(), Tally()
        self._window_counts: dict[str, Tensor] = {}
        self._is_built = False

    # what a leaf gives

    @abstractmethod
    def feed(self) -> Feed | Mapping[str, Feed]:
        """What the data module is to feed; several by name, where several objectives are trained at once."""

    @abstractmethod
    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds backbone and heads.

        Args:
            backbone: A built one to share, when another objective composes this one; None to build its own.
        """

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """The loss of a micro-batch as sums and counts; pure: it neither logs nor keeps state.

        Args:
            batch: What the collator made.
        """

    @abstractmethod
    def flops(self, batch: Batch) -> int:
        """FLOPs of one forward and backward pass over a batch: matrix products and attention as computed, no recomputation.

        Args:
            batch: What the collator made; only shapes are read.
        """

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        """The forward passes of a micro-batch, each differentiated before the next is called; their gradients add up.

        Where a technique needs several (a cache of gradients, an adversarial example), or another combination of gradients than
        their sum, it overrides this: for the latter with a pass whose loss has the combined gradient.

        Args:
            batch: What the collator made.
            step: The optimiser step it belongs to.
        """

        def plain() -> Outcome:
            losses = self(batch)
            return Outcome(step.total(losses), losses)

        return [plain]

    def summary(self, means: Means) -> Means:
        """Makes of the means of parts and monitors what is reported: what is no ratio itself, but a function of ratios.

        Args:
            means: Over everything that was measured; tensors where monitors are tensors.

        Returns:
            Numbers.
        """
        return means

    def predicted_ids(self, batch: Batch) -> Tensor:
        """The likeliest token wherever the batch has a label; for objectives whose labels are tokens.

        Args:
            batch: What the collator made.

        Returns:
            Tensor like `labels`; what stands where there is no label means nothing.

        Raises:
            ConfigError: If the objective does not predict tokens.
        """
        raise ConfigError(
            f"{type(self).__name__} does not predict tokens", where="lmlab predict", remedy="measure it with `lmlab validate`"
        )

    @property
    def product(self) -> Objective:
        """What is used when training is over: itself, or the objective inside it that was trained."""
        return self

    @property
    def products(self) -> tuple[Objective, ...]:
        """All that can be asked when training is over: the product, or several where several objectives were trained at once."""
        return (self.product,)

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """Texts by which a person sees what the model has learnt; none, unless an objective can write.

        Args:
            examples: A few of the validation view, `texts_per_sample` for each sample to show.
            step: Optimiser steps behind the model.
        """
        return []

    def written(self, asked: tuple[Sequence[Example], int]) -> list[Sample]:
        """`samples`, in a form that `forward` can call."""
        return self.samples(*asked)

    # what the base does with it

    def configure_model(self) -> None:
        """Builds the network, once; Lightning calls this in `fit`, `validate` and on load."""
        if not self._is_built:
            # the start of the run's own stream, so that weights do not depend on what drew from it before
            torch.manual_seed(torch.initial_seed())
            self.build()
            self._is_built = True

    def __call__(self, batch: Any, of: str = "losses") -> Any:
        """`forward`; where this objective is inside another, by a call of that one, for it is the outermost that is sharded or compiled."""
        return super().__call__(batch, of) if self.called_through is None else self.called_through(batch, of)

    def forward(self, batch: Any, of: str = "losses") -> Any:
        """The losses of a batch; sharding and `compile()` hook this call, so every pass goes through it.

        Args:
            batch: What the collator made, or what else `of` takes.
            of: Name of the method to call: `losses`, or another pure one that a pass of this objective needs.
        """
        return getattr(self, of)(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate, a pure function of the progress through the budget, before the first pass of a window."""
        window: Window = batch["window"]
        if window.is_first:
            progress = self._meter.progress_within(window, data_rank(self.trainer).size, self.flops(batch) * window.size)
            set_learning_rate(self._optimizer, self.schedule_config.factor(progress) * self._plateau.factor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The passes of a micro-batch: dropout is seeded by position, losses are normalised by the window's global counts.

        All passes but the last are differentiated here, the last one by Lightning, which then lets ranks exchange gradients. DeepSpeed
        would exchange them each time: for it, the passes are one loss.
        """
        window: Window = batch["window"]
        reseed(window.seed)
        if window.is_first:
            self._optimizer.zero_grad()
            self._window_counts = {name: self._sum_over_ranks(count.clone()) for name, count in window.counts.items()}
        world_size = data_rank(self.trainer).size
        step = Step(window, self._window_counts, world_size, self._sum_over_ranks)
        passes = self.passes({key: value for key, value in batch.items() if key != "window"}, step)
        if self.trainer.strategy.handles_gradient_accumulation:  # then it can differentiate once only
            loss = torch.stack([self._reported(one()) for one in passes]).sum()
        else:
            *earlier, last = passes
            for one in earlier:
                self.trainer.strategy.backward(self._reported(one()) * world_size, None)
            loss = self._reported(last())
        # undoes Lightning's division by the accumulation and the mean over ranks: the counts are global already
        return loss * (window.size * world_size)

    def _reported(self, outcome: Outcome) -> Tensor:
        if outcome.report is not None:
            self._train_tally.add(outcome.report)
        return outcome.loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: Lightning calls this after the training step, which would take the gradients of all passes but the last."""

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the mean over the window after the optimiser's step, every so often and at the end of the run."""
        if batch["window"].is_last:
            every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  set by a connector
            since = 0 if self.trainer.should_stop else self.trainer.global_step % every
            if since >= self.steps_per_turn:
                self._train_tally = Tally()  # nothing is carried on: a resumed run logs what an uninterrupted one does
                return
            means = self._train_tally.means(self._sum_over_ranks, self.summary)
            here = {f"train/{name}": value for name, value in means.items() if self.is_of_some_steps(name)}
            if not since:
                # `step` is what loggers plot against: steps done, counted from 1
                self.log("step", float(self.trainer.global_step))
                self.log("train/learning_rate", self._optimizer.param_groups[0]["lr"])
                self.log_dict({f"train/{name}": value for name, value in means.items() if f"train/{name}" not in here})
            for logger in self.trainer.loggers if here else ():  # directly: Lightning repeats what is not logged anew
                logger.log_metrics(here, step=self.trainer.global_step)

    @property
    def steps_per_turn(self) -> int:
        """Steps that differ in turn: what is of some of them is logged in all of a turn, for every tenth could always be the same one."""
        return 1

    def is_of_some_steps(self, name: str) -> bool:
        """Whether a part or monitor is of some training steps only; in the others it has no value.

        Args:
            name: As in `Losses`.
        """
        return False

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation means."""
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss`: a sum over a count, not a mean of batch means."""
        self._log_eval("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._plateau.step(self.trainer.callback_metrics.get("val/loss"))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the test means."""
        self._measure(batch)

    def on_test_epoch_end(self) -> None:
        """Logs `test/loss`."""
        self._log_eval("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """What the model was shown, what it was asked for, and what it would have said, as text."""
        predicted, decode = self(batch, "predicted_ids"), self.tokenizer.decode
        if "is_filler" in batch:
            return []
        rows = zip(batch["input_ids"].tolist(), batch["labels"], predicted, strict=True)
        return [
            Prediction(
                decode(shown, skip_special=False),
                decode(wanted[wanted != IGNORE_INDEX].tolist(), skip_special=False),
                decode(said[wanted != IGNORE_INDEX].tolist(), skip_special=False),
            )
            for shown, wanted, said in rows
        ]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, with its groups made by parameter name."""
        return self.optimizer_config.build((n, p) for n, p in self.named_parameters() if p.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes down what `lmlab.load` needs to make this objective again."""
        checkpoint["lmlab"] = {"format": FORMAT, "objective": self.recipe(), "plateau": self._plateau.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the state of a plateau schedule."""
        if "lmlab" in checkpoint:
            self._plateau.load_state_dict(checkpoint["lmlab"]["plateau"])

    def _measure(self, batch: Batch) -> None:
        self._eval_tally.add(self(batch), is_filler="is_filler" in batch)

    def _log_eval(self, stage: str) -> None:
        means = self._eval_tally.means(self._sum_over_ranks, self.summary)
        # the values are the same on all ranks; `sync_dist` only keeps Lightning from warning that they might not be
        self.log("step", float(self.trainer.global_step), sync_dist=True)
        self.log_dict({f"{stage}/{name}": value for name, value in means.items()}, sync_dist=True)

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return sum_over_data(self.trainer, value.to(self.device)) if self.trainer.world_size > 1 else value

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    @property
    def _meter(self) -> Progress:
        if self.meter is None:
            raise ConfigError(
                "the run has no budget",
                where="trainer.callbacks",
                why="the learning rate is a function of the progress through the budget",
                remedy="add lmlab.callbacks.Budget(BudgetConfig(steps=...)) to the trainer's callbacks",
            )
        return self.meter
