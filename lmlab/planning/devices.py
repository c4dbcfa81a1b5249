"""Well-known devices: how much memory they have, and how fast they multiply at best."""

from __future__ import annotations

import os
from typing import NamedTuple

from lmlab.errors import ConfigError, nearest

GB, GIB = 10**9, 2**30
CPU = "cpu"
USABLE = 0.9
"""Share of a device's memory to plan with: the rest is for the driver's context, kernels' workspaces and what the allocator cannot fill."""


class Device(NamedTuple):
    """One device.

    Args:
        name: As `--device` takes it.
        memory: Bytes.
        half: Multiplications and additions a second in bfloat16 with float32 sums, dense; None where nobody claims one.
        single: The same in float32, as torch multiplies by default: without TF32.
        source: Where both are from.
    """

    name: str
    memory: int
    half: float | None
    single: float | None
    source: str

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine."""
        return self.name == CPU

    def peak(self, precision: str) -> float | None:
        """FLOP/s at best.

        Args:
            precision: Of the Trainer, by its full name.
        """
        return {"32-true": self.single, "64-true": None}.get(precision, self.half)


# memory: nominal; vendors say GB and mean GiB of all but the H200; peaks are without sparsity, which doubles them on paper
MOST_GIB = 1e6  # more than any device has
DEVICES = {
    device.name: device
    for device in (
        Device("a100-40", 40 * GIB, 312e12, 19.5e12, "NVIDIA A100 data sheet"),
        Device("a100-80", 80 * GIB, 312e12, 19.5e12, "NVIDIA A100 data sheet"),
        Device("h100", 80 * GIB, 989e12, 67e12, "NVIDIA H100 data sheet, SXM (1979 with sparsity, halved)"),
        Device("h200", 141 * GB, 989e12, 67e12, "NVIDIA H200 data sheet, SXM (1979 with sparsity, halved)"),
        Device("l4", 24 * GIB, 121e12, 30.3e12, "NVIDIA L4 data sheet (242 with sparsity, halved)"),
        Device("t4", 16 * GIB, 65e12, 8.1e12, "NVIDIA T4 data sheet; float16, for it has no bfloat16"),
        Device("v100-32", 32 * GIB, 125e12, 15.7e12, "NVIDIA V100 data sheet, SXM2; float16, for it has no bfloat16"),
        Device("rtx3090", 24 * GIB, 71e12, 35.6e12, "NVIDIA GA102 white paper (with float32 sums)"),
        Device("rtx4090", 24 * GIB, 165.2e12, 82.6e12, "NVIDIA Ada white paper (with float32 sums)"),
    )
}
"""By name, without the machine that plans: see `device_named`."""


def device_named(name: str) -> Device:
    """A device of the table, or `cpu`: this machine.

    Args:
        name: Upper case and spaces do not matter.

    Raises:
        ConfigError: If there is no such device.
    """
    plain = name.lower().replace(" ", "").replace("_", "-")
    if plain == CPU:
        return Device(CPU, memory_of_this_machine(), None, None, "this machine's memory")
    if plain not in DEVICES:
        raise ConfigError(
            f"'{name}' is not a device that is known",
            where="--device",
            remedy=f"{nearest(plain, [*DEVICES, CPU])}; or any name with --memory GIB and --flops PEAK",
        )
    return DEVICES[plain]


def memory_of_this_machine() -> int:
    """Bytes of memory that this machine has; 0 if it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system has these names
        return 0
