"""What watches over a run; named in YAML under `trainer.callbacks+`."""

from lmlab.callbacks.averaging import WeightAveraging
from lmlab.callbacks.budget import Budget
from lmlab.callbacks.checkpoints import Checkpoints
from lmlab.callbacks.compilation import Compile
from lmlab.callbacks.guard import FiniteGuard
from lmlab.callbacks.interruption import Interruption
from lmlab.callbacks.samples import Samples

__all__ = ["Budget", "Checkpoints", "Compile", "FiniteGuard", "Interruption", "Samples", "WeightAveraging"]
