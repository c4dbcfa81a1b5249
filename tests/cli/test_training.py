"""`lmlab fit`, `validate`, `test` and `predict` from end to end, on a text of a few pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import lmlab
from lmlab.cli import main
from lmlab.data.corpus import open_corpus
from lmlab.run.find import find_checkpoint, list_runs
from lmlab.run.record import Record

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
DIGITS = 1e-4  # the table shows four decimals


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    paragraphs = [p for p in next(iter(open_corpus("austen").documents())).text.splitlines() if len(p) > 60]
    path.write_text("\n\n".join(paragraphs[:120]), encoding="utf-8")
    return path


@pytest.fixture
def small(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings that make a shipped config small; runs go to a folder of the test's own."""
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path / "runs"))
    sizes = ["--model.backbone={hidden_size: 32, num_layers: 1, num_heads: 2}", "--model.length=32", "--tokenizer.vocab_size=400"]
    return [f"--data.corpus={text}", *sizes, *QUICK]


def smoke(stem: str) -> list[str]:
    return ["fit", "-c", str(CONFIGS / f"pretrain/{stem}.yaml"), "-c", str(CONFIGS / "debug/smoke.yaml")]


def value_of(name: str, printed: str) -> float:
    found = re.search(rf"^{re.escape(name)} +([-\d.]+)", printed, re.MULTILINE)
    assert found is not None, printed
    return float(found[1])


def test_a_run_is_measured_by_its_name_and_predicts(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*smoke("mlm"), *small, "--name", "mine"]) == 0
    [run] = list_runs(name="mine")
    record = Record.load(run.record_path)
    assert (record.status, record.spent["steps"]) == ("finished", 2)
    capsys.readouterr()

    assert main(["validate", "mine", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert value_of("val/loss", printed) == pytest.approx(record.metrics["val/loss"], abs=DIGITS)
    assert "best.ckpt" in printed

    checkpoint = find_checkpoint("mine", "last")
    assert main(["test", str(checkpoint), *QUICK]) == 0
    assert value_of("test/loss", capsys.readouterr().out) > 0

    assert main(["predict", "mine", "--checkpoint=last", *QUICK]) == 0
    lines = [json.loads(line) for line in (run.path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert capsys.readouterr().out.strip().endswith("predictions.jsonl")
    assert lines
    assert all(set(line) == {"input", "target", "predicted"} and "[MASK]" in line["input"] for line in lines)
    assert len(list_runs()) == 1, "measuring makes no run"


def test_validate_takes_configs_and_overrides_too(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*smoke("clm"), *small]) == 0
    path = str(find_checkpoint("clm"))
    capsys.readouterr()
    calls = (["clm"], [path], [*smoke("clm")[1:], *small, "--ckpt_path", path])
    losses = []
    for call in calls:
        assert main(["validate", *call, *QUICK]) == 0
        losses.append(value_of("val/loss", capsys.readouterr().out))
    assert len(set(losses)) == 1
    assert main(["validate", "clm", "--data.eval_examples=4", *QUICK]) == 0
    assert value_of("val/loss", capsys.readouterr().out) != losses[0]
    assert main(["validate", "clm", "--model.backbone.hidden_size=16", *QUICK]) == 2
    assert "do not fit" in capsys.readouterr().err


def test_a_run_started_from_python_is_measured_and_repeated_by_command(
    small: list[str], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmlab.backbones import BackboneConfig
    from lmlab.budget import BudgetConfig
    from lmlab.data.module import CorpusModule
    from lmlab.data.tokenizer import tokenizer_for
    from lmlab.objectives.clm import CLM
    from lmlab.session import RunConfig
    from lmlab.tokenizer import TokenizerConfig

    tokenizer = tokenizer_for(str(text), TokenizerConfig(vocab_size=400))
    objective = CLM(tokenizer, BackboneConfig(hidden_size=32, num_layers=1, num_heads=2), length=32)
    data = CorpusModule(text, tokenizer, objective.feed(), global_batch_size=4, eval_examples=8, seed=3)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    run = lmlab.fit(objective, data, BudgetConfig(steps=2, validations=1), RunConfig(name="python"), trainer=quiet, seed=3)
    capsys.readouterr()
    assert main(["validate", "python", *QUICK]) == 0
    expected = Record.load(run.record_path).metrics["val/loss"]
    assert value_of("val/loss", capsys.readouterr().out) == pytest.approx(expected, abs=DIGITS)
    assert set(Record.load(run.record_path).anchors) == {"uniform", "unigram", "bigram", "kneser_ney"}

    assert main(["fit", "-c", str(run.config_path), *QUICK]) == 0
    [again] = [r for r in list_runs(name="python") if r.path != run.path]
    assert Record.load(again.record_path).metrics["val/loss"] == expected
    first, second = lmlab.load(run), lmlab.load(again)
    assert first.tokenizer == second.tokenizer
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_unfinished_run_goes_on_where_it_was(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A record that says `running` and is held by nobody is that of a run that was killed."""
    assert main([*smoke("clm"), *small]) == 0
    [run] = list_runs()
    plain = json.loads(run.record_path.read_text(encoding="utf-8"))
    run.record_path.write_text(json.dumps({**plain, "status": "running"}), encoding="utf-8")
    assert main([*smoke("clm"), *small, "--resume", "must"]) == 0
    assert [r.path for r in list_runs()] == [run.path]
    assert Record.load(run.record_path).status == "finished"
    run.record_path.write_text(json.dumps({**plain, "status": "running"}), encoding="utf-8")
    assert main(["fit", "--resume", str(run.path)]) == 0, "without -c a run goes on with its own settings"
    assert [r.path for r in list_runs()] == [run.path]
    assert Record.load(run.record_path).status == "finished"
    capsys.readouterr()
    assert main([*smoke("clm"), *small, "--resume", "must"]) == 2
    assert "no unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.mask_prob=3"], "MLM.mask_prob = 3.0 is not possible"),
        (["--model.backbone.num_heads=3"], "it must divide hidden_size"),
        (["--model.optimizer.name=foo"], "there is no optimizer 'foo'"),
        (["--model.mask_prb=0.3"], "did you mean 'model.mask_prob'?"),
        (["--budget.tokens=1M"], "the budget has 2 limits: steps, tokens"),
        (["--run.keep=0"], "the newest checkpoint is always kept"),
        (["--trainer.max_steps=3"], "set budget.steps"),
        (["--trainer.logger=true"], "run.wandb"),
        (["--trainer.limit_train_batches=1"], "set budget.steps"),
        (["--trainer.log_every_n_steps=0"], "it counts steps"),
        (["--trainer.gradient_clip_val=-1"], "null for none"),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"], "run.keep"),
        (["--trainer.callbacks+=lmlab.callbacks.Checkpoints", "--trainer.callbacks.folder=x"], "run.keep"),
        (["--seed_everything=-1"], "no seed"),
        (["--seed_everything=true"], "no seed"),
        (["--run.wandb=yes"], "wandb"),
        (["--ckpt_path=x.ckpt"], "use --resume auto"),
        (["--trainer.precis=32"], "did you mean 'trainer.precision'?"),
    ],
)
def test_a_wrong_setting_ends_in_a_few_lines_and_leaves_no_run(
    arguments: list[str], said: str, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*smoke("mlm"), *small, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 6
    assert list_runs() == []


def test_what_lightning_refuses_is_noted_in_the_run(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*smoke("mlm"), *small, "--trainer.strategy=nope"]) == 2
    assert "nope" in capsys.readouterr().err
    [run] = list_runs()
    assert Record.load(run.record_path).status == "failed"


def test_a_checkpoint_of_somebody_else_is_not_measured(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*smoke("clm"), *small]) == 0
    [run] = list_runs()
    torch.save({"state_dict": {}}, run.checkpoints / "best.ckpt")
    capsys.readouterr()
    assert main(["validate", "clm", *QUICK]) == 2
    assert "was not written by lmlab" in capsys.readouterr().err


def test_measuring_asks_for_what_is_missing(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nothing"]) == 2
    assert "there is no run 'nothing'" in capsys.readouterr().err
    assert main(["validate", "--checkpoint", "best", "-c", "x.yaml"]) == 2
    assert "needs a RUN" in capsys.readouterr().err
    assert main(["fit", "-c", str(CONFIGS / "debug/smoke.yaml")]) == 2
    assert "is an overlay, and there is no base" in capsys.readouterr().err


def test_print_config_prints_and_trains_nothing(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*smoke("mlm"), *small, "--resume=auto", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^run:\n(  .*\n)*  resume: auto$", printed, re.MULTILINE)
    assert re.search(r"^  steps: 2$", printed, re.MULTILINE)
    assert list_runs() == []
