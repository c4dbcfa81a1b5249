"""What the parity tests share: hard random models of transformers, and a comparison of everything they compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.backbones.pretrained import Family, config_from_hugging_face, convert_state_dict
from lmlab.heads import LMHead, MLMHead

VOCAB_SIZE = 37
RTOL = 1e-4
ATOL = 2e-5  # float32 sums of some hundred terms of about 1 differ by this between orders of summation
REDRAW_STD = 0.3  # large enough that every bias and norm changes the loss, small enough that no softmax saturates

Side = Literal["left", "right"]


class Pair(NamedTuple):
    """The same model twice.

    Args:
        theirs: Of transformers, every parameter redrawn.
        backbone: Ours, with their weights.
        head: Ours, with their weights.
        family: Whose names they use.
    """

    theirs: Any
    backbone: Any
    head: Any
    family: Family


class Rows(NamedTuple):
    """Padded rows.

    Args:
        ids: (B, T) tokens, padding id at padding.
        mask: (B, T) bool.
        positions: (B, T) counted from the first real token.
        labels: (B, T), -100 at padding and at some real tokens.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor


@pytest.fixture
def make_pair() -> Callable[[Any, Family, nn.Module], Pair]:
    """Redraws a transformers model and builds ours from it."""

    def make(theirs: Any, family: Family) -> Pair:
        torch.manual_seed(7)
        theirs.eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.normal_(0, REDRAW_STD)
        config = config_from_hugging_face(theirs.config.to_dict())
        kind = {"bert": Encoder, "roberta": Encoder, "t5": EncoderDecoder}.get(family, Decoder)
        backbone = kind(config, VOCAB_SIZE, pad_id=theirs.config.pad_token_id)
        head = (MLMHead if kind is Encoder else LMHead)(config, VOCAB_SIZE, backbone.embedding)
        both = nn.ModuleDict({"backbone": backbone, "head": head}).eval()
        both.load_state_dict(convert_state_dict(family, theirs.state_dict(), config), strict=True)
        return Pair(theirs, backbone, head, family)

    return make


@pytest.fixture
def make_rows() -> Callable[[int, Side, int], Rows]:
    """Draws three rows of different lengths."""

    def make(length: int, side: Side, pad_id: int, seed: int = 3) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, VOCAB_SIZE, (3, length), generator=generator)
        places = torch.arange(length)
        lengths = torch.tensor([[length], [length - 3], [length // 2]])
        mask = places < lengths if side == "right" else places >= length - lengths
        labels = torch.randint(0, VOCAB_SIZE, ids.shape, generator=generator)
        labels = labels.masked_fill(~mask | (torch.rand(ids.shape, generator=generator) < 0.3), -100)
        return Rows(ids.masked_fill(~mask, pad_id), mask, (mask.long().cumsum(1) - 1).clamp(min=0), labels)

    return make


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Compares states, loss and the gradient of every parameter."""

    def compare(pair: Pair, theirs: dict[str, Tensor], ours: dict[str, Tensor], labels: Tensor) -> None:
        """`theirs` and `ours` hold tensors by name; `theirs` has their `loss`, `ours` the `logits` to compute it from."""
        for name in ours.keys() & theirs.keys():
            torch.testing.assert_close(ours[name], theirs[name], rtol=RTOL, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}")
        loss = nn.functional.cross_entropy(ours["logits"].flatten(0, 1), labels.flatten(), ignore_index=-100)
        torch.testing.assert_close(loss, theirs["loss"], rtol=RTOL, atol=0.0)
        loss.backward()
        theirs["loss"].backward()
        expected = {name: p.grad for name, p in pair.theirs.named_parameters()}
        assert all(grad is not None and grad.abs().max() > 0 for grad in expected.values())
        expected = convert_state_dict(pair.family, expected, pair.backbone.config)
        actual = {name: p.grad for name, p in nn.ModuleDict({"backbone": pair.backbone, "head": pair.head}).named_parameters()}
        assert actual.keys() == expected.keys()
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, expected[name], rtol=RTOL, atol=ATOL, msg=lambda m, n=name: f"gradient of {n}: {m}")

    return compare


@pytest.fixture(autouse=True)
def _transformers_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        yield
