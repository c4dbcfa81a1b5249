"""Bad input, through the command a person types: a few lines that say what, where, why and what to do; and nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lmlab.cli import main
from lmlab.run.record import Record

REPOSITORY = Path(__file__).parents[1]
PARAGRAPHS = [f"Paragraph {n}: the quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun." for n in range(30)]
SMALL = [
    "--tokenizer.vocab_size=400",
    "--tokenizer.num_sentinels=8",
    "--model.length=16",
    "--data.global_batch_size=4",
    "--data.eval_examples=4",
]
SHORT = [
    "--budget.tokens=null",
    "--budget.steps=2",
    "--budget.validations=1",
    "--budget.checkpoints=1",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fit(*more: str, config: str = "clm") -> int:
    return main(["fit", "-c", str(REPOSITORY / "configs/pretrain" / f"{config}.yaml"), *SMALL, *SHORT, *more])


def corpus(folder: Path, content: bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


GOOD = "\n\n".join(PARAGRAPHS).encode()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.corpus=missing.txt"], "missing.txt"),
        (["--data.corpus=nothing/*.txt"], "nothing/*.txt"),
        (["--budget.steps=0"], "budget.steps"),
        (["--model.lenght=3"], "did you mean"),
        (["--model.backbone.num_heads=3"], "head_size"),
        (["--model.backbone.position=rotary"], "rope"),
        (["--data.micro_batch_size=3"], "global_batch_size"),
        (["--trainer.max_steps=5"], "budget"),
        (["--trainer.accumulate_grad_batches=2"], "micro_batch_size"),
        (["--run.name=../../out"], "name"),
        (["--optimizer.lr=1"], "optimizer"),
    ],
)
def test_settings(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    corpus(here, GOOD)
    given = arguments if any(a.startswith("--data.corpus") for a in arguments) else ["--data.corpus=text.txt", *arguments]
    assert fit(*given) == 2
    printed = capsys.readouterr().err
    message = printed[printed.index("error: ") :]
    assert expected in message and "do:" in message
    assert len(message.splitlines()) <= 8 and "Traceback" not in message
    finished = [p for p in here.rglob("record.json") if Record.load(p).status in ("running", "finished")]
    assert not finished, "no run is left that looks alive"


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (b"", "text.txt", "empty"),
        (b"\n\n \n\n", "text.txt", "empty"),
        (b'{"text": "fine"}\n{"text": \n', "rows.jsonl", "rows.jsonl:2"),
        (b'{"text": "fine"}\n{"body": "x"}\n', "rows.jsonl", "rows.jsonl:2"),
    ],
)
def test_corpora_that_cannot_be_used(here: Path, capsys: pytest.CaptureFixture[str], content: bytes, name: str, expected: str) -> None:
    corpus(here, content, name)
    assert fit(f"--data.corpus={name}") == 2
    message = capsys.readouterr().err
    assert expected in message and name in message and "Traceback" not in message
    assert not list(here.glob("cache/stores/*/train")), "no store is left"


@pytest.mark.parametrize(
    "fault",
    [
        b"an invalid byte \xff\xfe in the middle of a line",
        b"a NUL \x00 byte",
        "a lone surrogate \ud800 here".encode("utf-8", "surrogatepass"),
        b"\n\n   \n\n\t\n\n",
    ],
)
def test_faults_in_a_text_are_cleaned_and_the_run_goes_on(here: Path, fault: bytes) -> None:
    corpus(here, GOOD + b"\n\n" + fault + b"\n\n" + GOOD.replace(b"fox", b"cat"))
    assert fit("--data.corpus=text.txt") == 0
    (record,) = here.glob("runs/clm/*/record.json")
    assert Record.load(record).status == "finished"


def test_a_truncated_store_is_named_and_mended_by_deleting_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus(here, GOOD)
    assert fit("--data.corpus=text.txt") == 0
    tokens = next(here.glob("cache/stores/*/train/tokens*"))
    os.truncate(tokens, tokens.stat().st_size - 7)
    capsys.readouterr()
    code = fit("--data.corpus=text.txt")
    message = capsys.readouterr().err
    assert (code == 2 and "tokens" in message and "do:" in message) or code == 0, "refused with a remedy, or built anew"
    statuses = [Record.load(p).status for p in here.glob("runs/clm/*/record.json")]
    assert statuses.count("finished") == (1 if code else 2) and "running" not in statuses


def test_a_config_that_is_no_mapping_or_no_yaml(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("just words", "a: [1, 2", "model: {class_path: lmlab.objectives.mlm.MLM, class_path: x}"):
        (here / "bad.yaml").write_text(content)
        assert main(["fit", "-c", "bad.yaml"]) == 2
        message = capsys.readouterr().err
        assert "bad.yaml" in message and "Traceback" not in message
    assert json.dumps(sorted(p.name for p in here.iterdir())) == '["bad.yaml"]'
