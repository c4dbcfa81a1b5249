"""Vectors of texts from any objective that can give them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lmlab.backbones.single import SingleStackBackbone
from lmlab.data.batch import Feed
from lmlab.errors import ConfigError, DataError
from lmlab.nn.pooling import pool
from lmlab.objectives.base import Objective
from lmlab.objectives.contrastive import Contrastive
from lmlab.objectives.embedding import embed_rows, rows_of_texts


def text_vectors(objective: Objective, texts: Sequence[str]) -> Tensor:
    """One vector for each text: a contrastive model's own, else the mean of the states of its tokens, special ones included.

    Args:
        objective: Trained or not; its network is one encoder or one decoder. Of several tasks, the contrastive one, else the first.
        texts: Longer ones than the objective's examples are cut.

    Returns:
        (N, D) float32 of length 1.

    Raises:
        ConfigError: If it has no such network.
        DataError: If its vectors are not finite numbers.
    """
    vectors = _vectors(objective, texts)
    if not vectors.isfinite().all():
        why = "the network has diverged"
        raise DataError("the vectors are not finite numbers", where="embed", why=why, remedy="take an earlier checkpoint of the run")
    return vectors


def _vectors(objective: Objective, texts: Sequence[str]) -> Tensor:
    objective = next((product for product in objective.products if isinstance(product, Contrastive)), objective.products[0])
    if isinstance(objective, Contrastive):
        return objective.embed(texts)
    backbone, feed = getattr(objective, "backbone", None), objective.feed()
    if not isinstance(backbone, SingleStackBackbone) or not isinstance(feed, Feed):
        raise ConfigError(
            f"{type(objective).__name__} gives no vectors of texts",
            where="embed",
            why="it has no encoder or decoder that reads one text alone",
            remedy="train lmlab.objectives.contrastive.Contrastive, or a masked or causal language model",
        )

    def mean_states(batch: dict[str, Tensor]) -> Tensor:
        return pool(backbone(**batch), batch.get("attention_mask"), "mean")

    return embed_rows(objective, rows_of_texts(objective, texts, feed.length, feed.prefix, feed.suffix), mean_states)
