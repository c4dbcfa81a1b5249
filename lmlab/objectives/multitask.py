"""Several objectives on one backbone, at once or in turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lmlab.backbones import BackboneConfig
from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.task_order import TaskSampling
from lmlab.data.tasks import TaskFeeds
from lmlab.errors import ConfigError
from lmlab.losses import Losses, Means, Part
from lmlab.objectives.base import Objective, Prediction
from lmlab.objectives.nested import build_on
from lmlab.objectives.passes import Outcome, Pass, Step
from lmlab.objectives.task_config import TaskConfig, check_names, check_settings, check_sharing
from lmlab.objectives.task_step import GradientsConfig, TaskStep
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.optim.task_weights import TaskWeights
from lmlab.optim.weighting import WeightingConfig
from lmlab.ranks import data_rank
from lmlab.run.samples import Sample
from lmlab.tokenizer import Tokenizer

PENALTY = "noise"
"""Name of the part by which a task's factor is learned."""


class Multitask(Objective):
    """Objectives that share one backbone and keep their own heads, losses and data.

    A step has every task, each with a batch of its own, or one task (`sampling`). The loss is the sum of the tasks' losses, each the mean
    over its own terms, times its weight and a factor (`weighting`). `train/loss` is what is differentiated; `val/loss` leaves the factors
    out, so that it means the same from one validation to the next. Everything a task would report by itself is reported as
    `<stage>/<task>/...`.

    The first task builds the backbone. An encoder is lent to a causal task as a decoder, and back: weights are shared, masks differ. In a
    step without it, a task's own parameters rest.

    Args:
        tokenizer: Gives vocabulary and special ids to all tasks.
        backbone: Sizes and bricks of the shared network.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        tasks: Objectives by name.
        sampling: Which tasks a step has.
        weighting: How much they count.
        gradients: What is made of their gradients.

    Source: Caruana 1997, "Multitask Learning" (hard parameter sharing); Liu et al. 2019, "Multi-Task Deep Neural Networks for Natural
    Language Understanding", algorithm 1 (one task per step).
    """

    backbone: nn.Module
    weights: TaskWeights

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        tasks: dict[str, TaskConfig] | None = None,
        sampling: TaskSampling = TaskSampling(),
        weighting: WeightingConfig = WeightingConfig(),
        gradients: GradientsConfig = GradientsConfig(),
    ) -> None:
        """Stores the configs, and makes the objectives, which store theirs."""
        super().__init__(tokenizer, backbone, optimizer, schedule)
        self.task_configs = dict(tasks or {})
        self.sampling, self.weighting, self.gradients = sampling, weighting, gradients
        check_names(self.task_configs)
        made = {task: config.make(tokenizer, backbone, f"tasks.{task}") for task, config in self.task_configs.items()}
        check_sharing(made)
        check_settings(self.task_configs, sampling, weighting, gradients)
        self.tasks = nn.ModuleDict(made)
        object.__setattr__(self, "texts_per_sample", max(child.texts_per_sample for child in made.values()))  # else a matter of the class
        self._part_weights: dict[str, dict[str, float | Tensor]] = {task: {} for task in made}
        self._progress, self._is_logged = 0.0, True
        self._gathered: TaskStep | None = None

    def child(self, task: str) -> Objective:
        """The objective of a task.

        Args:
            task: Its name.
        """
        return self.tasks[task]  # type: ignore[return-value]

    def feed(self) -> TaskFeeds:
        """What each task wants to be fed."""
        feeds: dict[str, Feed] = {}
        for task in self.task_configs:
            feed = self.child(task).feed()
            if not isinstance(feed, Feed):
                raise ConfigError(f"'{task}' is itself several tasks", where=f"tasks.{task}", remedy="name them here, side by side")
            feeds[task] = feed
        return TaskFeeds(feeds=feeds, sampling=self.sampling)

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds the first task with the backbone, and the others on it."""
        shared = backbone
        for task in self.task_configs:
            shared = build_on(self.child(task), shared)
            self.child(task).called_through = partial(self._call_child, task)
        assert shared is not None
        self.backbone = shared
        self.weights = self.weighting.build(list(self.task_configs))

    def _call_child(self, task: str, batch: Any, of: str) -> Any:
        return self((task, batch, of), "of_child")

    def of_child(self, asked: tuple[str, Any, str]) -> Any:
        """What a method of a task's objective gives.

        Args:
            asked: The task, what the method takes, and its name.
        """
        task, batch, of = asked
        return getattr(self.child(task), of)(batch)

    def losses(self, batch: Batch) -> Losses:
        """The losses of all tasks in a micro-batch.

        Returns:
            Parts and monitors by `task/name`; in training, parts are weighed with the factors of the step.
        """
        parts: dict[str, Part] = {}
        monitors: dict[str, Part] = {}
        for task, own in batch["tasks"].items():
            losses = self._of_task(task, self.child(task).losses(own), self.weights.factor(task) if self.training else 1.0)
            parts.update(losses.parts)
            monitors.update(losses.monitors)
        return Losses(parts, monitors)

    def _of_task(self, task: str, losses: Losses, factor: float | Tensor) -> Losses:
        """The losses of a task as its share in the whole."""
        self._part_weights[task].update({f"{task}/{name}": part.weight for name, part in losses.parts.items()})
        weight = self.task_configs[task].weight
        parts = {f"{task}/{n}": part._replace(weight=part.weight * factor * weight) for n, part in losses.parts.items()}
        monitors = {f"{task}/{n}": part for n, part in losses.monitors.items()}
        if self.training and self.weights.is_dynamic:
            monitors[f"{task}/weight"] = Part(
                torch.as_tensor(factor * weight, device=self.device).detach(), torch.ones(1, dtype=torch.int64)
            )
        return Losses(parts, monitors)

    def summary(self, means: Means) -> Means:
        """What each task would report by itself, under its name, with its loss as `task/loss`."""
        reported = {name: value for name, value in means.items() if name.partition("/")[0] not in self.task_configs}
        for task, weights in self._part_weights.items():
            own = {name: value for name, value in means.items() if name.startswith(f"{task}/")}
            if not own.keys() & weights.keys():
                continue
            weight = own.pop(f"{task}/weight", None)
            own.pop(f"{task}/{PENALTY}", None)
            loss = sum(float(share) * float(own[name]) for name, share in weights.items() if name in own)
            only = weights.keys() if len(weights) == 1 else set()  # the only part is the loss
            shown = self.child(task).summary({n.removeprefix(f"{task}/"): value for n, value in own.items() if n not in only})
            reported[f"{task}/loss"] = loss
            reported.update({f"{task}/{name}": value for name, value in shown.items()})
            reported.update({} if weight is None else {f"{task}/weight": weight})
        return reported

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        """The passes of each task, one task after the other, and a last one that has no loss.

        In the last pass the tasks' gradients are compared and combined, and factors learn from the step. The graphs of the tasks have
        nothing in common, so differentiating them one by one costs what differentiating their sum does, in the memory of one.
        """
        if step.window.is_first or self._gathered is None:
            self.weights.begin(self._progress, step.window.draw)
            self._gathered = TaskStep(list(self.task_configs), self.weights, self.gradients, self.backbone, self._logs_cosines())
        gathered = self._gathered
        passes: list[tuple[str, Pass]] = []
        for task, own in batch["tasks"].items():
            gathered.begin(task, self.device)
            passes += [(task, one) for one in self._passes_of(task, own, step, gathered)]
        before = [None, *(task for task, _ in passes)]
        chained = [gathered.after(task, one) for task, (_, one) in zip(before, passes, strict=False)]

        def close() -> Outcome:
            return self((step, gathered, gathered.settle(step) if step.window.is_last else {}), "closing")

        return [*chained, gathered.after(before[-1], close)]

    def _passes_of(self, task: str, own: Batch, step: Step, gathered: TaskStep) -> list[Pass]:
        child = self.child(task)
        if self._is_over_batch(task):  # then it is in one micro-batch of the step, whatever the others need
            step = step._replace(window=step.window._replace(index=0, size=1))
        if type(child).passes is Objective.passes:

            def plain() -> Outcome:
                losses = self({"tasks": {task: own}})
                gathered.note(task, step.total(self._bare(task, losses)))
                return Outcome(step.total(losses), losses)

            return [plain]
        counts = {name.removeprefix(f"{task}/"): count for name, count in step.counts.items() if name.startswith(f"{task}/")}
        return [self._weighed(task, one, step, gathered) for one in child.passes(own, step._replace(counts=counts))]

    def _is_over_batch(self, task: str) -> bool:
        feed = self.child(task).feed()
        return isinstance(feed, Feed) and feed.loss_over == "batch"

    def _weighed(self, task: str, one: Pass, step: Step, gathered: TaskStep) -> Pass:
        """A pass of a task that has passes of its own; its loss may be a surrogate, from whose value no factor could learn."""

        def weighed() -> Outcome:
            loss, report = one()
            factor = self(task, "factor_now") if self.weights.is_learned else self.weights.factor(task)
            losses = None if report is None else self._of_task(task, report, factor)
            if losses is not None and losses.parts:
                gathered.note(task, step.total(self._bare(task, losses)), learns_later=self.weights.is_learned)
            return Outcome(loss * factor * self.task_configs[task].weight, losses)

        return weighed

    def _bare(self, task: str, losses: Losses) -> Losses:
        """A task's own loss, without its weight and factor."""
        weights = self._part_weights[task]
        return Losses({name: part._replace(weight=weights[name]) for name, part in losses.parts.items() if name in weights}, {})

    def factor_now(self, task: str) -> Tensor:
        """A learned factor, without gradient.

        Args:
            task: Whose.
        """
        return torch.as_tensor(self.weights.factor(task)).detach().clone()

    @torch.compiler.disable  # what it is given is new in every step
    def closing(self, asked: tuple[Step, TaskStep, dict[str, Part]]) -> Outcome:
        """What is done once all tasks of a micro-batch are differentiated; but for what lets factors learn, the loss is 0.

        Args:
            asked: The step, what was gathered over it, and what is to be reported besides.
        """
        step, gathered, monitors = asked
        nothing = torch.zeros((), device=self.device, requires_grad=True)
        if step.world_size > 1 and step.window.is_last and type(self.trainer.model) is DistributedDataParallel:
            # ranks exchange the gradients of what the last pass of a step reaches, so there it reaches everything
            nothing = torch.stack([p.flatten()[:0].sum() for p in self.parameters() if p.requires_grad]).sum()
        for task, own in gathered.learning():
            nothing = nothing + self.weights.factor(task) * own * self.task_configs[task].weight
        one = torch.ones(1, dtype=torch.int64)
        penalties = {task: penalty for task in gathered.losses if (penalty := self.weights.penalty(task)) is not None}
        report = Losses({f"{task}/{PENALTY}": Part(p, one, self.task_configs[task].weight) for task, p in penalties.items()}, monitors)
        return Outcome(nothing + step.total(report) if penalties else nothing, report)

    def _logs_cosines(self) -> bool:
        wanted = self.gradients.cosines
        compares = wanted == "on" or (wanted == "auto" and (self.gradients.rule == "pcgrad" or self.weights.needs_norms))
        return compares and self._is_logged

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate; notes the progress, which a schedule of factors follows."""
        super().on_train_batch_start(batch, batch_idx)
        window = batch["window"]
        if window.is_first:
            self._progress = self._meter.progress_within(window, data_rank(self.trainer).size, self.flops(batch) * window.size)
            every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  set by a connector
            self._is_logged = (self.trainer.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets the own parameters of tasks that the step did not have rest: a gradient of 0 would still decay and carry them on."""
        present = self._gathered.losses if self._gathered is not None else {}
        for task in self.task_configs:
            if task not in present:
                for parameter in (*self.child(task).parameters(), *self.weights.parameters_of(task)):
                    parameter.grad = None

    @property
    def steps_per_turn(self) -> int:
        """One for each task, where they take turns."""
        return len(self.task_configs) if self.sampling.regime == "round_robin" else 1

    def is_of_some_steps(self, name: str) -> bool:
        """What is of a task, where a step has one task."""
        return self.sampling.regime != "all" and name.partition("/")[0] in self.task_configs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the factors were found from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lmlab"]["task_weights"] = self.weights.memory()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up what the factors were found from."""
        super().on_load_checkpoint(checkpoint)
        if "lmlab" in checkpoint:
            self.weights.recall(checkpoint["lmlab"]["task_weights"])

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """The predictions of each task that predicts tokens, if any does."""
        able = [task for task in self.task_configs if type(self.child(task)).predicted_ids is not Objective.predicted_ids]
        return [
            one for task, own in batch["tasks"].items() if task in able or not able for one in self.child(task).predict_step(own, batch_idx)
        ]

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """What each task writes.

        Args:
            examples: `extra["task"]` says whose an example is; each task has as many as the one that asks for most.
            step: Optimiser steps behind the model.
        """
        samples: list[Sample] = []
        for task in self.task_configs:
            own = [example for example in examples if (example.extra or {}).get("task") == task]
            fewer = max(self.texts_per_sample // self.child(task).texts_per_sample, 1)
            samples += self.child(task).samples(own[::fewer], step) if own else []
        return samples

    @property
    def products(self) -> tuple[Objective, ...]:
        """Those of the tasks."""
        return tuple(product for task in self.task_configs for product in self.child(task).products)

    def flops(self, batch: Batch) -> int:
        """Those of the tasks in the batch. Comparing and combining gradients takes no matrix product."""
        return sum(self.child(task).flops(own) for task, own in batch["tasks"].items())
