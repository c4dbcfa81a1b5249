"""DeepSpeed's Adam: the same training, and the same checkpoints, as torch's; what has no kernel is refused."""

from __future__ import annotations

import pytest

from lmlab.errors import ConfigError
from lmlab.objectives.clm import CLM
from lmlab.optim import OptimizerConfig
from lmlab.strategies import ZeRO, check_strategy
from lmlab.strategies.zero import _with_buckets_within
from tests.objectives.toy import tokenizer
from tests.runs.conftest import Place
from tests.strategies.conftest import PLAIN, Train, apart, last, moments, structure

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

TOLERANCE = 1e-5  # another order of operations in each step


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernel, in a folder of its own; takes a minute."""
    import os

    os.environ["TORCH_EXTENSIONS_DIR"] = str(tmp_path_factory.mktemp("kernels"))
    from deepspeed.ops.op_builder import CPUAdamBuilder

    CPUAdamBuilder().load(verbose=False)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("strategy", ["zero2_kernels", "zero3_kernels"])
def test_kernels_train_as_one_process(train: Train, strategy: str) -> None:
    one, two = train("mlm", "auto", 1, micro=8), train("mlm", strategy)
    assert 0.0 < apart(one["state_dict"], two["state_dict"]) < TOLERANCE
    assert structure(one) == structure(two)
    assert apart(moments(one), moments(two)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("first", "second"), [("zero2_kernels", "fsdp"), ("auto", "zero3_kernels"), ("zero3_kernels", "zero2")])
def test_going_on_with_and_without(place: Place, train: Train, first: str, second: str) -> None:
    whole, name = train("mlm", "auto", 1, micro=8), f"{first}-{second}"
    given = {"micro": 2, "checkpoints": 2, "name": name}
    train("mlm", first, 1 if first == "auto" else 2, stop_at=PLAIN["steps"] // 2, **given)
    train("mlm", second, resume="must", **given)
    end = last(place, name)
    assert end["global_step"] == PLAIN["steps"] and structure(end) == structure(whole)
    assert apart(whole["state_dict"], end["state_dict"]) < TOLERANCE


def test_what_has_no_kernel_is_refused_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ZeRO(kernels="deepspeed")
    check_strategy(CLM(tokenizer(), optimizer=OptimizerConfig(name="adamw")), {"strategy": strategy})
    for optimizer in (OptimizerConfig(name="sgd", lr=0.1), OptimizerConfig(name="adamw", options={"amsgrad": True})):
        with pytest.raises(ConfigError, match="DeepSpeed has no kernel for"):
            check_strategy(CLM(tokenizer(), optimizer=optimizer), {"strategy": strategy})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="cannot be compiled here") as caught:
        check_strategy(CLM(tokenizer(), optimizer=OptimizerConfig(name="adamw")), {"strategy": strategy})
    assert "ninja" in str(caught.value.why)


def test_buckets_are_no_larger_than_the_network() -> None:
    config = ZeRO(stage=3, bucket=1000).config
    assert isinstance(config, dict)
    sharing = config["zero_optimization"]
    assert _with_buckets_within(sharing, 10**9) == sharing
    small = _with_buckets_within(sharing, 10)
    assert {key: value for key, value in small.items() if sharing[key] != value} == {
        "reduce_bucket_size": 10,
        "stage3_prefetch_bucket_size": 10,
    }
    assert _with_buckets_within(sharing, 0)["reduce_bucket_size"] == 2, "an empty network"
