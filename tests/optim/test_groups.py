import pytest
import torch
from torch import nn

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.errors import ConfigError
from lmlab.optim import OptimizerConfig, kind_of
from lmlab.optim.groups import KINDS, PATTERNS, list_entries

NAMES = {
    # lmlab, GPT-2, Llama, BERT, T5, torch's recurrent networks
    "backbone.blocks.0.attention.q.weight": "matrix",
    "backbone.blocks.0.attention.q.bias": "bias",
    "backbone.blocks.0.feedforward.gate.weight": "matrix",
    "backbone.blocks.0.attention_norm.weight": "norm",
    "backbone.embedding.weight": "embedding",
    "backbone.stack.positions.weight": "position",
    "backbone.stack.segments.weight": "embedding",
    "backbone.stack.relative_bias.table.weight": "bias",
    "backbone.embedding_norm.weight": "norm",
    "head.transform.norm.bias": "bias",
    "head.output.weight": "head",
    "heads.mlm.output.weight": "head",
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "position",
    "transformer.h.0.ln_1.weight": "norm",
    "transformer.ln_f.weight": "norm",
    "transformer.h.0.attn.c_attn.weight": "matrix",
    "lm_head.weight": "head",
    "model.embed_tokens.weight": "embedding",
    "model.layers.3.input_layernorm.weight": "norm",
    "model.layers.3.self_attn.q_norm.weight": "norm",
    "model.layers.3.mlp.down_proj.weight": "matrix",
    "bert.embeddings.LayerNorm.weight": "norm",
    "bert.embeddings.position_embeddings.weight": "position",
    "bert.embeddings.token_type_embeddings.weight": "embedding",
    "cls.predictions.transform.dense.weight": "head",
    "classifier.weight": "head",
    "shared.weight": "embedding",
    "shared.attention.q.weight": "matrix",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "bias",
    "decoder.block.0.layer.1.EncDecAttention.v.weight": "matrix",
    "lstm.weight_hh_l0": "matrix",
    "lstm.bias_hh_l0_reverse": "bias",
    "temperature": "vector",
    "blocks.1.adapter.scale": "vector",
    "blocks.1.attention.q.lora_A.weight": "matrix",
    "prompt.weight": "embedding",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_fsdp_wrapped_module.net."])
def test_kind_is_read_from_the_name(prefix, name, kind):
    assert kind_of(prefix + name) == kind


@pytest.mark.parametrize("position", ["rope", "learned", "t5", "alibi"])
@pytest.mark.parametrize("backbone", [Encoder, Decoder, EncoderDecoder])
def test_names_of_the_backbones_agree_with_shapes_and_module_types(backbone, position):
    segments = 0 if backbone is EncoderDecoder else 2
    config = BackboneConfig(
        position=position, num_segments=segments, hidden_size=16, num_layers=1, num_heads=2, embedding_size=8, max_length=8
    )
    module = backbone(config, vocab_size=11, pad_id=0)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in module.named_parameters():
        kind = kind_of(f"backbone.{name}")
        assert (kind == "matrix") == (parameter.ndim == 2 and id(parameter) not in tables), name
        assert kind != "head"


def test_overrides_come_first():
    assert kind_of("blocks.0.mixer.weight", {"mixer": "head"}) == "head"
    assert kind_of("blocks.0.norm.weight", {"mixer": "head", r"^blocks\.0\.norm": "matrix"}) == "matrix"
    assert set(PATTERNS) == set(KINDS)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.position = nn.Embedding(5, 6)
        self.blocks = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(6, 6), "norm": nn.LayerNorm(6)}) for _ in range(2))
        self.temperature = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embedding.weight


def names_of(model, optimizer):
    names = {id(p): n for n, p in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lion", "sgd", "torch.optim.NAdam"])
def test_groups_are_disjoint_and_complete(name):
    model = Model()
    groups = names_of(model, OptimizerConfig(name=name, lr=0.1).build(model.named_parameters(remove_duplicate=False)))
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert set().union(*groups.values()) == {n for n, _ in model.named_parameters()}


def test_decay_by_name_even_when_shapes_are_gone():
    model = Model()
    for parameter in model.parameters():
        parameter.data = parameter.data.flatten()
    optimizer = OptimizerConfig(weight_decay=0.3).build(model.named_parameters())
    decay = {"embedding.weight", "position.weight", "blocks.0.fc.weight", "blocks.1.fc.weight"}
    groups = names_of(model, optimizer)
    assert groups["decay"] == decay
    assert groups["no_decay"] == {n for n, _ in model.named_parameters()} - decay
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {"decay": 0.3, "no_decay": 0.0}


def test_decay_is_configurable():
    model = Model()
    groups = names_of(model, OptimizerConfig(decay=("matrix",), kinds={"position": "norm"}).build(model.named_parameters()))
    assert groups["decay"] == {"blocks.0.fc.weight", "blocks.1.fc.weight"}


def test_muon_takes_hidden_matrices_only():
    model = Model()
    groups = names_of(model, OptimizerConfig(name="muon").build(model.named_parameters()))
    assert groups["muon_decay"] == {"blocks.0.fc.weight", "blocks.1.fc.weight"}
    assert groups["adamw_decay"] == {"embedding.weight", "position.weight"}
    assert "temperature" in groups["adamw_no_decay"]
    assert len(groups) == 3


def test_a_tied_parameter_has_the_strongest_of_its_kinds():
    weight = nn.Parameter(torch.ones(2, 2))
    (entry,) = list_entries([("body.weight", weight), ("head.weight", weight), ("embedding.weight", weight)])
    assert (entry.name, entry.kind) == ("body.weight", "embedding")


def test_learning_rate_scales():
    model = Model()
    config = OptimizerConfig(lr=0.01, lr_scale={r"blocks\.0": 0.25, "blocks": 0.5})
    optimizer = config.build(model.named_parameters())
    rates = {name: g["lr"] for g in optimizer.param_groups for name in names_of(model, optimizer)[g["name"]]}
    assert rates["blocks.0.fc.weight"] == 0.0025 and rates["blocks.1.norm.bias"] == 0.005 and rates["embedding.weight"] == 0.01
    assert all(g["initial_lr"] == g["lr"] for g in optimizer.param_groups)
    assert len({g["name"] for g in optimizer.param_groups}) == len(optimizer.param_groups)


@pytest.mark.parametrize("setting", [{"lr_scale": {"layers": 0.5}}, {"kinds": {"experts": "vector"}}])
def test_a_pattern_without_effect_is_refused(setting):
    with pytest.raises(ConfigError, match="matches no parameter") as caught:
        OptimizerConfig(**setting).build(Model().named_parameters())
    assert "blocks.0.fc.weight" in caught.value.remedy


def test_muon_refuses_a_vector_that_is_named_like_a_matrix_and_says_what_to_do():
    named = [("blocks.0.mix", nn.Parameter(torch.ones(3)))]
    with pytest.raises(ConfigError, match=r"blocks\.0\.mix") as caught:
        OptimizerConfig(name="muon").build(named)
    assert "blocks.0.mix: vector" in caught.value.remedy
    assert OptimizerConfig(name="muon", kinds={"mix": "vector"}).build(named).param_groups[0]["update"] == "adamw"


def test_stacks_of_matrices_go_to_adamw():
    named = [("experts.fc", nn.Parameter(torch.ones(2, 3, 3))), ("fc.weight", nn.Parameter(torch.ones(3, 3)))]
    optimizer = OptimizerConfig(name="muon").build(named)
    assert [(g["update"], g["params"][0].ndim) for g in optimizer.param_groups] == [("muon", 2), ("adamw", 3)]


def test_nothing_to_optimise_is_refused():
    with pytest.raises(ConfigError, match="nothing to optimise"):
        OptimizerConfig().build([])
    with pytest.raises(ConfigError, match="none trainable"):
        OptimizerConfig().build((n, p.requires_grad_(False)) for n, p in Model().named_parameters())
