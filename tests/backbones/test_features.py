"""Looking into a backbone: against the attention that torch computes, against loops, against the layers called one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmlab.backbones import BackboneConfig, Decoder, Encoder, EncoderDecoder, features
from lmlab.backbones.features import AttentionFeatures, attention_scores, noting, relation_scores, stacks_of
from lmlab.nn import varlen
from lmlab.nn.block import Block
from lmlab.nn.mask import Visibility

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums taken in another order
POSITIONS: dict[str, dict[str, Any]] = {
    "rope": {},
    "grouped": {"num_kv_heads": 2},
    "t5": {"position": "t5", "attention_scale": 1.0},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned", "head_size": 6},
    "post": {"norm_position": "post", "norm": "layernorm", "position": "learned"},
}


def config(**given: Any) -> BackboneConfig:
    return BackboneConfig(**{"hidden_size": 32, "num_layers": 3, "num_heads": 4, "init_std": 0.3} | given)


def rows(case: str) -> dict[str, torch.Tensor]:
    if case == "documents":
        return {"document_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 9, [0, 1, 1, 1, 2, 2, 2, 2, 2]])}
    if case == "padded":
        return {"attention_mask": torch.arange(9) < torch.tensor([[9], [6], [3]])}
    return {}


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@pytest.mark.parametrize("case", ["plain", "documents", "padded"])
@pytest.mark.parametrize("name", POSITIONS)
def test_the_noted_scores_give_the_output_of_the_attention(kind: type[Encoder | Decoder], case: str, name: str) -> None:
    """Softmax and values, written out, are what the fused kernel returned: so scores are scaled, turned and masked as there."""
    torch.manual_seed(0)
    backbone = kind(config(**POSITIONS[name]), 50, 0).eval()
    block = backbone.blocks[1]
    assert isinstance(block, Block)
    outputs: list[torch.Tensor] = []
    handle = block.attention.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad(), noting(backbone, attention={2}) as found:
        backbone(torch.randint(50, (3, 9)), **rows(case))
    handle.remove()
    noted = found.attention[2]
    assert set(found.attention) == {2} and found.embedding is None and not found.hidden
    scores = attention_scores(noted)
    assert scores.isfinite().all()
    if noted.allowed is not None:
        scores = scores.masked_fill(~noted.allowed, -torch.inf)
    value = noted.value.repeat_interleave(noted.query.shape[2] // noted.value.shape[2], dim=2)
    mixed = (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attention.o(mixed), outputs[0], **CLOSE)


def test_who_may_attend_whom_is_documents_padding_and_the_past() -> None:
    torch.manual_seed(0)
    for kind, case in ((Decoder, "documents"), (Encoder, "padded")):
        backbone = kind(config(), 50, 0)
        with noting(backbone, attention={1}) as found:
            backbone(torch.randint(50, (3, 9)), **rows(case))
        allowed = found.attention[1].allowed
        assert allowed is not None
        allowed = allowed.expand(3, 4, 9, 9)
        for b in range(3):
            for query in range(9):
                for key in range(9):
                    if kind is Decoder:
                        ids = rows(case)["document_ids"]
                        wanted = bool(ids[b, query] == ids[b, key]) and key <= query
                    else:
                        wanted = bool(rows(case)["attention_mask"][b, key])
                    assert bool(allowed[b, 0, query, key]) == wanted


@pytest.mark.parametrize("causal", [True, False])
def test_documents_that_a_kernel_attends_one_by_one_are_the_same_documents(causal: bool) -> None:
    """As on CUDA, where no mask is built for them."""
    ids = rows("documents")["document_ids"]
    visible = Visibility(causal=causal, segments=varlen.segments(ids))
    allowed, bias = features._rules(visible, *ids.shape, ids.device)
    same = ids[:, None, :, None] == ids[:, None, None, :]
    assert bias is None and allowed is not None and torch.equal(allowed, same.tril() if causal else same)


@pytest.mark.parametrize("name", ["rope", "post"])
def test_states_are_those_between_the_layers(name: str) -> None:
    torch.manual_seed(0)
    backbone = Encoder(config(**POSITIONS[name]), 50, 0).eval()
    ids = torch.randint(50, (2, 7))
    with noting(backbone, hidden={1, 3}, embedding=True) as found:
        out = backbone(ids)
    assert found.embedding is not None and set(found.hidden) == {1, 3}
    assert found.hidden[3] is out, "the last layer's states are those after the final norm"
    with noting(backbone, hidden={2}) as second:
        backbone(ids)
    read: list[torch.Tensor] = []
    handle = backbone.blocks[1].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    backbone(ids)
    handle.remove()
    assert torch.equal(read[0], found.hidden[1])
    plain = found.embedding if name == "post" else backbone.embedding(ids)  # positions are turned, not added
    assert torch.equal(found.embedding, plain) and not torch.equal(second.hidden[2], found.hidden[1])


def test_layers_are_counted_through_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    backbone = EncoderDecoder(config(num_layers=2), 50, 0).eval()
    assert [len(stack.blocks) for stack in stacks_of(backbone)] == [2, 2]
    source, target = torch.randint(50, (2, 7)), torch.randint(50, (2, 4))
    with noting(backbone, hidden={2, 3, 4}, attention={1, 4}) as found:
        out = backbone(source, target)
    assert torch.equal(found.hidden[2], backbone.encode(source)) and found.hidden[4] is out
    assert found.hidden[3].shape == (2, 4, 32)
    assert found.attention[1].allowed is None and found.attention[4].allowed is not None


def test_relations_by_loops_and_other_numbers_of_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 4, 6), (2, 5, 2, 6), (2, 5, 2, 6))
    query, key, value = (torch.randn(*shape, generator=generator) for shape in shapes)
    features = AttentionFeatures(query, key, value, None, None, 1.0)
    for vectors, found in zip((query, key, value), relation_scores(features, 3), strict=True):
        long = vectors.reshape(2, 5, -1)
        width = long.shape[-1] // 3
        assert found.shape == (2, 3, 5, 5)
        for b in range(2):
            for head in range(3):
                part = long[b, :, head * width : (head + 1) * width]
                for i in range(5):
                    for j in range(5):
                        wanted = sum(x * y for x, y in zip(part[i].tolist(), part[j].tolist(), strict=True)) / width**0.5
                        assert found[b, head, i, j].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("num_heads", [1, 4, 8])
def test_relations_do_not_depend_on_where_a_text_stands(num_heads: int) -> None:
    """Nor does anything else with rotary positions; eight heads are more than the four that are turned as a whole."""
    torch.manual_seed(0)
    backbone, ids = Encoder(config(), 50, 0), torch.randint(50, (2, 7))
    found = []
    for start in (0, 40):
        with torch.no_grad(), noting(backbone, attention={2}) as noted:
            backbone(ids, position_ids=start + torch.arange(7))
        found.append([attention_scores(noted.attention[2]), *relation_scores(noted.attention[2], num_heads)])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_hooks_are_gone_afterwards_also_after_an_error() -> None:
    backbone = Encoder(config(), 50, 0)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())

    with pytest.raises(RuntimeError, match="stop"), noting(backbone, {1, 3}, {1, 2, 3}, embedding=True):
        assert hooks() == 15
        raise RuntimeError("stop")
    assert hooks() == 0


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_gradients_flow_through_what_was_noted(checkpointing: Any) -> None:
    torch.manual_seed(0)
    backbone = Encoder(config(checkpointing=checkpointing), 50, 0).train()
    with noting(backbone, hidden={2}, attention={1}) as found:
        backbone(torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1)))
    (found.hidden[2].square().sum() + attention_scores(found.attention[1]).square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.blocks[0].attention.parameters())
    assert all(p.grad is None for p in backbone.blocks[2].parameters())
