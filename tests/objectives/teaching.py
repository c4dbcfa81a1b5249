"""Small teachers and students, and what they are fed, for the tests of distillation."""

from __future__ import annotations

from itertools import islice
from typing import Any

from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig
from lmlab.data.batch import Batch
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig
from lmlab.objectives.layer_map import FeatureMatch
from lmlab.objectives.mlm import MLM
from lmlab.objectives.nested import ObjectiveConfig
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.objectives.teachers import TeacherConfig
from lmlab.objectives.tokens import TokenObjective
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, Toy

KINDS: dict[str, type[TokenObjective]] = {"mlm": MLM, "clm": CLM, "span_corruption": SpanCorruption}
TEACHER = BackboneConfig(hidden_size=32, num_layers=3, num_heads=4, init_std=0.2)
STUDENT = BackboneConfig(hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2)
EVERYTHING = DistillationLoss(
    labels=0.5,
    response=ResponseConfig(kind="jsd", beta=0.3, temperature=2.0, weight=1.5),
    features=(
        FeatureMatch(feature="embedding", loss="mse", projection="shared", weight=0.7),
        FeatureMatch(feature="hidden", teacher=2, student=1, loss="mse", projection="shared"),
        FeatureMatch(feature="hidden", teacher=-1, student=-1, loss="cosine", projection="linear"),
        FeatureMatch(feature="hidden", teacher=-1, student=-1, loss="pkd", projection="linear", rows="first"),
        FeatureMatch(feature="scores", teacher=3, student=2, loss="mse", weight=0.1),
        FeatureMatch(feature="scores", teacher=3, student=2, loss="kl"),
        FeatureMatch(feature="relation", teacher=-1, student=-1, loss="kl", relation_heads=2),
    ),
)


def teacher(kind: str, tok: Tokenizer, config: BackboneConfig = TEACHER, seed: int = 0) -> TokenObjective:
    """Built, and far from uniform."""
    seed_everything(seed, verbose=False)
    made = KINDS[kind](tok, config, length=LENGTH)  # type: ignore[call-arg]
    made.configure_model()
    made.eval()
    return made


def described(kind: str) -> ObjectiveConfig:
    return ObjectiveConfig(objective=f"{KINDS[kind].__module__}.{KINDS[kind].__name__}", settings={"length": LENGTH})


def student(kind: str, tok: Tokenizer, loss: DistillationLoss = EVERYTHING, config: BackboneConfig = STUDENT, **given: Any) -> Distillation:
    """Not built yet, and without a teacher."""
    given = {"teachers": (TeacherConfig(run="nobody"),)} | given
    return Distillation(tok, config, student=described(kind), loss=loss, **given)


def taught(kind: str, tok: Tokenizer, loss: DistillationLoss = EVERYTHING, config: BackboneConfig = STUDENT, **given: Any) -> Distillation:
    """Built, with a teacher of its kind."""
    seed_everything(0, verbose=False)
    made = student(kind, tok, loss, config, **given)
    made.learn_from([teacher(kind, tok)] * len(made.teacher_configs))
    return made


def batches(objective: Objective, tok: Tokenizer, num: int = 1, size: int = 4) -> list[Batch]:
    """Micro-batches without their stamps."""
    found = islice(Toy(objective.feed(), tok, size, size).train_dataloader(), num)  # type: ignore[arg-type]
    return [{key: value for key, value in batch.items() if key != "window"} for batch in found]
