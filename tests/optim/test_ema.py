import copy
import io

import pytest
import torch
from torch import nn

from lmlab.errors import CheckpointError, ConfigError, LabError
from lmlab.optim import EMAConfig, ExponentialMovingAverage


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(1))


def move(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    module.seen += 1


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_closed_form():
    module, decay = Tied(), 0.9
    ema = ExponentialMovingAverage(module, EMAConfig(decay=decay, warmup="none"))
    history = [values(module)]
    for seed in range(6):
        move(module, seed)
        ema.update()
        history.append(values(module))
    # start times decay^6, and the k-th weights (1 - decay) decay^(6 - k)
    shares = [decay**6] + [(1 - decay) * decay ** (6 - k) for k in range(1, 7)]
    with ema.swapped_in():
        for name, average in values(module).items():
            expected = sum(share * weights[name].double() for share, weights in zip(shares, history, strict=True))
            torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)


def test_equals_torchs_averaged_model():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    module = Tied()
    ema = ExponentialMovingAverage(module, EMAConfig(decay=0.8, warmup="none"))
    reference = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    reference.update_parameters(module)  # the first call copies
    for seed in range(4):
        move(module, seed)
        ema.update()
        reference.update_parameters(module)
    with ema.swapped_in():
        for mine, theirs in zip(module.parameters(), reference.module.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_warmup_forgets_the_start():
    ema = ExponentialMovingAverage(Tied(), EMAConfig(decay=0.5))
    decays = []
    for _ in range(12):
        decays.append(ema.decay)
        ema.update()
    assert decays == pytest.approx([min(0.5, (1 + t) / (10 + t)) for t in range(12)])


def test_swapping_keeps_weights_buffers_ties_and_identity():
    module = Tied()
    ema = ExponentialMovingAverage(module)
    move(module, 0)
    ema.update()
    weights, parameters, storage = values(module), list(module.parameters()), module.embedding.weight.data_ptr()
    with ema.swapped_in():
        assert not torch.equal(module.embedding.weight, weights["embedding.weight"])
        assert module.head.weight is module.embedding.weight
        assert module.seen == 1
    assert all(torch.equal(a, b) for a, b in zip(values(module).values(), weights.values(), strict=True))
    assert [id(p) for p in module.parameters()] == [id(p) for p in parameters]
    assert module.embedding.weight.data_ptr() == storage


def test_weights_come_back_after_an_error_and_swapping_out_twice_is_harmless():
    module = Tied()
    ema = ExponentialMovingAverage(module)
    move(module, 0)
    weights = values(module)
    with pytest.raises(ZeroDivisionError), ema.swapped_in():
        raise ZeroDivisionError
    ema.swap_out()
    assert all(torch.equal(a, b) for a, b in zip(values(module).values(), weights.values(), strict=True))


def test_no_update_and_no_second_swap_while_the_averages_are_in():
    ema = ExponentialMovingAverage(Tied())
    with ema.swapped_in():
        with pytest.raises(LabError, match="updated"):
            ema.update()
        with pytest.raises(LabError, match="swapped in"):
            ema.swap_in()


@pytest.mark.parametrize("saved_while", ["out", "in"])
def test_resumes_bit_for_bit_from_a_file(saved_while):
    straight = Tied()
    ema = ExponentialMovingAverage(straight)
    for seed in range(3):
        move(straight, seed)
        ema.update()
    resumed, file = copy.deepcopy(straight), io.BytesIO()
    if saved_while == "in":
        ema.swap_in()
    torch.save(ema.state_dict(), file)
    ema.swap_out()
    file.seek(0)
    other = ExponentialMovingAverage(resumed)
    other.load_state_dict(torch.load(file, weights_only=True))
    for seed in (3, 4):
        for module, average in ((straight, ema), (resumed, other)):
            move(module, seed)
            average.update()
    one, two = ema.state_dict(), other.state_dict()
    assert one["num_updates"] == two["num_updates"] == 5
    assert all(torch.equal(one["averages"][name], two["averages"][name]) for name in one["averages"])


def test_state_is_a_copy():
    ema = ExponentialMovingAverage(Tied())
    state = ema.state_dict()
    state["averages"]["embedding.weight"].zero_()
    assert ema.state_dict()["averages"]["embedding.weight"].abs().sum() > 0


def test_half_precision_is_averaged_in_float32():
    module = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(module.weight)
    ema = ExponentialMovingAverage(module, EMAConfig(decay=0.999, warmup="none"))
    nn.init.constant_(module.weight, 2.0)
    for _ in range(100):
        ema.update()
    # in bfloat16 the average would never leave 1: the next number up is 1.0078
    assert ema.state_dict()["averages"]["weight"].item() == pytest.approx(2 - 0.999**100, rel=1e-5)


def test_a_state_that_does_not_fit_is_refused():
    ema = ExponentialMovingAverage(Tied())
    state = ema.state_dict()
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        ema.load_state_dict({**state, "averages": {n: a for n, a in state["averages"].items() if n != "head.bias"}})
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        ema.load_state_dict({**state, "averages": {**state["averages"], "head.bias": torch.zeros(6)}})


@pytest.mark.parametrize("setting", [{"decay": 1.0}, {"decay": -0.1}, {"warmup": "linear"}])
def test_impossible_averages_are_refused(setting):
    with pytest.raises(ConfigError):
        EMAConfig(**setting)
