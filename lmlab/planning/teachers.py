"""Teachers without their weights: how large they are is all that planning asks."""

from __future__ import annotations

from pathlib import Path

from lmlab.checkpoint import described_in, outline
from lmlab.errors import CheckpointError, ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.hugging_face import config_in, is_hugging_face, objective_of_family
from lmlab.objectives.teachers import TeacherConfig, teacher_in
from lmlab.objectives.tokens import TokenObjective
from lmlab.run.find import find_checkpoint
from lmlab.tokenizer import Tokenizer


def describe_teachers(objective: Objective) -> list[Objective]:
    """The teachers of a distillation, not built.

    Args:
        objective: Any; what has no teachers has none to describe.

    Raises:
        CheckpointError: If a teacher is not there.
    """
    if not isinstance(objective, Distillation):
        return []
    return [_described(config, objective.tokenizer, f"teachers[{n}]") for n, config in enumerate(objective.teacher_configs)]


def seat_teachers(objective: Objective, described: list[Objective]) -> None:
    """Builds teachers where tensors are made now, and gives them to a distillation that is built.

    Args:
        objective: Any.
        described: From `describe_teachers`; copies, for they are built.

    Raises:
        ConfigError: If one of them cannot teach.
    """
    if not isinstance(objective, Distillation) or not described:
        return
    teachers: list[TokenObjective] = []
    for number, (config, teacher) in enumerate(zip(objective.teacher_configs, described, strict=True)):
        teacher.configure_model()
        teachers.append(teacher_in(teacher, config, objective.student.part, f"teachers[{number}]"))
    objective.seat(teachers)


def _described(config: TeacherConfig, tokenizer: Tokenizer, where: str) -> Objective:
    folder = Path(config.run).expanduser()
    if is_hugging_face(folder):
        network, family = config_in(folder)
        return objective_of_family(family, tokenizer, network)
    try:
        path = find_checkpoint(config.run, config.checkpoint)
        found = described_in(outline(path), path)  # sizes only: no weight is read
    except CheckpointError as error:
        remedy = "train the teacher first, or name another"
        raise CheckpointError(error.what, where=f"{where}.run = {config.run}", why=error.why, remedy=remedy) from error
    if not isinstance(found, Objective):
        raise ConfigError(f"the run '{config.run}' cannot teach", where=f"{where}.run", why="it is no objective", remedy="name another")
    return found
