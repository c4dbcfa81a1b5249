"""Losses that compare the vectors of a whole batch, in the memory of a small one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmlab.data.batch import Batch
from lmlab.data.order import hash64
from lmlab.losses import Losses
from lmlab.nn.seeding import reseed
from lmlab.objectives.base import Objective
from lmlab.objectives.passes import Outcome, Pass, Step


class Cached(NamedTuple):
    """What is kept between the two readings of a batch.

    Args:
        losses: Of the comparison.
        vectors: (B, V, D) gradient of the step's loss with respect to the vectors.
        parameters: The same for what `comparing` lists, in its order.
    """

    losses: Losses
    vectors: Tensor
    parameters: tuple[Tensor, ...]


class VectorObjective(Objective):
    """Compares vectors of the examples of a batch with each other.

    A leaf gives `vectors()` and `compare()`, `chunks()`, and may have further losses in `beside()`. Where a batch has more examples than a
    forward pass may hold, the gradient is found in two readings. The first makes all vectors, chunk by chunk and without gradients; the
    loss, and its gradient with respect to each vector, follow from them. The second makes the vectors of a chunk once more, under the same
    dropout, and differentiates their products with these gradients. What comes out is the gradient of the whole batch.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3.2 (GradCache).
    """

    @abstractmethod
    def vectors(self, batch: Batch) -> Tensor:
        """The vectors to compare, each from its own example alone.

        Args:
            batch: What the collator made, or a chunk of it.

        Returns:
            (B, V, D): V vectors for each example.
        """

    @abstractmethod
    def compare(self, vectors: Tensor, batch: Batch) -> Losses:
        """The loss of vectors; in training, those of all ranks are compared.

        Args:
            vectors: (B, V, D).
            batch: The whole batch they are of.
        """

    @abstractmethod
    def chunks(self, batch: Batch, size: int) -> list[Batch]:
        """Cuts a batch.

        Args:
            batch: What the collator made.
            size: Examples in a chunk.
        """

    def beside(self, batch: Batch) -> Losses:
        """Losses that do not compare, and so need no whole batch.

        Args:
            batch: What the collator made, or a chunk of it.
        """
        return Losses({}, {})

    def comparing(self) -> list[nn.Parameter]:
        """Parameters that `compare` reads, such as a temperature."""
        return []

    def losses(self, batch: Batch) -> Losses:
        """The loss of a batch in one reading."""
        compared = self.compare(self.vectors(batch), batch)
        other = self.beside(batch)  # after the vectors, as in the second reading: both draw from one stream of dropout
        return Losses({**compared.parts, **other.parts}, {**compared.monitors, **other.monitors})

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        """One reading if the batch fits into a forward pass, else a second one chunk by chunk."""
        chunks = self.chunks(batch, step.window.micro_size)
        if len(chunks) == 1:
            return super().passes(batch, step)
        seeds = [hash64(step.window.seed, number) for number in range(len(chunks))]
        vectors = []
        with torch.no_grad():
            for chunk, seed in zip(chunks, seeds, strict=True):
                reseed(seed)
                vectors.append(self(chunk, "vectors"))
        found: Cached = self({**batch, "vectors": torch.cat(vectors), "total": step.total}, "cached")
        first = 0
        passes = []
        for number, (chunk, seed) in enumerate(zip(chunks, seeds, strict=True)):
            share = found.vectors[first : first + len(vectors[number])]
            last = number == len(chunks) - 1
            carried = {**chunk, "gradient": share, "parameter_gradients": found.parameters if last else ()}
            passes.append(self._second(carried, seed, step, found.losses if last else None))
            first += len(vectors[number])
        return passes

    @torch.compiler.disable  # it differentiates, and what it is given is new in every step
    def cached(self, batch: Batch) -> Cached:
        """The comparison of vectors that are known, and its gradients.

        Args:
            batch: The whole one, with `vectors` (B, V, D) and `total`, which makes a number of losses.
        """
        with torch.enable_grad():
            vectors = batch["vectors"].detach().requires_grad_()
            losses = self.compare(vectors, batch)
            gradients = torch.autograd.grad(batch["total"](losses), [vectors, *self.comparing()])
        return Cached(losses, gradients[0], gradients[1:])

    def replayed(self, batch: Batch) -> Outcome:
        """The second reading of a chunk: a surrogate with the right gradient, and the losses beside it, which are not in it.

        Args:
            batch: A chunk, with `gradient` of its vectors and `parameter_gradients`.
        """
        surrogate = (self.vectors(batch) * batch["gradient"]).sum()
        for parameter, gradient in zip(self.comparing(), batch["parameter_gradients"], strict=False):
            surrogate = surrogate + (parameter * gradient).sum()
        return Outcome(surrogate, self.beside(batch))

    def _second(self, chunk: Batch, seed: int, step: Step, compared: Losses | None) -> Callable[[], Outcome]:
        def replay() -> Outcome:
            reseed(seed)
            surrogate, other = self(chunk, "replayed")
            loss = surrogate + step.total(other) if other.parts else surrogate
            if compared is None:
                return Outcome(loss, other)
            return Outcome(loss, Losses({**compared.parts, **other.parts}, {**compared.monitors, **other.monitors}))

        return replay
