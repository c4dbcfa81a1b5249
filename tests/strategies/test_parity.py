"""Every strategy trains what one process trains with the same global batch, and writes the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from lmlab.data.batch import Batch
from lmlab.errors import LabError
from lmlab.losses import Losses
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from tests.runs import one_run
from tests.strategies.conftest import Train, apart, moments, structure

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

TOLERANCE = 1e-6  # float32 sums taken in another order, after 20 steps of AdamW
ROUNDED = 5e-5
"""Of losses over vectors or attention scores: AdamW divides by the root of what is nearly zero there, which two processes of plain DDP
show to be as far from one. With SGD, whose steps are as small as gradients are, they are within `TOLERANCE`."""
SHARING = ("fsdp", "zero1", "zero2", "zero3")


@pytest.mark.parametrize("strategy", ["ddp", *SHARING, "fsdp_tp"])
def test_two_ranks_train_as_one_process(train: Train, strategy: str) -> None:
    one, two = train("mlm", "auto", 1, micro=8), train("mlm", strategy)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE
    assert structure(one) == structure(two)
    assert apart(moments(one), moments(two)) < TOLERANCE
    assert one["loops"].keys() == two["loops"].keys() and one["global_step"] == two["global_step"]


def test_copies_of_sharded_networks(train: Train) -> None:
    """Four ranks: two copies, each shared by two."""
    one, four = train("mlm", "auto", 1, micro=8), train("mlm", "hsdp", 4)
    assert apart(one["state_dict"], four["state_dict"]) < TOLERANCE and structure(one) == structure(four)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1_small", "zero2_small", "zero3_small"])
def test_limits_that_are_small_beside_the_network(train: Train, strategy: str) -> None:
    """Gradients go in many buckets, for some of which one is too large; and stage 3 steps a group in several parts with a state each."""
    one, two = train("mlm", "auto", 1, micro=8), train("mlm", strategy)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE and structure(one) == structure(two)
    assert apart(moments(one), moments(two)) < TOLERANCE


@pytest.mark.slow
def test_cut_layers_of_sharded_networks(train: Train) -> None:
    """Four ranks: two share each layer, two the data."""
    one, four = train("mlm", "auto", 1, micro=8), train("mlm", "fsdp_tp", 4)
    assert apart(one["state_dict"], four["state_dict"]) < TOLERANCE and structure(one) == structure(four)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "at", "strategy"),
    [*(("norm", 0.05, one) for one in (*SHARING, "fsdp_tp")), *(("value", 0.002, one) for one in ("fsdp", "fsdp_tp"))],
)
def test_clipped_gradients(train: Train, clip: str, at: float, strategy: str) -> None:
    """By far: a rank that clips its own part only, or a mean of parts, would go elsewhere."""
    sgd: dict[str, Any] = {"optimizer": "sgd", "lr": 0.5}
    free, one = train("mlm", "auto", 1, micro=8, **sgd), train("mlm", "auto", 1, micro=8, clip=clip, clip_at=at, **sgd)
    two = train("mlm", strategy, clip=clip, clip_at=at, **sgd)
    assert apart(one["state_dict"], free["state_dict"]) > 100 * TOLERANCE
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARING)
@pytest.mark.parametrize("objective", ["clm", "span_corruption", "nsp"])
def test_objectives(train: Train, objective: str, strategy: str) -> None:
    one, two = train(objective, "auto", 1, micro=8), train(objective, strategy)
    assert apart(one["state_dict"], two["state_dict"]) < (TOLERANCE if objective != "nsp" else 2 * TOLERANCE)  # plain DDP: 1.3e-6


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "zero1"])
def test_recurrent_networks(train: Train, strategy: str) -> None:
    one, two = train("recurrent_lm", "auto", 1, micro=8), train("recurrent_lm", strategy)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARING])
@pytest.mark.parametrize("objective", one_run.OVER_BATCH)
def test_comparisons_of_all_ranks_vectors(train: Train, objective: str, strategy: str) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.1}
    one, two = train(objective, "auto", 1, micro=8, **sgd), train(objective, strategy, **sgd)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE
    one, two = train(objective, "auto", 1, micro=8), train(objective, strategy)
    assert apart(one["state_dict"], two["state_dict"]) < ROUNDED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "strategy"),
    [
        *(
            (objective, strategy)
            for objective in ("multitask", "multitask_norms", "multitask_turns", "multitask_rests")
            for strategy in ("fsdp", "hsdp")
        ),
        *(("multitask_contrastive", strategy) for strategy in SHARING),
    ],
)
def test_several_tasks(train: Train, objective: str, strategy: str) -> None:
    one, two = train(objective, "auto", 1, micro=8), train(objective, strategy, 4 if strategy == "hsdp" else 2)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*SHARING, "zero2_offload", "zero3_offload"])
@pytest.mark.parametrize("setting", ["averaged", "optimizer"])
def test_averages_and_another_optimizer(train: Train, setting: str, strategy: str) -> None:
    given = {"averaged": True} if setting == "averaged" else {"optimizer": "sgd", "lr": 0.5}
    one, two = train("mlm", "auto", 1, micro=8, **given), train("mlm", strategy, **given)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE
    if setting == "averaged":
        assert apart(one["lmlab_average"]["averages"], two["lmlab_average"]["averages"]) < TOLERANCE


class Frozen(MLM):
    """Its embeddings and its first block rest, as in fine-tuning."""

    def configure_model(self) -> None:
        super().configure_model()
        for part in (self.backbone.embedding, self.backbone.stack.blocks[0]):
            part.requires_grad_(False)


def frozen(settings: Mapping[str, Any]) -> None:
    one_run.OBJECTIVES["frozen"] = partial(Frozen, length=one_run.LENGTH)  # of this rank alone
    one_run.main(dict(settings))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARING, "hsdp", "fsdp_tp", "zero3_offload"])
def test_frozen_parameters(train: Train, strategy: str) -> None:
    one = train("frozen", "auto", 1, micro=8, main=frozen, averaged=True)
    two = train("frozen", strategy, 4 if strategy == "hsdp" else 2, main=frozen, averaged=True)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE and structure(one) == structure(two)
    averages = one["lmlab_average"]["averages"]
    assert apart(averages, two["lmlab_average"]["averages"]) < TOLERANCE
    start = train("frozen", "auto", 1, micro=8, main=frozen, averaged=True, steps=1)["state_dict"]
    rests = [name for name in start if name not in averages]
    assert rests and all(two["state_dict"][name].equal(start[name]) for name in rests), "they stay as they are, to the bit"


class Poisoned(CLM):
    """Its loss is a number, its gradient is none after the third step."""

    def losses(self, batch: Batch) -> Losses:
        losses = super().losses(batch)
        part = losses.parts[self.part]
        gone = (self.head.weight.sum() * 0.0).sqrt() if self.training and self.trainer.global_step >= 3 else 0.0
        return losses._replace(parts={self.part: part._replace(sum=part.sum + gone)})


def poisoned(settings: Mapping[str, Any]) -> None:
    one_run.OBJECTIVES["poisoned"] = partial(Poisoned, length=one_run.LENGTH)  # of this rank alone
    with pytest.raises(LabError, match=r"gradient norm is (nan|inf)"):
        one_run.main(dict(settings))


@pytest.mark.parametrize("strategy", ["fsdp", "zero2"])
def test_a_gradient_that_is_no_number_ends_the_run(train: Train, strategy: str) -> None:
    with pytest.raises(IndexError):  # nothing was saved
        train("poisoned", strategy, main=poisoned)
