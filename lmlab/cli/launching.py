"""How many ranks a command asks for, and who starts them.

On one machine the command itself becomes their parent (`lmlab.cli.parent`). On several machines torchrun is started on each, and its ranks
take their numbers from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmlab.cli.ranks import PARENT
from lmlab.config import require
from lmlab.errors import ConfigError

SELF_STARTING = ("ddp_spawn", "ddp_fork", "ddp_notebook")
OTHER_LAUNCHERS = {"SLURM_PROCID": "SLURM_NTASKS", "RANK": "WORLD_SIZE", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE"}
"""Variables by which a process knows that another launcher started it as one of several, and the number of them."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How ranks are looked after that `lmlab` starts itself; torchrun has options of its own for this.

    Args:
        max_restarts: How often all ranks are started again, from the last checkpoint of the same run, after one of them failed.
        stop_seconds: How long ranks may take to finish their step and save after Ctrl-C or SIGTERM, before they are killed.
    """

    max_restarts: int = 0
    stop_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Checks what can be checked."""
        require(self.max_restarts >= 0, self, "max_restarts", "it counts restarts", "set 0 or more")
        require(self.stop_seconds > 0, self, "stop_seconds", "ranks need time to save", "set it above 0")


def ranks_to_start(trainer: Any, launch: LaunchConfig | None, where: Callable[[str], str | None] = lambda key: None) -> int:
    """How many ranks this process has to start; 0 if it is to do the work itself.

    Under torchrun, the trainer's `devices` and `num_nodes` are set to torchrun's numbers where they were left open.

    Args:
        trainer: The trainer's settings, by attribute.
        launch: How ranks are looked after; None for a command that measures, whose number of ranks stays as it is set.
        where: Tells which file and line, or argument, set a key; for messages.

    Raises:
        ConfigError: If nobody would start the ranks that are asked for, or a setting would have no effect.
    """
    if PARENT in os.environ:
        return 0
    measures, launch = launch is None, launch or LaunchConfig()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _check_numbers(trainer, where, takes=not measures)
        if launch != LaunchConfig():
            key = "launch.max_restarts" if launch.max_restarts else "launch.stop_seconds"
            remedy = "torchrun --max-restarts N, TORCH_ELASTIC_SHUTDOWN_TIMEOUT=SECONDS; and leave out the settings of `launch`"
            raise ConfigError(f"{key} has no effect under torchrun", where=where(key) or key, why="it starts the ranks", remedy=remedy)
        return 0
    if "LOCAL_RANK" in os.environ:  # a rank that Lightning started from a script
        return 0
    _refuse_other_launchers()
    count = num_devices(trainer.accelerator, trainer.devices)
    if trainer.num_nodes > 1:
        raise _needs_torchrun(trainer.num_nodes, count, where("trainer.num_nodes"))
    if count > 1 and str(trainer.strategy) in SELF_STARTING:
        why = "it makes ranks out of rank 0, and a parent that is a rank itself cannot tell which rank failed"
        name = where("trainer.strategy") or "trainer.strategy"
        raise ConfigError(f"trainer.strategy = {trainer.strategy!r} is not possible", where=name, why=why, remedy="set it to ddp")
    if launch.stop_seconds != LaunchConfig().stop_seconds and count == 1 and launch.max_restarts == 0:
        key = "launch.stop_seconds"
        why, remedy = "a single process ends by itself", "leave it out, or set trainer.devices or launch.max_restarts"
        raise ConfigError(f"{key} has no effect on one device", where=where(key) or key, why=why, remedy=remedy)
    return count if count > 1 or launch.max_restarts > 0 else 0


def num_devices(accelerator: Any, devices: Any) -> int:
    """How many ranks Lightning would want on this machine.

    Args:
        accelerator: The trainer's setting: a name, or something else, which counts as `auto`.
        devices: The trainer's setting: a number, `auto`, -1 for all, or a list of devices, as text as well.

    Returns:
        The number; 1 for what Lightning will refuse with words of its own.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

    kinds = {"cpu": CPUAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}
    name = accelerator if isinstance(accelerator, str) else "auto"
    kind = kinds.get(name) or next((k for k in (CUDAAccelerator, MPSAccelerator) if name != "cpu" and k.is_available()), CPUAccelerator)
    if devices in ("auto", None):
        return 1 if kind is CPUAccelerator else kind.auto_device_count()
    try:
        parsed: Any = kind.parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError):
        return 1
    return parsed if isinstance(parsed, int) else len(parsed or [0])


def _check_numbers(trainer: Any, where: Callable[[str], str | None], takes: bool) -> None:
    """Takes the numbers of ranks and nodes from torchrun, if it may; what says otherwise is refused."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = max(1, world // local)
    if takes and trainer.devices in ("auto", 1, "1", -1, "-1"):
        trainer.devices = local
    if takes and trainer.num_nodes == 1:
        trainer.num_nodes = nodes
    for key, given, there in (
        ("trainer.devices", num_devices(trainer.accelerator, trainer.devices), local),
        ("trainer.num_nodes", trainer.num_nodes, nodes),
    ):
        if given != there:
            option = "--nproc-per-node" if key == "trainer.devices" else "--nnodes"
            what, why = f"{key} asks for {given}, and torchrun started {there}", "both must be the same"
            raise ConfigError(what, where=where(key) or key, why=why, remedy=f"leave {key} out, or torchrun {option} {given}")


def _refuse_other_launchers() -> None:
    for variable, number in OTHER_LAUNCHERS.items():
        if variable in os.environ and int(os.environ.get(number) or 1) > 1:
            raise ConfigError(
                f"this process is one of {os.environ[number]} that were started at once, and none is the parent of the others",
                where=f"{variable}={os.environ[variable]} in the environment",
                why="ranks are started by a parent that is not a rank, so that one that dies can be named",
                remedy="start one torchrun a node, as configs/launch/slurm.sbatch and kubernetes.yml do; see docs/launching.md",
            )


def _needs_torchrun(num_nodes: int, count: int, where: str | None) -> ConfigError:
    command = f"torchrun --nnodes {num_nodes} --nproc-per-node {count} --rdzv-backend c10d --rdzv-id ID --rdzv-endpoint FIRST_NODE:29500"
    return ConfigError(
        f"trainer.num_nodes = {num_nodes}, and nobody starts the ranks of the other nodes",
        where=where or "trainer.num_nodes",
        why="lmlab starts the ranks of one machine; for several, torchrun is started on each",
        remedy=f"on every node: {command} -m lmlab fit ... --resume auto (docs/launching.md)",
    )
