"""Causal backbones without attention: what they see, what they cost, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lmlab.backbones.recurrent import Recurrent, RecurrentConfig
from lmlab.errors import ConfigError

VOCAB, PAD = 31, 0
IDS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2], [0] * 12])
CELLS: dict[str, dict[str, Any]] = {
    "bengio": {"cell": "bengio", "window": 3},
    "bengio_direct": {"cell": "bengio", "window": 3, "direct": "direct", "tie": "untied"},
    "rnn": {"cell": "rnn", "num_layers": 2},
    "lstm": {"cell": "lstm", "num_layers": 2},
    "mingru": {"cell": "mingru", "num_layers": 2},
}


def built(name: str, **given: Any) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(RecurrentConfig(hidden_size=10, embedding_size=6, init_std=0.5, **CELLS[name], **given), VOCAB, PAD)


def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CELLS)
def test_no_state_knows_of_later_tokens_or_other_documents(name: str) -> None:
    """Each token is changed in turn; exactly the states of its own document from it on may change, and its own does."""
    backbone, ids = built(name), tokens()
    states = backbone(ids, document_ids=IDS)
    for t in range(12):
        changed = ids.clone()
        changed[:, t] = changed[:, t] % (VOCAB - 1) + 1
        same = (backbone(changed, document_ids=IDS) == states).all(-1)
        later = torch.arange(12) >= t
        may_change = later & (IDS[:, t, None] == IDS)
        assert same[~may_change].all() and not same[:, t].any()


@pytest.mark.parametrize("name", CELLS)
def test_a_document_is_read_as_if_it_were_alone(name: str) -> None:
    backbone, ids = built(name), tokens()
    together = backbone(ids, document_ids=IDS)
    for document in range(3):
        inside = IDS[0] == document
        torch.testing.assert_close(together[0, inside], backbone(ids[:1, inside])[0])
    torch.testing.assert_close(together[1:], backbone(ids[1:]))


def test_recurrence_reaches_far_and_a_window_does_not() -> None:
    ids = tokens()[1:]
    changed = ids.clone()
    changed[:, 0] = changed[:, 0] % (VOCAB - 1) + 1
    for name in CELLS:
        backbone = built(name)
        differs = (backbone(ids) != backbone(changed)).any(-1)[0]
        assert differs.tolist() == ([True] * 3 + [False] * 9 if name.startswith("bengio") else [True] * 12)


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    backbone = built(name)
    states = backbone(tokens(), document_ids=IDS)
    (states * torch.randn_like(states)).sum().backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", ["bengio", "bengio_direct", "mingru"])
@pytest.mark.parametrize("documents", [IDS, None], ids=["documents", "rows"])
def test_flops_are_those_torch_counts(name: str, documents: Tensor | None) -> None:
    backbone = built(name)
    with FlopCounterMode(display=False) as counter:
        backbone(tokens(), document_ids=documents).sum().backward()
    assert 3 * backbone.flops(2, 12) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_flops_are_those_of_single_cells(name: str) -> None:
    """Of the forward pass; torch cannot look into its fused kernels, but into the cells they are made of."""
    cell_type = nn.LSTMCell if name == "lstm" else nn.RNNCell
    with FlopCounterMode(display=False) as counter:
        for cell, width in ((cell_type(6, 10), 6), (cell_type(10, 10), 10)):
            state = None
            for _ in range(12):
                state = cell(torch.randn(2, width), state)
    assert built(name).flops(2, 12) == counter.get_total_flops()


@pytest.mark.parametrize("name", CELLS)
def test_weights_are_drawn_anew_in_place(name: str) -> None:
    backbone = built(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(7.0)
    torch.manual_seed(0)
    backbone.reset_parameters()
    after = backbone.state_dict()
    assert not any((value == 7.0).any() for value in after.values())
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
    assert after["embedding.weight"].std().item() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("name", ["bengio", "rnn", "lstm"])
def test_the_last_states_are_dropped_too(name: str) -> None:
    """Half of them are 0, and the others doubled (Zaremba et al. 2014, section 3.2); no cell gives a state of 0 itself."""
    states = built(name, dropout=0.5).train()(tokens())
    assert 0.3 < float((states == 0).float().mean()) < 0.7


@pytest.mark.parametrize("name", CELLS)
def test_dropout_acts_in_training_only(name: str) -> None:
    backbone, ids = built(name, dropout=0.5), tokens()
    assert not torch.equal(backbone.train()(ids), backbone.train()(ids))
    assert torch.equal(backbone.eval()(ids), backbone.eval()(ids))
    assert torch.equal(backbone.eval()(ids), built(name).eval()(ids))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"cell": "gru"}, "cell"),
        ({"window": 4}, "window"),
        ({"cell": "mingru", "direct": "direct"}, "direct"),
        ({"cell": "bengio", "direct": "direct"}, "tie"),
        ({"cell": "bengio", "num_layers": 2}, "num_layers"),
        ({"cell": "bengio", "window": 0}, "window"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"embedding_size": -1}, "embedding_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"init_std": 0.0}, "init_std"),
    ],
)
def test_impossible_settings_and_such_without_effect_are_refused(given: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError) as error:
        RecurrentConfig(**given)
    assert error.value.where == f"RecurrentConfig.{names}" and error.value.remedy
