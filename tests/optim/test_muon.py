import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch import nn

from lmlab.errors import ConfigError
from lmlab.optim import MuonWithAdamW, OptimizerConfig, set_learning_rate


class Model(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(7, 6)
        self.fc1 = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.fc2 = nn.Linear(10, 6, bias=False)
        self.head = nn.Linear(6, 7)

    def forward(self, ids):
        return self.head(self.fc2(self.norm(self.fc1(self.embedding(ids))).relu()))


def step(model, *optimizers, seed):
    ids = torch.randint(7, (16,), generator=torch.Generator().manual_seed(seed))
    loss = nn.functional.cross_entropy(model(ids), (3 * ids + 1) % 7)
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def by_hand(model, lr, adamw_lr, adjust):
    named = dict(model.named_parameters())
    muon = torch.optim.Muon([named.pop("fc1.weight"), named.pop("fc2.weight")], lr=lr, weight_decay=0.1, momentum=0.9, adjust_lr_fn=adjust)
    decayed = [named.pop("embedding.weight"), named.pop("head.weight")]
    groups = [{"params": decayed}, {"params": list(named.values()), "weight_decay": 0.0}]
    return muon, torch.optim.AdamW(groups, lr=adamw_lr, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_equals_muon_and_adamw_side_by_side(adjust):
    config = OptimizerConfig(name="muon", lr=0.02, adamw_lr=0.003, betas=(0.8, 0.9), eps=1e-7, momentum=0.9)
    if adjust == "original":
        config = dataclasses.replace(config, options={"adjust_lr_fn": "original"})
    ours, theirs = Model(), Model()
    optimizer, references = config.build(ours.named_parameters()), by_hand(theirs, 0.02, 0.003, adjust)
    for seed in range(6):
        assert step(ours, optimizer, seed=seed) == step(theirs, *references, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_update_of_a_matrix_is_nearly_orthogonal_and_has_the_size_of_adams():
    weight = nn.Parameter(torch.zeros(32, 64))
    optimizer = OptimizerConfig(name="muon", lr=1.0).build([("fc.weight", weight)])
    weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    # Liu et al. 2025, equation 4: 0.2 sqrt(max(A, B)) times a matrix whose singular values lie around 1 (Jordan et al.: 0.5 to 1.5)
    singular_values = torch.linalg.svdvals(weight.detach()) / (0.2 * 64**0.5)
    assert singular_values.min() > 0.5 and singular_values.max() < 1.5
    assert 0.1 < weight.detach().square().mean().sqrt() < 0.3


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_like_the_original(way):
    model = Model()
    optimizer = OptimizerConfig(name="muon").build(model.named_parameters())
    for seed in range(2):
        step(model, optimizer, seed=seed)
    pair = copy.deepcopy((model, optimizer)) if way == "deepcopy" else pickle.loads(pickle.dumps((model, optimizer)))
    for seed in (2, 3):
        assert step(model, optimizer, seed=seed) == step(*pair, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pair[0].parameters(), strict=True))
    assert pair[1].param_groups[0]["params"][0] is pair[0].fc1.weight


def test_state_covers_both_halves_and_survives_a_file():
    model = Model()
    optimizer = OptimizerConfig(name="muon").build(model.named_parameters())
    step(model, optimizer, seed=0)
    keys = {tuple(sorted(state)) for state in optimizer.state_dict()["state"].values()}
    assert keys == {("momentum_buffer",), ("exp_avg", "exp_avg_sq", "step")}
    assert len(optimizer.state) == len(list(model.parameters()))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = OptimizerConfig(name="muon").build(Model().named_parameters())
    other.load_state_dict(torch.load(file, weights_only=True))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_schedules_reach_both_halves():
    model = Model()
    optimizer = OptimizerConfig(name="muon", lr=0.02, adamw_lr=0.004).build(model.named_parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1))
    step(model, optimizer, seed=0)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.002, 0.002]
    set_learning_rate(optimizer, 0.0)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, seed=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_closure_and_hooks_run_once():
    model = Model()
    optimizer = OptimizerConfig(name="muon").build(model.named_parameters())
    calls = []
    optimizer.register_step_post_hook(lambda *args: calls.append("hook"))

    def closure():
        calls.append("closure")
        loss = model(torch.arange(7)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert calls == ["closure", "hook"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_runs_as_a_lightning_optimizer():
    from lightning.pytorch.core.optimizer import LightningOptimizer

    model = Model()
    optimizer = OptimizerConfig(name="muon").build(model.named_parameters())
    wrapped = LightningOptimizer(optimizer)
    assert isinstance(wrapped, MuonWithAdamW) and wrapped.param_groups is optimizer.param_groups


@pytest.mark.parametrize("missing", ["muon", "adamw"])
def test_one_half_may_be_empty(missing):
    name = "norm.weight" if missing == "muon" else "fc.weight"
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    OptimizerConfig(name="muon").build([(name, parameter)]).step()
    assert not torch.equal(parameter.detach(), torch.ones(2, 2))


def test_a_group_must_name_its_update():
    with pytest.raises(ConfigError, match="update"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.ones(2, 2))]}], muon={}, adamw={})


def test_its_parameters_are_matrices():
    with pytest.raises(ConfigError, match="no matrix"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.ones(2))], "update": "muon"}], muon={}, adamw={})
