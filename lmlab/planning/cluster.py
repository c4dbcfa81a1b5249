"""What a run is to be spread over, and how its batch is cut there."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.config import require
from lmlab.data.batch import Feed
from lmlab.data.module import CorpusModule
from lmlab.objectives.base import Objective
from lmlab.planning.devices import USABLE, Device

MOST_DEVICES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run is to be spread over.

    Args:
        device: Of one kind.
        devices: All of them; each has one rank.
        nodes: Machines they are in.
        utilisation: Share of the peak that is reached, stated and not measured; None if nothing is stated.
        replicas: Groups of HSDP, each with one copy of the model; None for one a node.
        tensor_parallel: Devices that compute each layer together, on the same examples.
    """

    device: Device
    devices: int = 1
    nodes: int = 1
    utilisation: float | None = None
    replicas: int | None = None
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        """Refuses what cannot be divided."""
        rule = f"a run needs one, and nobody has {MOST_DEVICES} of them"
        require(1 <= self.devices < MOST_DEVICES, self, "devices", rule, "set --devices to a number of devices")
        rule = f"{self.devices} devices cannot be divided evenly among {self.nodes} nodes; --devices counts all of them"
        require(self.nodes >= 1 and self.devices % self.nodes == 0, self, "nodes", rule, "set --nodes to a divisor of --devices")
        rule = f"{self.devices} devices cannot be divided evenly into {self.replicas} groups"
        fits = self.replicas is None or (self.replicas >= 1 and self.devices % self.replicas == 0)
        require(fits, self, "replicas", rule, "set trainer.strategy.replicas to a divisor of --devices")
        rule = f"{self.devices} devices cannot be divided evenly into groups of {self.tensor_parallel} that compute layers together"
        require(self.devices % self.tensor_parallel == 0, self, "tensor_parallel", rule, "set --devices to a multiple of it")
        rule = "it is the share of the device's peak that a run reaches"
        fits = self.utilisation is None or 0 < self.utilisation <= 1
        require(fits, self, "utilisation", rule, "--utilisation 0.4 is a good one on GPUs")

    @property
    def data_ranks(self) -> int:
        """Ranks that read examples of their own."""
        return self.devices // self.tensor_parallel

    @property
    def per_node(self) -> int:
        """Devices in a machine."""
        return self.devices // self.nodes

    @property
    def per_group(self) -> int:
        """Devices that share one copy under HSDP."""
        return self.devices // (self.replicas or self.nodes)

    @property
    def usable(self) -> int:
        """Bytes a rank may take; ranks on the CPUs of a machine share its memory."""
        return int(USABLE * self.device.memory) // (self.per_node if self.device.is_cpu else 1)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How the global batch is cut.

    Args:
        global_size: Examples of a step, over all ranks.
        micro_size: Examples of a forward pass on one rank.
        length: Tokens of an example; of several tasks, the longest.
    """

    global_size: int
    micro_size: int
    length: int


def feeds_of(objective: Objective) -> list[Feed]:
    """What each task of an objective is fed; the only one, where there is one.

    Args:
        objective: Built or not.
    """
    feeds = objective.feed()
    return [feeds] if isinstance(feeds, Feed) else list(feeds.values())


def cut_batches(objective: Objective, data: CorpusModule, cluster: Cluster) -> tuple[Batches, list[str]]:
    """The cut of the global batch, and what is to be said about it.

    What a run would refuse is said, and planned with the nearest batch that it would take: a plan for many devices is often made from
    settings for one.

    Args:
        objective: For the length of its examples.
        data: For its batch sizes.
        cluster: What the batch is divided among.
    """
    size, micro = data.global_batch_size, data.micro_batch_size
    if micro is None:
        micro = max(1, size // cluster.data_ranks)
    length, per_pass = max(feed.length for feed in feeds_of(objective)), micro * cluster.data_ranks
    if size % per_pass == 0:
        return Batches(global_size=size, micro_size=micro, length=length), []
    fitting = max(1, round(size / per_pass)) * per_pass
    note = (
        f"a global batch of {size} cannot be cut into micro-batches of {micro} on {cluster.data_ranks} devices, which `lmlab fit` refuses: "
        f"this plan is for --data.global_batch_size {fitting}"
    )
    return Batches(global_size=fitting, micro_size=micro, length=length), [note]
