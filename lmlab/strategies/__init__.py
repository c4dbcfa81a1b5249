"""How one run is spread over devices; each strategy runs on CPUs as well as on GPUs."""

from lmlab.strategies.fsdp import FSDP2Strategy

__all__ = ["FSDP2Strategy"]
