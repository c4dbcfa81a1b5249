import copy
import dataclasses
import io
import json
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from lmlab.config import from_dict, to_plain
from lmlab.errors import ConfigError
from lmlab.optim import OptimizerConfig
from lmlab.optim.optimizer import DEFAULTS

NAMES = [*DEFAULTS, "torch.optim.NAdam", "torch.optim.Adagrad"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(5, 16), tanh=nn.Tanh(), norm=nn.LayerNorm(16), fc2=nn.Linear(16, 3)))


def config_for(name):
    return OptimizerConfig(name=name, lr=0.01 if name != "lion" else 0.003)


def train(model, optimizer, num_steps, start=0):
    losses = []
    for step in range(start, start + num_steps):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(32, 5, generator=generator)
        loss = (model(inputs) - inputs[:, :3].square()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_learns_a_regression(name):
    model = network()
    losses = train(model, config_for(name).build(model.named_parameters()), 60)
    # the target's variance is 2; predicting its mean is what a dead optimizer with a live bias would reach
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


@pytest.mark.parametrize("name", NAMES)
def test_resumes_bit_for_bit_from_a_file(name):
    straight = network()
    train(straight, config_for(name).build(straight.named_parameters()), 8)

    first = network()
    optimizer = config_for(name).build(first.named_parameters())
    train(first, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = network(seed=1)
    second.load_state_dict(saved["model"])
    optimizer = config_for(name).build(second.named_parameters())
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, 3, start=5)
    assert equal(straight, second)


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic(name):
    one, two = network(), network()
    for model in (one, two):
        train(model, config_for(name).build(model.named_parameters()), 4)
    assert equal(one, two)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (OptimizerConfig(), lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.95), foreach=False)),
        (OptimizerConfig(name="sgd"), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False)),
        (OptimizerConfig(name="adafactor"), lambda p: torch.optim.Adafactor(p, lr=1e-2, foreach=False)),
        (OptimizerConfig(name="torch.optim.NAdam", lr=0.02, betas=(0.8, 0.9)), lambda p: torch.optim.NAdam(p, lr=0.02, betas=(0.8, 0.9))),
    ],
)
def test_equals_the_class_called_by_hand(config, reference):
    decay = DEFAULTS.get(config.name, {}).get("weight_decay", 0.0)
    ours, theirs = network(), network()
    train(ours, config.build(ours.named_parameters()), 6)
    groups = [
        {"params": [theirs.fc1.weight, theirs.fc2.weight], "weight_decay": decay},
        {"params": [theirs.fc1.bias, theirs.fc2.bias, *theirs.norm.parameters()], "weight_decay": 0.0},
    ]
    train(theirs, reference(groups), 6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        # fused kernels round differently
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_lion_follows_its_paper():
    # Chen et al. 2023, algorithm 2
    weight = nn.Parameter(torch.tensor([[0.5, -1.0, 2.0]]))
    optimizer = OptimizerConfig(name="lion", lr=0.01, weight_decay=0.1).build([("fc.weight", weight)])
    expected, momentum = weight.detach().clone(), torch.zeros(1, 3)
    for step in range(5):
        gradient = torch.randn(1, 3, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        expected -= 0.01 * ((0.9 * momentum + 0.1 * gradient).sign() + 0.1 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(weight.detach(), expected)


def test_adafactor_steps_relative_to_the_weights_size_and_under_a_falling_cap():
    # the first update of Adafactor has an RMS of 1 before scaling, whatever the gradient
    for size, lr, expected in ((3.0, 0.01, 0.03), (3.0, 5.0, 3.0), (1e-6, 0.01, 1e-5)):
        weight = nn.Parameter(torch.full((4, 4), size))
        optimizer = OptimizerConfig(name="adafactor", lr=lr).build([("fc.weight", weight)])
        weight.grad = torch.full((4, 4), 7.0)
        optimizer.step()
        torch.testing.assert_close(size - weight.detach(), torch.full((4, 4), expected), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("implementation", ["fused", "foreach", "for_loop"])
def test_implementations_agree(name, implementation):
    ours, theirs = network(), network()
    config = dataclasses.replace(config_for(name), implementation=implementation)
    optimizer = config.build(ours.named_parameters())
    train(ours, optimizer, 5)
    train(theirs, config_for(name).build(theirs.named_parameters()), 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    flags = [(g.get("fused"), g.get("foreach")) for g in optimizer.param_groups if g.get("update") != "muon"]
    assert set(flags) == {(implementation == "fused", implementation == "foreach")}


def test_auto_is_fused_on_a_cpu_and_leaves_gradient_clipping_to_the_trainer():
    from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling

    optimizer = OptimizerConfig().build(network().named_parameters())
    assert all(group["fused"] for group in optimizer.param_groups)
    assert not _optimizer_handles_unscaling(optimizer)
    on_meta = OptimizerConfig().build(network().to("meta").named_parameters())
    assert not any(group["fused"] for group in on_meta.param_groups)


@pytest.mark.parametrize(("name", "implementation"), [("adafactor", "fused"), ("lion", "foreach"), ("torch.optim.NAdam", "fused")])
def test_an_implementation_that_is_not_there_is_refused(name, implementation):
    with pytest.raises(ConfigError, match=f"no {implementation}"):
        OptimizerConfig(name=name, lr=0.1, implementation=implementation).build(network().named_parameters())


@pytest.mark.parametrize(
    "path",
    [
        "antigravity.AdamW",
        "os.system",
        "torch.optim.antigravity.X",
        "lmlab_evil.Optimizer",
        "torch.nn.Linear",
        "torch.optim.Optimizer",
        "torch.optim.lr_scheduler.LambdaLR",
        "torch.optim.LBFGS",
        "torch.optim.SparseAdam",
        "torch.optim.adamw.AdamW",
        "AdamW",
        "",
    ],
)
def test_other_class_paths_are_refused_without_an_import(path, tmp_path, monkeypatch):
    (tmp_path / "lmlab_evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="no optimizer"):
        OptimizerConfig(name=path, lr=0.1)
    assert set(sys.modules) == before


@pytest.mark.parametrize(("wrong", "right"), [("adamW", "adamw"), ("torch.optim.Adagrd", "torch.optim.Adagrad"), ("adafctor", "adafactor")])
def test_a_wrong_name_is_answered_with_the_right_one(wrong, right):
    with pytest.raises(ConfigError) as caught:
        OptimizerConfig(name=wrong, lr=0.1)
    assert f"'{right}'" in caught.value.remedy


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": 0.0},
        {"lr": -1e-3},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.0},
        {"name": "sgd", "betas": (0.0, 0.0)},
        {"adamw_lr": 0.1},
        {"name": "sgd", "betas": (0.9, 0.99)},
        {"name": "sgd", "momentum": 1.0},
        {"name": "adafactor", "eps": 1e-8},
        {"name": "lion", "momentum": 0.9},
        {"name": "torch.optim.Adam"},
        {"name": "torch.optim.Adam", "lr": 0.1, "momentum": 0.9},
        {"decay": ("matrices",)},
        {"kinds": {"x": "matrices"}},
        {"kinds": {"(": "matrix"}},
        {"lr_scale": {"x": 0.0}},
        {"implementation": "fastest"},
        {"options": {"amsgradd": True}},
        {"options": {"lr": 0.1}},
        {"name": "lion", "options": {"use_triton": True}},
    ],
)
def test_impossible_settings_and_settings_without_effect_are_refused(setting):
    with pytest.raises(ConfigError) as caught:
        OptimizerConfig(**setting)
    assert caught.value.remedy


def test_an_option_reaches_the_class_and_a_bad_one_is_explained():
    named = list(network().named_parameters())
    assert all(g["amsgrad"] for g in OptimizerConfig(options={"amsgrad": True}).build(named).param_groups)
    with pytest.raises(ConfigError, match="beta2_decay"):
        OptimizerConfig(name="adafactor", options={"beta2_decay": 3.0}).build(named)


def test_config_is_a_value():
    config = OptimizerConfig(name="muon", betas=(0.8, 0.9), decay=("matrix",), kinds={"x": "head"}, options={"ns_steps": 3})
    assert from_dict(OptimizerConfig, json.loads(json.dumps(to_plain(config)))) == config
    assert config.settings() == {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "betas": (0.8, 0.9),
        "eps": 1e-8,
        "momentum": 0.95,
        "ns_steps": 3,
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_frozen_parameter_rests_until_it_has_a_gradient(name):
    model = network()
    model.fc1.requires_grad_(False)
    before = copy.deepcopy(model.fc1.state_dict())
    optimizer = config_for(name).build(model.named_parameters())
    train(model, optimizer, 2)
    assert all(torch.equal(before[key], value) for key, value in model.fc1.state_dict().items())
    model.fc1.requires_grad_(True)
    train(model, optimizer, 1, start=2)
    assert not torch.equal(before["weight"], model.fc1.weight)
