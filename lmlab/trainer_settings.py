"""Which settings of Lightning's Trainer differ here, and which lmlab answers for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmlab.errors import ConfigError

TRAINER_DEFAULTS: dict[str, Any] = {
    "deterministic": True,
    "max_epochs": 1,  # the data is one stream without end; the budget stops the run
    # the budget says when to validate; these two tell callbacks such as EarlyStopping to look after each validation, not after an epoch
    "val_check_interval": 10**9,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
}
"""Trainer settings that differ from Lightning's."""

LIMITS = ("the budget ends a run, and accumulation follows from the batch sizes",
          "set budget.steps, tokens, flops or seconds; data.global_batch_size and data.micro_batch_size")  # fmt: skip
TIMES = ("the budget says when to validate", "set budget.validations")
LOGGERS = ("metrics.csv is always written, and W&B has its own setting", "set run.wandb: auto, or leave it out")
SAVING = ("checkpoints are written at marks of the budget, into the run's folder", "set budget.checkpoints and run.keep")
FOLDER = ("everything is written into the run's folder", "set run.root, or LMLAB_RUNS")

OWN_SETTINGS: dict[str, tuple[tuple[Any, ...], tuple[str, str]]] = {
    "max_steps": ((-1, None), LIMITS),
    **dict.fromkeys(("max_time", "min_steps", "min_epochs"), ((None,), LIMITS)),
    **dict.fromkeys(("max_epochs", "accumulate_grad_batches"), ((1, None), LIMITS)),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), ((None, 0, 0.0, 1.0), LIMITS)),
    "val_check_interval": ((TRAINER_DEFAULTS["val_check_interval"],), TIMES),
    "check_val_every_n_epoch": ((TRAINER_DEFAULTS["check_val_every_n_epoch"],), TIMES),
    "logger": ((None,), LOGGERS),
    "enable_checkpointing": ((None, True), SAVING),
    "default_root_dir": ((None,), FOLDER),
}
"""Trainer settings that lmlab answers for: the values that change nothing, why, and what to set instead."""


def check_trainer(settings: Mapping[str, Any], where: Callable[[str], str | None] = lambda key: None) -> None:
    """Refuses Trainer settings that lmlab answers for, and numbers that Lightning takes but that mean nothing.

    Args:
        settings: By name.
        where: Tells which file and line, or argument, set a key; for the message.

    Raises:
        ConfigError: On the first such setting.
    """
    for name, (harmless, (why, remedy)) in OWN_SETTINGS.items():
        value = settings.get(name, harmless[0])
        if not any(type(value) is type(one) and value == one for one in harmless):
            key = f"trainer.{name}"
            raise ConfigError(f"{key} = {value!r} is not yours to set", where=where(key) or key, why=why, remedy=remedy)
    every, clip = settings.get("log_every_n_steps"), settings.get("gradient_clip_val")
    if every is not None and (not isinstance(every, int) or every < 1):
        key = "trainer.log_every_n_steps"
        raise ConfigError(f"{key} = {every!r} is not possible", where=where(key) or key, why="it counts steps", remedy="set 1 or more")
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        key = "trainer.gradient_clip_val"
        why = "gradients are scaled down to this norm"
        raise ConfigError(
            f"{key} = {clip!r} is not possible", where=where(key) or key, why=why, remedy="set it above 0, or to null for none"
        )


def check_seed(seed: Any) -> int:
    """The seed, if it is one.

    Args:
        seed: What was set.

    Raises:
        ConfigError: If it is no whole number from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(
            f"{seed!r} is no seed", where="seed_everything", why="a seed is a whole number below 2**32", remedy="for example 0"
        )
    return seed
