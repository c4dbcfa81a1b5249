"""What every run has, whether it is started from the command line or from Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint

from lmlab.budget import BudgetConfig
from lmlab.callbacks.budget import Budget
from lmlab.callbacks.checkpoints import Checkpoints
from lmlab.callbacks.csv_logging import MetricsCsvLogger
from lmlab.callbacks.guard import FiniteGuard
from lmlab.callbacks.interruption import Interruption
from lmlab.callbacks.progress import ProgressLine
from lmlab.callbacks.recording import Recording
from lmlab.callbacks.samples import Samples
from lmlab.checkpoint import AtomicCheckpointIO
from lmlab.config import Recorded, to_plain
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.quiet import quiet
from lmlab.run.directory import RunDirectory
from lmlab.session import RunConfig, Session, open_session
from lmlab.strategies import check_strategy
from lmlab.trainer_settings import SAVING, TRAINER_DEFAULTS, check_seed, check_trainer


def all_callbacks(
    session: Session, budget: BudgetConfig, config: RunConfig, further: Sequence[Callback] = (), shows_progress: bool = True
) -> list[Callback]:
    """The callbacks every run has, and those of this run between them.

    The clock comes first. What saves comes last: it must find everything, averaged weights for one, as it is after the step.

    Args:
        session: The run.
        budget: When it ends.
        config: What to keep.
        further: The run's own callbacks.
        shows_progress: The trainer's `enable_progress_bar`.
    """
    checkpoints = Checkpoints(session.run.checkpoints, times=budget.checkpoints, keep=config.keep)
    interruption = Interruption(checkpoints)
    return [
        interruption.listener,
        Budget(budget),
        FiniteGuard(),
        Samples(session.run),
        Recording(session.run, session.record),
        *([ProgressLine()] if shows_progress else []),
        *further,
        interruption,
        checkpoints,
    ]


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuses a run's own callbacks if one of them saves, too.

    Args:
        callbacks: The run's own.

    Raises:
        ConfigError: Then.
    """
    for callback in callbacks:
        if isinstance(callback, Checkpoint):
            why, remedy = SAVING
            raise ConfigError(f"there cannot be a {type(callback).__name__}", where="trainer.callbacks", why=why, remedy=remedy)


def standard_loggers(session: Session, config: RunConfig, settings: dict[str, Any]) -> list[Any]:
    """`metrics.csv`, and W&B if it is asked for; a resumed run forgets the rows after its checkpoint.

    Args:
        session: The run.
        config: Whether to use W&B.
        settings: For W&B's config table.
    """
    table = MetricsCsvLogger(session.run)
    if session.checkpoint is not None:
        table.resume(session.step)
    loggers: list[Any] = [table]
    if config.wandb != "off":
        from lmlab.callbacks.wandb_logging import make_wandb_logger

        loggers.append(make_wandb_logger(session.run, settings, mode=config.wandb, project=config.project))
    return loggers


def fit(  # noqa: PLR0913  each is a part of a run
    objective: Objective,
    data: LightningDataModule,
    budget: BudgetConfig,
    run: RunConfig = RunConfig(),
    *,
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true",
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> RunDirectory:
    """Trains an objective from Python, the way `lmlab fit` does from the command line.

    Args:
        objective: What to learn; afterwards it holds the trained weights.
        data: What to learn from.
        budget: When to stop.
        run: Name, question, resume rule.
        precision: Lightning's name of the number format.
        callbacks: Further callbacks; `config.yaml` does not have them.
        plugins: Further plugins of Lightning.
        seed: Of the weights; give the data module the same.
        trainer: Further arguments of Lightning's Trainer; of one that is an object, `config.yaml` keeps the class only.

    Returns:
        The run's folder, with metrics, checkpoints, samples, `report.html`, and a `config.yaml` by which `lmlab fit` repeats the run.
    """
    quiet()
    arguments = {**TRAINER_DEFAULTS, "precision": precision, **(trainer or {})}
    check_trainer(arguments)
    check_callbacks(callbacks)
    for name in ("callbacks", "plugins"):
        if name in arguments:
            raise ConfigError(f"trainer['{name}'] is not yours to set", where="trainer", why="lmlab has its own", remedy=f"fit({name}=...)")
    check_strategy(objective, {**arguments, "callbacks": callbacks})
    seed_everything(check_seed(seed), verbose=False)
    settings = _settings(objective, data, budget, run, seed, arguments)
    with open_session(run, seed, settings, budget, objective.tokenizer) as session:
        trained = Trainer(
            **arguments,
            logger=standard_loggers(session, run, settings),
            plugins=[AtomicCheckpointIO(), *plugins],
            callbacks=all_callbacks(session, budget, run, callbacks, arguments.get("enable_progress_bar", True) is not False),
        )
        trained.fit(objective, data, ckpt_path=session.checkpoint)
    return session.run


def _settings(
    objective: Objective, data: LightningDataModule, budget: BudgetConfig, run: RunConfig, seed: int, trainer: dict[str, Any]
) -> dict[str, Any]:
    """The run as `lmlab fit -c` would read it; `tokenizer: null` stands for the copy that the run's folder will hold."""
    given = (
        data.recipe(without=("tokenizer", "feed", "seed")) if isinstance(data, Recorded) else {"class_path": _path(data), "init_args": {}}
    )
    return {
        "run": to_plain(run),
        "seed_everything": seed,
        "tokenizer": None,
        "model": objective.recipe(without=("tokenizer",)),
        "data": given,
        "budget": to_plain(budget),
        "trainer": {name: value if _is_plain(value) else _path(value) for name, value in trainer.items()},
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
