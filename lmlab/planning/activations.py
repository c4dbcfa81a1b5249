"""What a forward pass keeps for the backward pass, found by a pass of tensors without content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from lmlab import heads
from lmlab.data.batch import IGNORE_INDEX, Batch
from lmlab.nn import explicit
from lmlab.planning.weights import MIXED, weight_dtype

Kind = Literal["cpu", "gpu"]


class Activations(NamedTuple):
    """Tensors that autograd keeps.

    Args:
        total: Bytes of all, each storage once, parameters apart.
        largest: Bytes of the largest.
        num_tensors: How many storages.
    """

    total: int
    largest: int
    num_tensors: int


class SavedTensors:
    """Counts what autograd saves while it is entered: distinct storages that are not parameters.

    Args:
        module: Its parameters do not count.
    """

    def __init__(self, module: nn.Module) -> None:
        self._own = {_storage(p) for p in module.parameters()}
        self._sizes: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no storage is freed and its place taken by another while it is counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts inside a `with`."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield

    @property
    def found(self) -> Activations:
        """What was saved so far."""
        sizes = self._sizes.values()
        return Activations(sum(sizes), max(sizes, default=0), len(sizes))

    def _pack(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self._own and key not in self._sizes:
            self._sizes[key] = tensor.untyped_storage().nbytes()
            self._kept.append(tensor)
        return tensor


def trace_activations(
    build: Callable[[], nn.Module], batch: Batch, precision: str, kind: Kind, run: Callable[[Any, Batch], object]
) -> Activations:
    """Bytes saved by a forward pass in training, without computing or allocating anything.

    The module is built, and called, on tensors that have a shape and a dtype and no content, so it takes the very path a real pass would
    take on a CPU; for GPUs the two places where lmlab's CPU path differs (cross-entropy in chunks, attention spelled out in half
    precision) are led the other way. What the kernels of a GPU save beyond that was not measured.

    Args:
        build: Makes the module with its network; called where tensors have no content.
        batch: A real one; only shapes are read.
        precision: Of the Trainer.
        kind: What the pass would run on.
        run: Calls the module on the batch; whatever it returns is not looked at.

    Raises:
        Exception: Whatever the module raises if its path depends on the content of tensors.
    """
    dtype = weight_dtype(precision)
    with ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_WithoutContent(kind))
        stack.enter_context(_paths(kind))
        stack.enter_context(default_dtype(dtype))
        module = build()
        module.train()
        saved = SavedTensors(module)
        stack.enter_context(torch.autocast("cpu", MIXED.get(precision), enabled=precision in MIXED))
        stack.enter_context(saved.counting())
        result = run(module, _emptied(batch, fake))
        del result
        return saved.found


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Floating-point tensors made inside a `with` are of this dtype, as Lightning's precision plugin has it.

    Args:
        dtype: Of the weights.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _WithoutContent(TorchFunctionMode):
    """Answers what only content could tell: checks find nothing wrong, and a GPU's attention kernel drops weights without keeping them."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__:
            return False
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and self.kind == "gpu":
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@contextmanager
def _paths(kind: Kind) -> Iterator[None]:
    """Leads a pass on a GPU past what is made for CPUs, which are told by the device of tensors."""
    if kind == "cpu":
        yield
        return
    chosen, chunked = explicit.preferable, heads.linear_cross_entropy
    explicit.preferable = lambda query, key: False
    heads.linear_cross_entropy = _whole_cross_entropy
    try:
        yield
    finally:
        explicit.preferable, heads.linear_cross_entropy = chosen, chunked


def _whole_cross_entropy(vectors: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """As `VocabularyHead.nats` does it where it is not on a CPU: with all scores at once."""
    return F.cross_entropy(F.linear(vectors, weight, bias).float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")


def _emptied(value: Any, fake: FakeTensorMode) -> Any:
    if isinstance(value, Tensor):
        return fake.from_tensor(value)
    return {key: _emptied(one, fake) for key, one in value.items()} if isinstance(value, dict) else value


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
