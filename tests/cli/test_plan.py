"""`lmlab plan`, as it is called."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import run, short_teachers
from lmlab.cli import main
from lmlab.cli.completion import options_of
from lmlab.cli.planning import num_planned, planned_strategy
from lmlab.strategies import DDP, FSDP, ZeRO

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
CLM, BIG = str(CONFIGS / "pretrain/clm.yaml"), ("large", "xl", "1b", "7b", "13b", "70b")
ADAMW = ("-c", str(CONFIGS / "optim/adamw.yaml"))
SECONDS = 30.0  # a plan for 70 B, in this process; alone on a core it takes 6
EXTRA_GIB = 2.0  # the network itself would take 255


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path / "runs"))


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_page_says_what_to_do_and_nothing_is_trained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "-c", CLM]) == 0
    printed = capsys.readouterr().out
    assert "1.33 M parameters, 1.33 M trainable, 524 k in embeddings" in printed
    assert "take single: one device holds it all" in printed
    assert "no time is given" in printed
    assert max(map(len, printed.splitlines())) <= 160
    assert not list(tmp_path.rglob("*.*")), "no tokenizer, no store, no run"


@pytest.mark.slow
def test_seventy_billion_parameters_take_seconds_and_little_memory() -> None:
    """In a process of its own, so that its memory is its own."""
    words = ["-c", CLM, "-c", str(CONFIGS / "backbones/70b.yaml"), "--devices", "64", "--nodes", "8", "--device", "h100", "--json"]
    code = (
        "import resource, sys; from lmlab.cli import main; import lmlab.cli.planning as p, lmlab.planning.prediction;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; main(['plan', *sys.argv[1:]]);"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < SECONDS
    assert float(done.stderr.split()[-1]) < EXTRA_GIB
    found = json.loads(done.stdout)
    assert found["parameters"]["total"] == pytest.approx(68.5e9, rel=0.01)
    rows = {row["strategy"]: row for row in found["strategies"]}
    assert not rows["ddp"]["fits"]
    assert found["advice"]["strategy"] == "fsdp" and rows["fsdp"]["fits"]
    assert "--data.global_batch_size 64" in found["notes"][0]


@pytest.mark.parametrize("name", BIG)
def test_every_large_backbone_is_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    few = "--model.backbone.num_layers=2"  # the sizes themselves are counted in tests/planning/test_presets.py
    found = plan(capsys, "-c", CLM, "-c", str(CONFIGS / f"backbones/{name}.yaml"), few, "--device", "a100-80", "--devices", "8")
    assert found["tokens_per_second"] > 0
    assert found["advice"]["strategy"] is not None


BASES = [p for f in ("pretrain", "anchors", "contrastive", "multitask") for p in sorted((CONFIGS / f).glob("*.yaml"))]


COUNTED = ("ngram", "bigram", "unigram")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in ("span_corruption", "contrastive", "unified") else pytest.mark.slow)
        for path in BASES
        if path.stem not in (*COUNTED, "distillation")
    ],
)
def test_every_shipped_config_is_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "-c", str(path))
    assert found["strategies"][0]["bytes"]["activations"] > 0
    assert found["flops_per_token"] > 0
    assert not [note for note in found["notes"] if "not in the table" in note]


def test_settings_of_the_trainer_are_heard(capsys: pytest.CaptureFixture[str]) -> None:
    whole = plan(capsys, "-c", CLM, "-c", str(CONFIGS / "optim/adamw.yaml"))
    half = plan(capsys, "-c", CLM, "-c", str(CONFIGS / "optim/adamw.yaml"), "--trainer.precision=bf16-true")
    assert half["precision"] == "bf16-true"
    assert half["strategies"][0]["bytes"]["gradients"] * 2 == whole["strategies"][0]["bytes"]["gradients"]
    averaged = plan(capsys, "-c", CLM, "-c", str(CONFIGS / "optim/ema.yaml"), "--trainer.devices=2", "--trainer.num_nodes=2")
    assert averaged["strategies"][0]["bytes"]["average"] == averaged["strategies"][0]["bytes"]["gradients"]
    assert (averaged["cluster"]["devices"], averaged["cluster"]["nodes"]) == (4, 2)
    two = plan(
        capsys, "-c", CLM, "-c", str(CONFIGS / "optim/adamw.yaml"), "-c", str(CONFIGS / "strategies/fsdp.yaml"), "--trainer.devices=2"
    )
    assert two["cluster"]["devices"] == 2


def test_devices_that_nobody_has_counted_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "-c", CLM, "--trainer.devices=auto", "--device=h100")
    assert found["cluster"]["devices"] == 1 and "say --devices N" in found["notes"][0]
    assert not plan(capsys, "-c", CLM, "--trainer.devices=auto", "--device=h100", "--devices=4")["notes"]


def test_settings_of_the_strategy_are_heard(capsys: pytest.CaptureFixture[str]) -> None:
    def transient(overlay: str, *given: str) -> int:
        settings = ("-c", CLM, *ADAMW, "-c", str(CONFIGS / f"strategies/{overlay}.yaml"), "--device=h100", "--devices=4", *given)
        rows = {row["strategy"]: row for row in plan(capsys, *settings)["strategies"]}
        return rows[overlay]["bytes"]["transient"]

    assert transient("fsdp", "--trainer.strategy.init_args.reshard_after_forward=never") > transient("fsdp")
    assert transient("zero2", "--trainer.strategy.init_args.bucket=1000") < transient("zero2")


def test_devices_that_share_layers_share_examples(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("-c", CLM, "--device=h100", "--devices=8", "--data.global_batch_size=8")
    alone, cut = plan(capsys, *asked, "--strategy=fsdp"), plan(capsys, *asked, "--strategy=fsdp_tp")
    by_config = plan(capsys, "-c", CLM, "-c", str(CONFIGS / "strategies/fsdp_tp.yaml"), *asked[2:])
    assert (alone["batches"]["micro_size"], cut["batches"]["micro_size"], by_config["batches"]["micro_size"]) == (1, 2, 2)


def test_what_large_models_need_of_their_hosts_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    large = ("-c", CLM, *ADAMW, "-c", str(CONFIGS / "backbones/70b.yaml"), "--model.backbone.num_layers=20", "--device=h100", "--devices=8")
    notes = plan(capsys, *large, "--data.global_batch_size=64")["notes"]
    assert any("init_args.checkpoint sharded" in note for note in notes) and any("own memory" in note for note in notes)


def test_a_peak_and_a_memory_make_any_device(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "-c", CLM, "--flops", "100G", "--memory", "0.01", "--utilisation", "0.5")
    assert found["tokens_per_second"] == pytest.approx(0.5 * 100e9 / found["flops_per_token"])
    assert found["advice"]["strategy"] is None
    assert any("micro_batch_size" in remedy for remedy in found["advice"]["remedies"])
    found = plan(capsys, "-c", CLM, "--device", "mi300x", "--flops", "100G", "--memory", "192")["cluster"]["device"]
    assert (found["name"], found["memory"], found["single"]) == ("mi300x", 192 * 2**30, 100e9)


def test_the_strategy_of_the_config_is_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    """Four devices in two groups on one node."""
    found = plan(capsys, "-c", CLM, "-c", str(CONFIGS / "strategies/hsdp.yaml"), "--device=h100")
    assert found["advice"]["answer"].startswith("hsdp fits")
    weights = {row["strategy"]: row["bytes"]["weights"] for row in found["strategies"] if row["bytes"]}
    assert weights["hsdp"] == pytest.approx(weights["ddp"] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("auto", None),
        (DDP(), "ddp"),
        (FSDP(tensor_parallel=2), "fsdp_tp"),
        (ZeRO(stage=2), "zero2"),
        (ZeRO(stage=3, offload="all"), "zero3_offload"),
        (ZeRO(stage=3, offload="optimizer"), "zero3"),
    ],
)
def test_strategies_have_rows(strategy: Any, name: str) -> None:
    assert planned_strategy(strategy) == name


@pytest.mark.parametrize(("devices", "count"), [("0,1", 2), ("1,", 1), ("3", 3), ([2, 3], 2), ("auto", 1), (-1, 1), (None, 1)])
def test_devices_are_counted_as_the_trainer_counts_them(devices: Any, count: int) -> None:
    assert num_planned(devices) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no config to plan"),
        (["-c", str(CONFIGS / "backbones/70b.yaml")], "there is no base"),
        (["-c", CLM, "--device", "h10"], "did you mean 'h100'"),
        (["-c", CLM, "--strategy", "fsdp2"], "did you mean 'fsdp'"),
        (["-c", CLM, "--devices", "6", "--nodes", "4"], "divided evenly"),
        (["-c", CLM, "--memory", "-1"], "not an amount"),
        (["-c", CLM, "--memory", "inf"], "not an amount"),
        (["-c", CLM, "--memory", "1e300"], "not an amount"),
        (["-c", CLM, "--devices", "99999999999999999999"], "nobody has"),
        (["-c", CLM, "--flops", "fast"], "where: --flops"),
        (["-c", CLM, "--model.lenght", "3"], "length"),
        (["-c", str(CONFIGS / "pretrain/ngram.yaml")], "an n-gram model cannot be planned"),
        (["-c", str(CONFIGS / "pretrain/distillation.yaml")], "there is no run 'clm'"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "do:" in printed


def test_help_teaches_and_is_completed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "usage: lmlab plan -c CONFIG" in printed
    named = [word for word in printed.split() if word.startswith("configs/") and word.endswith(".yaml")]
    assert named and all((ROOT / word).is_file() for word in named)
    assert [option for option in options_of("plan") if option.startswith("--") and option not in printed] == []
    assert {"--devices", "--json"} <= set(options_of("plan"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distillation", "tinybert"])
def test_teachers_count_frozen_and_whole(name: str) -> None:
    """Beside a real step of the shipped config; its teacher was trained for two steps."""
    with short_teachers([name]):
        case = run(name, [])
    assert dataclasses.replace(case.predicted, activations=0, transient=0) == dataclasses.replace(case.measured, activations=0)
    assert case.predicted.activations == pytest.approx(case.measured.activations, rel=0.15)
    assert case.predicted.weights > 2 * case.predicted.gradients, "the teacher is larger than its student"
