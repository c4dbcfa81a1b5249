"""The objective: feed, backbone, head and loss as one LightningModule. Techniques are its subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lmlab.backbones.base import BackboneConfig
from lmlab.config import Recorded
from lmlab.data.batch import IGNORE_INDEX, Batch, Example, Feed
from lmlab.data.loader import Window
from lmlab.errors import ConfigError
from lmlab.optim import OptimizerConfig, ScheduleConfig, set_learning_rate
from lmlab.run.samples import Sample
from lmlab.tokenizer import Tokenizer

FORMAT = 1
"""Version of what an objective writes into a checkpoint."""


class Part(NamedTuple):
    """One term of a loss, not yet normalised.

    Args:
        sum: () float, summed over its terms in this micro-batch.
        count: (1,) int64, how many terms.
        weight: Its share in the total.
    """

    sum: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  nobody counts the fields of a part
    weight: float = 1.0


class Losses(NamedTuple):
    """What an objective makes of a batch.

    Args:
        parts: Terms of the loss. The total is the sum over parts of weight * sum / *global* count of that part.
        monitors: Ratios to report, such as accuracy; no gradient flows from them.
    """

    parts: dict[str, Part]
    monitors: dict[str, Part]

    def total(self, counts: dict[str, Tensor]) -> Tensor:
        """The differentiated loss.

        Args:
            counts: Global number of terms of each part over the whole window.
        """
        terms = [part.weight * part.sum / counts[name].clamp(min=1) for name, part in self.parts.items()]
        return torch.stack([t.squeeze() for t in terms]).sum()


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


class Tally:
    """Adds up sums and counts over micro-batches, so that a mean is taken once, over everything."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, losses: Losses, is_filler: bool = False) -> None:
        """Takes in one micro-batch; keeps no graph and does not wait for the device.

        Args:
            losses: What the objective made of it.
            is_filler: Whether only its names count, so that all ranks add up the same table.
        """
        for name, part in (losses.parts | losses.monitors).items():
            dtype = torch.float32 if part.sum.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
            pair = torch.stack([part.sum.detach().to(dtype).squeeze(), part.count.to(part.sum.device, dtype).squeeze()])
            pair = torch.zeros_like(pair) if is_filler else pair
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        self._weights.update({name: part.weight for name, part in losses.parts.items()})

    def means(self, reduce: Any) -> dict[str, float]:
        """Mean of each part and monitor, and the weighted total of the parts under `loss`; empties the tally.

        What had no terms at all has no mean: NaN, not a loss of zero that would pass for the best.

        Args:
            reduce: Sums a tensor over all ranks.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        table = reduce(torch.stack([self._sums[n] for n in names])).tolist()
        means = {name: total / count if count else float("nan") for name, (total, count) in zip(names, table, strict=True)}
        loss = sum(weight * means[name] for name, weight in self._weights.items())
        self._sums = {}
        return {"loss": loss, **{name: value for name, value in means.items() if len(self._weights) > 1 or name not in self._weights}}


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

    def __init__(self, tokenizer: Tokenizer, backbone: BackboneConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> None:
        """Stores the configs."""
        super().__init__()
        self.tokenizer, self.backbone_config = tokenizer, backbone
        self.optimizer_config, self.schedule_config = optimizer, schedule
        self.meter: Progress | None = None
        self._plateau = schedule.plateau_state()
        self._train_tally, self._eval_tally = Tally(), Tally()
        self._window_counts: dict[str, Tensor] = {}
        self._is_built = False

    # what a leaf gives

    @abstractmethod
    def feed(self) -> Feed:
        """What the data module is to feed."""

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

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """Texts by which a person sees what the model has learnt; none, unless an objective can write.

        Args:
            examples: A few of the validation view.
            step: Optimiser steps behind the model.
        """
        return []

    # what the base does with it

    def configure_model(self) -> None:
        """Builds the network, once; Lightning calls this in `fit`, `validate` and on load."""
        if not self._is_built:
            # the start of the run's own stream, so that weights do not depend on what drew from it before
            torch.manual_seed(torch.initial_seed())
            self.build()
            self._is_built = True

    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch; sharding and `compile()` hook this call, so every hook goes through it."""
        return self.losses(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate, a pure function of the progress through the budget, before the first pass of a window."""
        window: Window = batch["window"]
        if window.is_first:
            progress = self._meter.progress_within(window, self.trainer.world_size, self.flops(batch) * window.size)
            set_learning_rate(self._optimizer, self.schedule_config.factor(progress) * self._plateau.factor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One pass of a window: dropout is seeded by position, the loss normalised by the window's global counts."""
        window: Window = batch["window"]
        torch.manual_seed(window.seed)
        if window.is_first:
            self._window_counts = {name: self._sum_over_ranks(count.clone()) for name, count in window.counts.items()}
        losses = self({key: value for key, value in batch.items() if key != "window"})
        self._train_tally.add(losses)
        # undoes Lightning's division by the accumulation and the mean over ranks: the counts are global already
        return losses.total(self._window_counts) * (window.size * self.trainer.world_size)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the mean over the window after the optimiser's step, every so often and at the end of the run."""
        if batch["window"].is_last:
            every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  set by a connector
            if self.trainer.global_step % every and not self.trainer.should_stop:
                self._train_tally = Tally()  # nothing is carried on: a resumed run logs what an uninterrupted one does
                return
            means = self._train_tally.means(self._sum_over_ranks)
            # `step` is what loggers plot against: steps done, counted from 1
            self.log("step", float(self.trainer.global_step))
            self.log("train/learning_rate", self._optimizer.param_groups[0]["lr"])
            self.log_dict({f"train/{name}": value for name, value in means.items()})

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
        predicted, decode = self.predicted_ids(batch), self.tokenizer.decode
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
        means = self._eval_tally.means(self._sum_over_ranks)
        # the values are the same on all ranks; `sync_dist` only keeps Lightning from warning that they might not be
        sync = self.trainer.world_size > 1
        self.log("step", float(self.trainer.global_step), sync_dist=sync)
        self.log_dict({f"{stage}/{name}": value for name, value in means.items()}, sync_dist=sync)

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum") if self.trainer.world_size > 1 else value  # type: ignore[return-value]

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
