"""What cannot be trained under which strategy, and why: said in one sentence before anything begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lmlab.callbacks import Compile
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.grad_cache import VectorObjective
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.ngram import NGram
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.strategies.fsdp import FSDP
from lmlab.strategies.zero import ZeRO
from lmlab.strategies.zero_kernels import check_kernels

STRATEGIES = ("single", "ddp", "fsdp", "hsdp", "fsdp_tp", "zero1", "zero2", "zero3")
"""The columns of the table; offloading refuses nothing more."""
ZEROS = frozenset({"zero1", "zero2", "zero3"})
CUT = frozenset({"fsdp_tp"})
SHARDED = frozenset({"fsdp", "hsdp", "fsdp_tp"})


class Asked(NamedTuple):
    """What a run asks of a strategy.

    Args:
        objective: Not built yet.
        trainer: Settings of the trainer.
    """

    objective: Objective
    trainer: Mapping[str, Any]


class Refusal(NamedTuple):
    """Something that does not go with some strategies.

    Args:
        technique: What; a row of the table.
        strategies: With which.
        why: In one clause.
        remedy: What to do.
        applies: Whether a run has it.
    """

    technique: str
    strategies: frozenset[str]
    why: str
    remedy: str
    applies: Callable[[Asked], bool]


def _is_a(*kinds: type[Objective]) -> Callable[[Asked], bool]:
    return lambda asked: isinstance(asked.objective, kinds)


def _watches(asked: Asked) -> bool:
    objective = asked.objective
    if not isinstance(objective, Multitask):
        return False
    return objective.gradients.rule != "sum" or objective.gradients.cosines == "on" or objective.weighting.kind == "gradnorm"


def _takes_turns(asked: Asked) -> bool:
    return isinstance(asked.objective, Multitask) and asked.objective.sampling.regime != "all"


def _looks_into_attention(asked: Asked) -> bool:
    features = asked.objective.loss.features if isinstance(asked.objective, Distillation) else ()
    return any(match.feature in ("scores", "relation") for match in features)


def _adds_positions(asked: Asked) -> bool:
    return asked.objective.backbone_config.position in ("t5", "alibi")


def _uses(*names: str) -> Callable[[Asked], bool]:
    return lambda asked: asked.objective.optimizer_config.name.rpartition(".")[2].lower() in names


def _clips_values(asked: Asked) -> bool:
    return asked.trainer.get("gradient_clip_val") is not None and asked.trainer.get("gradient_clip_algorithm") == "value"


def _compiles(asked: Asked) -> bool:
    return any(isinstance(callback, Compile) for callback in asked.trainer.get("callbacks") or ())


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
        _is_a(VectorObjective),
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
        _is_a(RecurrentLM),
    ),
    Refusal(
        "recurrent networks",
        frozenset({"zero2", "zero3"}),
        "their gradients come in an order that depends on the text; DeepSpeed adds up what comes first on each rank, of whatever it is",
        "use fsdp or zero1",
        _is_a(RecurrentLM),
    ),
    Refusal(
        "n-gram models",
        frozenset(STRATEGIES[1:]),
        "they count all of the text in one process",
        "leave trainer.strategy and trainer.devices out",
        _is_a(NGram),
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
    Refusal(
        "clipping gradients by value",
        ZEROS,
        "DeepSpeed clips by norm only",
        "leave trainer.gradient_clip_algorithm out",
        _clips_values,
    ),
    Refusal("Compile", CUT, "torch's compiler does not end on layers that are cut", "leave the callback Compile out", _compiles),
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


def check_strategy(objective: Objective, trainer: Mapping[str, Any]) -> None:
    """Refuses what cannot be trained under a strategy, or what lmlab has a strategy of its own for.

    Args:
        objective: Not built yet; objectives inside it count as well.
        trainer: Settings of the trainer, its strategy and callbacks among them.

    Raises:
        ConfigError: Then.
    """
    kind = kind_of(trainer.get("strategy", "auto"))
    refusal = refusal_of(kind, Asked(objective, trainer))
    if refusal is not None:
        what = f"{refusal.technique} cannot be trained with {kind}"
        raise ConfigError(what, where="trainer.strategy", why=refusal.why, remedy=refusal.remedy)
    strategy = trainer.get("strategy")
    if isinstance(strategy, ZeRO) and strategy.kernels == "deepspeed":
        check_kernels(objective.optimizer_config)


def refusal_of(kind: str, asked: Asked) -> Refusal | None:
    """The first thing in a run that does not go with a strategy.

    Args:
        kind: A column of the table.
        asked: By a run; objectives inside its objective count as well.
    """
    inside = [asked._replace(objective=one) for one in asked.objective.modules() if isinstance(one, Objective)]
    return next((one for one in REFUSALS if kind in one.strategies and any(map(one.applies, inside))), None)


def why_not(technique: str, strategy: str) -> str | None:
    """Why something is refused; None if it is not.

    Args:
        technique: A row of the table.
        strategy: A column.
    """
    return next((one.why for one in REFUSALS if one.technique == technique and strategy in one.strategies), None)
