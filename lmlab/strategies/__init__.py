"""How one run is spread over devices; each strategy runs on CPUs as well as on GPUs."""

from lmlab.strategies.ddp import DDP
from lmlab.strategies.fsdp import FSDP
from lmlab.strategies.refusals import check_strategy
from lmlab.strategies.zero import ZeRO

__all__ = ["DDP", "FSDP", "ZeRO", "check_strategy"]
