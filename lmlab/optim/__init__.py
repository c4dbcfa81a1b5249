"""Optimizers, their parameter groups, learning-rate schedules, and averages of weights."""

from lmlab.optim.ema import EMAConfig, ExponentialMovingAverage
from lmlab.optim.groups import KINDS, Kind, kind_of
from lmlab.optim.muon import MuonWithAdamW
from lmlab.optim.optimizer import OptimizerConfig
from lmlab.optim.schedule import Plateau, ScheduleConfig, set_learning_rate

__all__ = [
    "KINDS",
    "EMAConfig",
    "ExponentialMovingAverage",
    "Kind",
    "MuonWithAdamW",
    "OptimizerConfig",
    "Plateau",
    "ScheduleConfig",
    "kind_of",
    "set_learning_rate",
]
