"""What cannot be trained under which strategy, and why: said in one sentence before anything begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.grad_cache import VectorObjective
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.ngram import NGram
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.strategies.fsdp import FSDP
from lmlab.strategies.zero import ZeRO

STRATEGIES = ("single", "ddp", "fsdp", "hsdp", "fsdp_tp", "zero1", "zero2", "zero3")
"""The columns of the table; offloading refuses nothing more."""
ZEROS = frozenset({"zero1", "zero2", "zero3"})
CUT = frozenset({"fsdp_tp"})
SHARDED = frozenset({"fsdp", "hsdp", "fsdp_tp"})


class Refusal(NamedTuple):
    """Something that does not go with some strategies.

    Args:
        technique: What; a row of the table.
        strategies: With which.
        why: In one clause.
        remedy: What to do.
        applies: Whether an objective, not built yet, has it.
    """

    technique: str
    strategies: frozenset[str]
    why: str
    remedy: str
    applies: Callable[[Objective], bool]


def _watches(objective: Objective) -> bool:
    if not isinstance(objective, Multitask):
        return False
    return objective.gradients.rule != "sum" or objective.gradients.cosines == "on" or objective.weighting.kind == "gradnorm"


def _takes_turns(objective: Objective) -> bool:
    return isinstance(objective, Multitask) and objective.sampling.regime != "all"


def _looks_into_attention(objective: Objective) -> bool:
    features = objective.loss.features if isinstance(objective, Distillation) else ()
    return any(match.feature in ("scores", "relation") for match in features)


def _adds_positions(objective: Objective) -> bool:
    return objective.backbone_config.position in ("t5", "alibi")


def _uses(*names: str) -> Callable[[Objective], bool]:
    return lambda objective: objective.optimizer_config.name.rpartition(".")[2].lower() in names


REFUSALS = (
    Refusal(
        "multitask: PCGrad, GradNorm, cosines",
        ZEROS,
        "DeepSpeed keeps gradients in buffers of its own, where they are sums over all tasks",
        "use ddp or fsdp, or the rule `sum` with other weights",
        _watches,
    ),
    Refusal(
        "multitask: PCGrad, GradNorm, cosines",
        CUT,
        "a rank has the gradients of its part of a layer, and products of gradients are over whole ones",
        "use ddp or fsdp",
        _watches,
    ),
    Refusal(
        "multitask: one task a step",
        ZEROS,
        "heads of a task that a step does not have must rest, and DeepSpeed steps all parameters of a group",
        "use ddp or fsdp, or all tasks in each step: sampling.regime all",
        _takes_turns,
    ),
    Refusal(
        "contrastive",
        CUT,
        "vectors are gathered from all ranks, and those that share layers have the same ones",
        "use fsdp",
        lambda objective: isinstance(objective, VectorObjective),
    ),
    Refusal(
        "distillation: attention maps",
        CUT,
        "each rank sees some heads only",
        "use fsdp, or features other than scores and relation",
        _looks_into_attention,
    ),
    Refusal(
        "T5 and ALiBi positions",
        CUT,
        "what positions add to attention scores is not cut by heads",
        "use fsdp, or position rope, learned or sinusoidal",
        _adds_positions,
    ),
    Refusal(
        "recurrent networks",
        CUT,
        "they have no transformer blocks to cut",
        "use fsdp",
        lambda objective: isinstance(objective, RecurrentLM),
    ),
    Refusal(
        "n-gram models",
        frozenset(STRATEGIES[1:]),
        "they count all of the text in one process",
        "leave trainer.strategy and trainer.devices out",
        lambda objective: isinstance(objective, NGram),
    ),
    Refusal(
        "Muon",
        ZEROS,
        "its step depends on the shape of a matrix, and DeepSpeed flattens parameters",
        "use ddp or fsdp, or -c configs/optim/adamw.yaml",
        _uses("muon"),
    ),
    Refusal(
        "Adafactor",
        ZEROS,
        "its step depends on the shape of a matrix, and DeepSpeed flattens parameters",
        "use ddp, or -c configs/optim/adamw.yaml",
        _uses("adafactor"),
    ),
    Refusal(
        "Adafactor",
        SHARDED,
        "torch's does not compute norms of rows that lie on several ranks",
        "use ddp, or -c configs/optim/adamw.yaml",
        _uses("adafactor"),
    ),
)
"""All that is refused; what is not named here works, and is tested on two processes."""


def kind_of(strategy: Any) -> str:
    """The column of a strategy.

    Args:
        strategy: An object, or a name as Lightning has it.

    Raises:
        ConfigError: If it is one of Lightning's own that lmlab replaces.
    """
    if isinstance(strategy, FSDP):
        return "fsdp_tp" if strategy.tensor_parallel > 1 else "hsdp" if strategy.replicas > 1 else "fsdp"
    if isinstance(strategy, ZeRO):
        return f"zero{strategy.stage}"
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    replaced = isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)) or name.startswith(("fsdp", "deepspeed"))
    if replaced:
        raise ConfigError(
            f"the strategy {name} is Lightning's own",
            where="trainer.strategy",
            why="it runs on GPUs only, or writes checkpoints that other strategies cannot read",
            remedy="add -c configs/strategies/fsdp.yaml or zero2.yaml, or set class_path: lmlab.strategies.FSDP or lmlab.strategies.ZeRO",
        )
    return "ddp" if "ddp" in name.lower() else "single"


def check_strategy(strategy: Any, objective: Objective) -> None:
    """Refuses what cannot be trained under a strategy, or what lmlab has a strategy of its own for.

    Args:
        strategy: The trainer's setting.
        objective: Not built yet; objectives inside it count as well.

    Raises:
        ConfigError: Then.
    """
    kind = kind_of(strategy)
    refusal = refusal_of(kind, objective)
    if refusal is not None:
        what = f"{refusal.technique} cannot be trained with {kind}"
        raise ConfigError(what, where="trainer.strategy", why=refusal.why, remedy=refusal.remedy)


def refusal_of(kind: str, objective: Objective) -> Refusal | None:
    """The first thing in an objective that does not go with a strategy.

    Args:
        kind: A column of the table.
        objective: Not built yet; objectives inside it count as well.
    """
    inside = [one for one in objective.modules() if isinstance(one, Objective)]
    return next((one for one in REFUSALS if kind in one.strategies and any(map(one.applies, inside))), None)


def why_not(technique: str, strategy: str) -> str | None:
    """Why something is refused; None if it is not.

    Args:
        technique: A row of the table.
        strategy: A column.
    """
    return next((one.why for one in REFUSALS if one.technique == technique and strategy in one.strategies), None)
