"""What holds for every backbone: packing, causality, padding, recomputation, building without memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.errors import ConfigError

VOCAB_SIZE = 31
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32, another order of summation, states of about 1
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "init_std": 0.3}
POSITIONS = {
    "rope": {"position": "rope", "num_kv_heads": 2},
    "learned": {"position": "learned", "norm": "layernorm", "norm_position": "post", "max_length": 16},
    "sinusoidal": {"position": "sinusoidal", "embedding_size": 12},
    "t5": {"position": "t5", "relative_buckets": 8, "relative_max_distance": 9},
    "alibi": {"position": "alibi"},
    "none": {"position": "none", "final_norm": "none"},
}
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(params=POSITIONS)
def config(request) -> BackboneConfig:
    """Each kind of position."""
    torch.manual_seed(0)
    return BackboneConfig(**SIZES, **POSITIONS[request.param])


@pytest.fixture
def ids() -> Tensor:
    """(2, 9) tokens, none of them padding."""
    return torch.randint(1, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(1))


def _pieces(row: int, documents: Tensor = DOCUMENTS) -> list[slice]:
    ends = [i for i in range(1, documents.shape[1]) if documents[row, i] != documents[row, i - 1]]
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, documents.shape[1]], strict=True)]


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@torch.no_grad()
def test_packed_documents_are_read_as_if_alone(kind, config, ids) -> None:
    """Each document of a packed row equals that document in a row of its own, positions included."""
    backbone = kind(config, VOCAB_SIZE, pad_id=0)
    packed = backbone(ids, document_ids=DOCUMENTS)
    for row in range(2):
        for piece in _pieces(row):
            torch.testing.assert_close(packed[row : row + 1, piece], backbone(ids[row : row + 1, piece]), **TOLERANCE)


@torch.no_grad()
def test_packed_pairs_are_read_as_if_alone(config, ids) -> None:
    """A target document sees its own source document only, though both sides are packed differently."""
    backbone = EncoderDecoder(config, VOCAB_SIZE, pad_id=0)
    target = ids.flip(1)[:, :7]
    target_documents = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 1]])
    packed = backbone(ids, target, document_ids=DOCUMENTS, decoder_document_ids=target_documents)
    for row in range(2):
        for source_piece, piece in zip(_pieces(row), _pieces(row, target_documents), strict=True):
            alone = backbone(ids[row : row + 1, source_piece], target[row : row + 1, piece])
            torch.testing.assert_close(packed[row : row + 1, piece], alone, **TOLERANCE)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@torch.no_grad()
def test_padding_changes_nothing(kind, config, ids) -> None:
    """A row padded on the right is the row alone."""
    backbone = kind(config, VOCAB_SIZE, pad_id=0)
    padded = torch.cat((ids, torch.zeros(2, 3, dtype=torch.long)), dim=1)
    mask = torch.arange(12).expand(2, -1) < 9
    torch.testing.assert_close(backbone(padded, attention_mask=mask)[:, :9], backbone(ids), **TOLERANCE)


def test_gradient_flow(config, ids) -> None:
    """Causal: token 4 depends on tokens 0..4; bidirectional: on all; every weight is used."""
    for kind in (Decoder, Encoder):
        backbone = kind(config, VOCAB_SIZE, pad_id=0)
        vectors = backbone.embedding(ids).detach().requires_grad_()
        states = backbone(None, inputs_embeds=vectors)
        (reach,) = torch.autograd.grad(states[0, 4].pow(2).sum(), vectors, retain_graph=True)
        seen = reach.abs().sum(-1) > 0
        assert seen.tolist() == [[kind is Encoder or t <= 4 for t in range(9)], [False] * 9]
        backbone(ids).pow(2).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.parameters())


@torch.no_grad()
def test_a_mask_for_each_query(ids) -> None:
    """An encoder with a triangular mask is a decoder, so prefix and permutation language models need no backbone of their own."""
    config = BackboneConfig(**SIZES)
    encoder, decoder = Encoder(config, VOCAB_SIZE, pad_id=0), Decoder(config, VOCAB_SIZE, pad_id=0)
    decoder.load_state_dict(encoder.state_dict())
    triangle = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    torch.testing.assert_close(encoder(ids, attention_mask=triangle), decoder(ids), **TOLERANCE)


@pytest.mark.parametrize("keys", [{}, {"document_ids": DOCUMENTS}])
def test_recomputation_is_equal(config, ids, keys) -> None:
    """Checkpointing changes neither states nor gradients, dropout included."""
    plain = Decoder(replace(config, dropout=0.2), VOCAB_SIZE, pad_id=0)
    lean = Decoder(replace(config, dropout=0.2, checkpointing="blocks"), VOCAB_SIZE, pad_id=0)
    lean.load_state_dict(plain.state_dict())
    for backbone, times in ((plain, 1), (lean, 2)):
        calls = []
        backbone.blocks[0].attention.q.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        torch.manual_seed(3)
        backbone(ids, **keys).pow(2).sum().backward()
        assert len(calls) == times
    for (name, ours), (_, theirs) in zip(lean.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.0, atol=0.0, msg=name)


@pytest.mark.parametrize("kind", [Encoder, Decoder, EncoderDecoder])
def test_built_on_meta_then_drawn(kind, config) -> None:
    """No parameter is missed: from the same seed, the same weights as from building directly, up to their order."""
    with torch.device("meta"):
        backbone = kind(config, VOCAB_SIZE, pad_id=0)
    backbone.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(torch.nan)
    backbone.reset_parameters()
    direct = kind(config, VOCAB_SIZE, pad_id=0)
    for (name, drawn), (_, built) in zip(backbone.named_parameters(), direct.named_parameters(), strict=True):
        assert drawn.isfinite().all(), name
        assert drawn.std().item() == pytest.approx(built.std().item(), rel=0.4, abs=1e-8), name
    assert not list(backbone.buffers()) and all(p.dim() > 0 for p in backbone.parameters())


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_bfloat16(kind, config, ids) -> None:
    """Autocast and pure bfloat16 run, with and without masks, and stay near float32."""
    backbone = kind(replace(config, init_std=0.05), VOCAB_SIZE, pad_id=0)
    half = copy.deepcopy(backbone).to(torch.bfloat16)
    for keys in ({}, {"document_ids": DOCUMENTS}, {"attention_mask": DOCUMENTS < 2}):
        expected = backbone(ids, **keys)
        with torch.autocast("cpu", torch.bfloat16):
            states = backbone(ids, **keys)
        states.float().sum().backward()
        real = keys.get("attention_mask", torch.ones_like(ids, dtype=torch.bool))
        for other in (states, half(ids, **keys)):
            assert (other.float() - expected)[real].norm() < 0.05 * expected[real].norm()  # eight bits of mantissa, two layers


@torch.no_grad()
def test_inputs_embeds_replace_the_lookup(config, ids) -> None:
    """Vectors in place of ids: what embedding-space attacks and soft prompts use."""
    backbone = Encoder(config, VOCAB_SIZE, pad_id=0)
    torch.testing.assert_close(backbone(None, inputs_embeds=backbone.embedding(ids)), backbone(ids))


@torch.no_grad()
def test_segments(ids) -> None:
    """No segment ids means segment 0; two segments differ."""
    backbone = Encoder(BackboneConfig(**SIZES, num_segments=2), VOCAB_SIZE, pad_id=0)
    torch.testing.assert_close(backbone(ids, token_type_ids=torch.zeros_like(ids)), backbone(ids))
    assert not torch.allclose(backbone(ids, token_type_ids=torch.ones_like(ids)), backbone(ids))


def test_num_parameters() -> None:
    """Written out for Llama's shape: 4 D^2 and 3 D F a layer, two norms, a last one."""
    backbone = Decoder(BackboneConfig(hidden_size=64, num_layers=3, feedforward_size=80), 50, pad_id=0)
    layers = 3 * (4 * 64 * 64 + 3 * 64 * 80 + 2 * 64) + 64
    assert backbone.num_parameters("without") == layers
    assert backbone.num_parameters() == layers + 50 * 64


def test_blocks_are_all_layers() -> None:
    """What a strategy shards, in order."""
    backbone = EncoderDecoder(BackboneConfig(num_layers=2, num_decoder_layers=3), VOCAB_SIZE, pad_id=0)
    assert list(backbone.blocks) == [*backbone.encoder.blocks, *backbone.decoder.blocks]
    assert len(Decoder(BackboneConfig(num_layers=2), VOCAB_SIZE, pad_id=0).blocks) == 2


def test_refusals(ids) -> None:
    """Calls that cannot be meant."""
    config = BackboneConfig(**SIZES, position="learned", max_length=8)
    with pytest.raises(ConfigError, match="longer than the 8 learned"):
        Encoder(config, VOCAB_SIZE, pad_id=0)(ids)
    with pytest.raises(ConfigError, match="token_type_ids"):
        Decoder(BackboneConfig(**SIZES), VOCAB_SIZE, pad_id=0)(ids, token_type_ids=ids)
    with pytest.raises(ConfigError, match="without tokens"):
        Decoder(config, VOCAB_SIZE, pad_id=0)(None)
    both = EncoderDecoder(BackboneConfig(**SIZES), VOCAB_SIZE, pad_id=0)
    with pytest.raises(ConfigError, match="decoder_document_ids"):
        both(ids, ids, document_ids=DOCUMENTS)
    with pytest.raises(ConfigError, match="two rows"):
        both.flops(1, 2)
    with pytest.raises(ConfigError, match="Encoder has no decoder"):
        Encoder(config, VOCAB_SIZE, pad_id=0).flops(1, 2, 3)
