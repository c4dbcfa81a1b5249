"""Knowledge distillation: a student learns from labels, from its teachers' answers, and from what goes on inside a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.backbones import BackboneConfig
from lmlab.data.batch import IGNORE_INDEX, Batch, Collator, Example, Feed
from lmlab.data.loader import Window, num_labelled
from lmlab.errors import ConfigError
from lmlab.losses import Losses, Means, Part
from lmlab.nn.frozen import Frozen
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig
from lmlab.objectives.matching import Matching
from lmlab.objectives.nested import ObjectiveConfig
from lmlab.objectives.on_policy import OnPolicyConfig, check_policy, continued, num_written, writing_flops
from lmlab.objectives.passes import Outcome, Pass, Step
from lmlab.objectives.projections import Projections, key_of
from lmlab.objectives.responses import compare_answers
from lmlab.objectives.teachers import (
    TeacherConfig,
    backbone_of,
    check_kind,
    check_same,
    check_teachers,
    fingerprint_of,
    forward_flops,
    lend_layers,
    read_teacher,
)
from lmlab.objectives.tokens import TokenObjective
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.run.samples import Sample
from lmlab.tokenizer import Tokenizer

RESPONSE = "response"


@dataclass(frozen=True)
class DistillationCollator:
    """The student's batches, with the number of terms of each part of the distillation.

    Args:
        student: The student's collator.
        part: Name of the loss of the student's tokens; teachers answer where it has labels.
        loss: The parts.
        num_encoder_layers: Layers of the student before its decoder, if it has two stacks.
    """

    student: Collator
    part: str
    loss: DistillationLoss
    num_encoder_layers: int

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Corrupts, stacks and counts."""
        batch = self.student(examples, seed)
        counts = dict(batch["counts"])
        if self.loss.response is not None:
            counts[RESPONSE] = counts[self.part]
        counts |= {match.name: match.count(batch, self.num_encoder_layers) for match in self.loss.features}
        return {**batch, "counts": counts, "num_labelled": torch.tensor([num_labelled(batch)])}


class Distillation(Objective):
    """Trains any objective over tokens as a student of trained ones.

    Teachers are read when training or measuring begins. They are in evaluation mode, get no gradient, and are neither in the optimiser nor
    in a checkpoint; their forward passes, one for each micro-batch, are counted in FLOPs. What `lmlab.load` gives needs no teacher to
    predict, and has the student alone as `student`.

    Args:
        tokenizer: Of student and teachers.
        backbone: Sizes and bricks of the student.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        student: What it is trained on by itself: its feed, head and labels.
        teachers: Who answers; the probabilities of several are averaged. Layers are matched with the first.
        loss: What counts, and how much.
        on_policy: Share of the training that is on the student's own text; causal students only.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2; for single terms see `DistillationLoss`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        student: ObjectiveConfig = ObjectiveConfig(objective="lmlab.objectives.mlm.MLM"),
        teachers: tuple[TeacherConfig, ...] = (),
        loss: DistillationLoss = DistillationLoss(response=ResponseConfig()),
        on_policy: OnPolicyConfig | None = None,
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone, optimizer, schedule)
        self.teacher_configs, self.loss, self.on_policy = tuple(teachers), loss, on_policy
        made = student.make(tokenizer, backbone, "student")
        if not isinstance(made, TokenObjective):
            why = f"{type(made).__name__} has no labels over the vocabulary to be taught"
            raise ConfigError("only what predicts tokens can be a student", where="student.objective", why=why, remedy="choose MLM or CLM")
        self.student: TokenObjective = made
        check_teachers(self.teacher_configs, loss.response is not None)
        check_policy(on_policy, made, loss)
        self.teachers = nn.ModuleList()
        self.projections = Projections(backbone.init_config()) if any(key_of(match) for match in loss.features) else None
        self._matching: Matching | None = None
        self._has_weights, self._fingerprints = False, list[str]()

    def feed(self) -> Feed:
        """The student's, with more counts."""
        feed, layers = self._student_feed, self.backbone_config.num_layers
        collators = {
            name: DistillationCollator(getattr(feed, name), self.student.part, self.loss, layers) for name in ("collate", "eval_collate")
        }
        return dataclasses.replace(feed, **collators)

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds the student; what depends on a teacher waits for `learn_from`."""
        self.student.build(backbone)
        self.student._is_built = True
        self.register_load_state_dict_post_hook(_mark_loaded)

    def setup(self, stage: str) -> None:
        """Reads the teachers, unless the student is only to predict.

        Args:
            stage: Of the trainer.
        """
        # Lightning enters this context later, for those that are not built by then
        with nullcontext() if self._trainer is None else self.trainer.strategy.model_sharded_context():
            self.configure_model()
        if stage != "predict" and not self.teachers:
            part = self.student.part
            self.learn_from([read_teacher(c, self.tokenizer, part, f"teachers[{n}]") for n, c in enumerate(self.teacher_configs)])

    def learn_from(self, teachers: Sequence[TokenObjective]) -> None:
        """Takes teachers in; a student without trained weights starts from the layers it is lent.

        Args:
            teachers: Built and trained, in the order of their settings.

        Raises:
            ConfigError: If they cannot teach this student.
        """
        self.configure_model()
        for number, (config, teacher) in enumerate(zip(self.teacher_configs, teachers, strict=True)):
            where = f"teachers[{number}]"
            check_kind(teacher, self.student, self._student_feed, self.loss.response is not None, where)
            if config.lends and not self._has_weights:
                lend_layers(teacher, self.student, config.lends, where)
        self.seat([teacher.to(self.device) for teacher in teachers])
        self._has_weights, self._fingerprints = True, [fingerprint_of(teacher) for teacher in teachers]

    def seat(self, teachers: Sequence[TokenObjective]) -> None:
        """Takes teachers in as they are: what is left of `learn_from` where weights have no values.

        Args:
            teachers: Built, where they are to stay, in the order of their settings.
        """
        if self.loss.features:
            torch.manual_seed(torch.initial_seed())  # for projections, whatever was drawn before
            theirs, ours = (backbone_of(one, who, "loss.features") for one, who in ((teachers[0], "teacher"), (self.student, "student")))
            self._matching = Matching(self.loss.features, theirs, ours, self.projections)
        self.teachers.extend(Frozen(teacher) for teacher in teachers)

    @property
    def product(self) -> Objective:
        """The student."""
        return self.student

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds who has taught."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lmlab"]["teachers"] = self._fingerprints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with other teachers than the run began with."""
        super().on_load_checkpoint(checkpoint)
        began_with = checkpoint.get("lmlab", {}).get("teachers")
        if self.teachers and began_with:
            check_same(self.teacher_configs, self._fingerprints, began_with)

    def losses(self, batch: Batch) -> Losses:
        """All parts, from one pass of the student and one of each teacher.

        Returns:
            The student's own parts, `response`, and one for each line of the layer map.

        Raises:
            ConfigError: If no teacher was read.
        """
        states, theirs, parts = self._forward(batch)
        monitors: dict[str, Part] = {}
        nats: Tensor | None = None
        weight = self.loss.labels
        if (response := self.loss.response) is not None:
            labels = self.student.row_labels(batch)
            rows = [self.student.rows_of(one, batch) for one in (states, *theirs)]
            compared = compare_answers(*self._with_heads(rows), self._shares, labels, response, weight / response.weight)
            parts[RESPONSE] = Part(compared.divergence, batch["counts"][RESPONSE], response.weight)
            nats = compared.nats
        if weight or nats is not None or not self.training:
            own = self.student.losses_of(states, batch, nats)
            monitors = own.monitors if weight else {**own.monitors, **own.parts}
            parts |= {name: part._replace(weight=part.weight * weight) for name, part in own.parts.items()} if weight else {}
        return Losses(parts, monitors)

    def policy_losses(self, batch: Batch) -> Losses:
        """The parts of a batch that the student has written: all but the labels, which are its own words.

        Args:
            batch: Labelled where the student wrote, the same number of tokens in each example.
        """
        states, theirs, parts = self._forward(batch)
        response = self.loss.response
        assert response is not None
        labels = self.student.row_labels(batch)
        written = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        rows = [self.student.rows_of(one, batch).index_select(0, written) for one in (states, *theirs)]
        compared = compare_answers(*self._with_heads(rows), self._shares, labels[written], response, 0.0)
        # the collator has counted all tokens of a block; the mean is over those that were written
        parts[RESPONSE] = Part(compared.divergence * (len(labels) / len(written)), batch["counts"][RESPONSE], response.weight)
        return Losses(parts, {})

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        """One pass, over the corpus or over the student's own text."""
        policy = self.on_policy
        if policy is None or not policy.chooses(step.window):
            return super().passes(batch, step)

        def on_own_text() -> Outcome:
            losses = self(self((batch, step.window), "written_on"), "policy_losses")
            return Outcome(step.total(losses), losses)

        return [on_own_text]

    @torch.compiler.disable  # it writes token by token
    def written_on(self, asked: tuple[Batch, Window]) -> Batch:
        """A batch that the student has written but for its beginnings.

        Args:
            asked: A batch of the corpus, and the step.
        """
        assert self.on_policy is not None and isinstance(self.student, CLM)
        return continued(self.student, asked[0], self.on_policy, asked[1])

    def is_of_some_steps(self, name: str) -> bool:
        """What is of labels, which the student's own text has none of."""
        return self.on_policy is not None and name not in ("loss", RESPONSE, *(match.name for match in self.loss.features))

    def summary(self, means: Means) -> Means:
        """As the student does."""
        return self.student.summary(means)

    def predicted_ids(self, batch: Batch) -> Tensor:
        """The student's."""
        return self.student.predicted_ids(batch)

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """The student's."""
        return self.student.samples(examples, step)

    def flops(self, batch: Batch) -> int:
        """The student's, the forward passes of the teachers, and what comparing costs; with its writing, if it writes.

        Without labels and answers, and with a map that ends below the student's last layer, no gradient comes from above: what is counted
        then is more than what is computed.
        """
        student, policy = self.student, self.on_policy
        labelled = len(student.row_labels(batch))
        writes = policy is not None and "window" in batch and policy.chooses(batch["window"])
        scored = labelled if self.loss.labels or self.loss.response is not None else 0
        total = student.flops(batch)
        if policy is not None and writes:
            assert isinstance(student, CLM)
            size, length = batch["input_ids"].shape
            scored = size * num_written(policy, length)
            total += writing_flops(student, size, policy.prompt_length, num_written(policy, length))
        total -= 3 * (student.head.flops(labelled) - student.head.flops(scored))
        answered = scored if self.loss.response is not None else 0
        total += sum(forward_flops(teacher.module, batch, answered) for teacher in self.teachers)  # type: ignore[arg-type]  # of kind Frozen
        return total + (self._matching.flops(batch) if self._matching is not None else 0)

    @property
    def _student_feed(self) -> Feed:
        feed = self.student.feed()
        assert isinstance(feed, Feed)  # what predicts tokens is one task
        return feed

    @property
    def _shares(self) -> list[float]:
        weights = [config.weight for config in self.teacher_configs]
        return [weight / sum(weights) for weight in weights]

    def _with_heads(self, rows: list[Tensor]) -> tuple[tuple, list[tuple]]:
        """States of student and teachers, each beside the head that scores them."""
        heads = [teacher.module.head for teacher in self.teachers]  # type: ignore[union-attr]  # of kind Frozen
        return (self.student.head, rows[0]), list(zip(heads, rows[1:], strict=True))

    def _forward(self, batch: Batch) -> tuple[Tensor, list[Tensor], dict[str, Part]]:
        """States of the student and of each teacher, and the parts of the layer map."""
        if not self.teachers:
            raise ConfigError(
                "the student has no teacher yet",
                where="Distillation.losses",
                why="teachers are read by the trainer, when training or measuring begins",
                remedy="ask its `student` instead, or call `setup('validate')` first",
            )
        matching = self._matching
        if matching is None:
            theirs = [teacher(batch, "states") for teacher in self.teachers]
            return self.student.states(batch), theirs, {}
        with matching.noting("teacher") as noted:
            theirs = [self.teachers[0](batch, "states")]
        theirs += [teacher(batch, "states") for teacher in self.teachers[1:]]
        with matching.noting("student") as own:
            states = self.student.states(batch)
        return states, theirs, matching.parts(batch, noted, own, batch["counts"])


def _mark_loaded(module: nn.Module, _: Any) -> None:
    """What has trained weights does not start from a teacher's layers."""
    assert isinstance(module, Distillation)
    module._has_weights = True
