"""The whole prediction: costs are the objective's own, impossible strategies are refused, the advice is the simplest that fits."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import pytest

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.data.module import CorpusModule
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.task_config import TaskConfig
from lmlab.optim import OptimizerConfig
from lmlab.planning.advice import advise
from lmlab.planning.cluster import Cluster
from lmlab.planning.devices import CPU, DEVICES, Device, device_named
from lmlab.planning.prediction import Prediction, predict
from tests.objectives.toy import tokenizer

TOKENIZER = tokenizer()
STEPS = BudgetConfig(steps=10)


def model(**given: object) -> CLM:
    return CLM(TOKENIZER, BackboneConfig(hidden_size=32, num_layers=4, num_heads=4), length=24, **given)  # type: ignore[arg-type]


def planned(objective: Objective, cluster: Cluster, size: int = 64, budget: BudgetConfig = STEPS, **given: object) -> Prediction:
    data = CorpusModule("austen", TOKENIZER, objective.feed(), global_batch_size=size, **given)  # type: ignore[arg-type]
    return predict(objective, data, budget, cluster)


def of_memory(number: float) -> Device:
    return Device("toy", int(number), 1e12, 1e12, "made up")


def adamw() -> OptimizerConfig:
    return OptimizerConfig(name="adamw")


def test_costs_are_those_that_a_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    text, objective = tmp_path / "text.txt", model()
    text.write_text("\n\n".join(["She had been to the lake, and was not sorry to be home again before the rain. " * 40] * 20))
    found = planned(objective, Cluster(device=device_named(CPU)), size=8, micro_batch_size=4)
    data = CorpusModule(str(text), TOKENIZER, objective.feed(), global_batch_size=8, micro_batch_size=4)
    objective.configure_model()
    window = list(islice(data.train_dataloader(), 2))
    assert found.cost.flops == sum(objective.flops(batch) for batch in window)
    assert found.cost.tokens == pytest.approx(sum(int(batch["tokens"]) for batch in window), rel=0.05)  # BOS tokens are not of the text
    assert found.amounts is not None
    assert (found.amounts.steps, found.amounts.tokens) == (10, 10 * found.cost.tokens)


def test_time_follows_from_the_stated_utilisation() -> None:
    device = of_memory(1e12)
    slow = planned(model(), Cluster(device=device, devices=2, utilisation=0.25))
    fast = planned(model(), Cluster(device=device, devices=8, utilisation=0.5))
    assert slow.speed is not None and fast.speed is not None and slow.amounts is not None
    assert fast.speed == pytest.approx(8 * slow.speed)
    assert slow.speed * slow.cost.flops_per_token == pytest.approx(2 * 1e12 * 0.25)
    assert slow.amounts.seconds == pytest.approx(slow.amounts.tokens / slow.speed)
    assert planned(model(), Cluster(device=device, devices=2)).speed is None
    assert planned(model(), Cluster(device=device_named(CPU), utilisation=0.5)).speed is None


def test_a_budget_in_seconds_or_flops_is_turned_into_tokens() -> None:
    cluster = Cluster(device=of_memory(1e12), utilisation=0.5)
    steps = planned(model(), cluster).amounts
    assert steps is not None and steps.seconds is not None
    for budget in (BudgetConfig(seconds=steps.seconds), BudgetConfig(flops=round(steps.flops)), BudgetConfig(tokens=round(steps.tokens))):
        found = planned(model(), cluster, budget=budget).amounts
        assert found is not None
        assert found.steps == pytest.approx(10)
    assert planned(model(), Cluster(device=device_named(CPU)), budget=BudgetConfig(seconds=5)).amounts is None


def test_recomputation_costs_a_third_more_time_and_saves_activations() -> None:
    cluster = Cluster(device=of_memory(1e12), utilisation=0.5)
    plain, again = (
        planned(model(), cluster),
        CLM(TOKENIZER, dataclasses.replace(model().backbone_config, checkpointing="blocks"), length=24),
    )
    checkpointed = planned(again, cluster)
    assert plain.speed is not None and checkpointed.speed is not None
    assert plain.speed / checkpointed.speed == pytest.approx(4 / 3)
    kept, whole = checkpointed.rows[0].bytes, plain.rows[0].bytes
    assert kept is not None and whole is not None
    assert kept.activations < 0.5 * whole.activations
    assert kept.transient > whole.transient, "a layer is there while it is computed again"
    assert again.backbone_config.checkpointing == "blocks", "asking must not change what was asked about"


def test_the_simplest_strategy_that_fits_is_advised() -> None:
    """As memory shrinks: DDP, then FSDP, then nothing; one device is told so only if there are several."""
    several = Cluster(device=of_memory(1e12), devices=8, nodes=2)
    assert advise(planned(model(optimizer=adamw()), several)).strategy == "ddp"
    assert advise(planned(model(), dataclasses.replace(several, devices=1, nodes=1))).strategy == "single"
    rows = {row.strategy: row.bytes for row in planned(model(optimizer=adamw()), several).rows}
    ddp, fsdp = rows["ddp"], rows["fsdp"]
    assert ddp is not None and fsdp is not None
    between = dataclasses.replace(several, device=of_memory((ddp.total + fsdp.total) / 2 / 0.9))
    found = advise(planned(model(optimizer=adamw()), between), "ddp")
    assert found.strategy == "fsdp"
    assert "does not fit" in found.answer and found.remedies
    nothing = advise(planned(model(optimizer=adamw()), dataclasses.replace(several, device=of_memory(1e4))))
    assert nothing.strategy is None and nothing.remedies


def test_what_cannot_be_used_is_refused_with_a_reason() -> None:
    one, eight = Cluster(device=of_memory(1e12)), Cluster(device=of_memory(1e12), devices=8)
    refused = {row.strategy: row.refused for row in planned(model(), one).rows if row.refused}
    assert set(refused) == {"ddp", "fsdp", "hsdp", "fsdp_tp", "zero1", "zero2", "zero3"}
    adafactor = planned(model(optimizer=OptimizerConfig(name="adafactor")), eight)
    assert {row.strategy for row in adafactor.rows if row.bytes} == {"single", "ddp"}
    assert "cannot be used here" in advise(adafactor, "zero2").answer


def test_ranks_on_the_cpus_of_a_machine_share_its_memory() -> None:
    cpu = device_named(CPU)
    assert Cluster(device=cpu, devices=4).usable * 4 == pytest.approx(Cluster(device=cpu).usable, rel=1e-6)
    assert Cluster(device=DEVICES["h100"], devices=4).usable == Cluster(device=DEVICES["h100"]).usable


def test_a_batch_that_cannot_be_cut_is_said_and_planned_with_the_next() -> None:
    found = planned(model(), Cluster(device=of_memory(1e12), devices=12), size=8)
    assert found.batches.global_size == 12
    assert "--data.global_batch_size 12" in found.notes[0]
    assert not planned(model(), Cluster(device=of_memory(1e12), devices=4), size=8).notes


def test_of_several_tasks_the_largest_decides() -> None:
    def tasks(*lengths: int) -> Multitask:
        described = {f"t{n}": TaskConfig(objective="lmlab.objectives.clm.CLM", settings={"length": n}) for n in lengths}
        return Multitask(TOKENIZER, model().backbone_config, tasks=described)

    def activations(objective: Objective) -> int:
        found = planned(objective, Cluster(device=device_named(CPU)), size=4).rows[0].bytes
        assert found is not None
        return found.activations

    small, large = activations(tasks(16)), activations(tasks(48))
    assert activations(tasks(16, 48)) == large > small


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"devices": 0}, "devices"), ({"devices": 8, "nodes": 3}, "divided evenly"), ({"utilisation": 40}, "share of the device's peak")],
)
def test_impossible_clusters_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(device=DEVICES["h100"], **settings)  # type: ignore[arg-type]


def test_an_unknown_device_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        device_named("H10O")
    assert device_named("RTX 4090") == DEVICES["rtx4090"]


def test_a_precision_whose_bytes_are_unknown_is_refused() -> None:
    data = CorpusModule("austen", TOKENIZER, model().feed())
    with pytest.raises(ConfigError, match="transformer-engine"):
        predict(model(), data, STEPS, Cluster(device=DEVICES["h100"]), precision="transformer-engine")


def test_an_objective_that_looks_at_its_batches_is_planned_without_activations() -> None:
    class Looks(CLM):
        def losses(self, batch: dict) -> object:  # type: ignore[override]
            return batch["labels"].tolist()

    found = planned(Looks(TOKENIZER, model().backbone_config, length=24), Cluster(device=device_named(CPU)))
    assert found.rows[0].bytes is not None and found.rows[0].bytes.activations == 0
    assert "activations are not in the table" in found.notes[0]
