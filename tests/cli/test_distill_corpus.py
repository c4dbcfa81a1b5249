"""A teacher writes a corpus: the same whatever interrupts it, and read by a student with another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig
from lmlab.checkpoint import write_checkpoint
from lmlab.cli import main
from lmlab.data.corpus import open_corpus
from lmlab.data.loader import OrderedView
from lmlab.errors import ConfigError, DataError
from lmlab.objectives import corpus_writing
from lmlab.objectives.clm import CLM
from lmlab.objectives.corpus_writing import CorpusWritingConfig, write_corpus
from lmlab.objectives.ngram import NGram
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, Blocks, tokenizer

WRITING: dict[str, Any] = {"tokens": 300, "length": LENGTH, "prompt_length": 5, "batch_size": 8}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def teacher(tok: Tokenizer) -> CLM:
    seed_everything(0, verbose=False)
    made = CLM(tok, BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, init_std=0.2), length=LENGTH)
    made.configure_model()
    return made.eval()


def prompts(teacher: CLM) -> OrderedView:
    return OrderedView(Blocks(teacher.feed(), teacher.tokenizer), seed=1)  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_is_as_long_as_asked_and_a_function_of_the_seed(teacher: CLM, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.jsonl"
        written = write_corpus(teacher, path, CorpusWritingConfig(**WRITING, seed=seed))
        assert sum(line["tokens"] for line in lines(path)) == written >= 300
    texts = [[document.text for document in open_corpus(str(tmp_path / f"{name}.jsonl")).documents()] for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 8, "documents that begin alike go on differently"


def test_documents_go_on_from_real_beginnings(teacher: CLM, tok: Tokenizer, tmp_path: Path) -> None:
    config = CorpusWritingConfig(**WRITING)
    write_corpus(teacher, tmp_path / "a.jsonl", config, prompts(teacher))
    view, cut = prompts(teacher), 0
    for number, line in enumerate(lines(tmp_path / "a.jsonl")):
        example = view[number].cut(5)
        last = example.input_ids[example.document_ids == example.document_ids[-1]]
        cut += len(last) < 5
        assert line["text"].startswith(tok.decode(last).rstrip("\ufffd")) and line["tokens"] <= LENGTH - 5
    assert cut, "some blocks begin with the end of another document"


def test_an_interrupted_corpus_goes_on_as_if_nothing_had_happened(teacher: CLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CorpusWritingConfig(**WRITING)
    write_corpus(teacher, tmp_path / "whole.jsonl", config)
    original, calls = corpus_writing.write_documents, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(corpus_writing, "write_documents", dying)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(teacher, tmp_path / "cut.jsonl", config)
    monkeypatch.setattr(corpus_writing, "write_documents", original)
    part = tmp_path / "cut.jsonl.part"
    assert len(lines(part)) == 16 and not (tmp_path / "cut.jsonl").exists()
    with part.open("a") as file:
        file.write('{"text": "half a li')
    with pytest.raises(ConfigError, match="begun with another teacher or other settings"):
        write_corpus(teacher, tmp_path / "cut.jsonl", CorpusWritingConfig(**WRITING, seed=5))
    write_corpus(teacher, tmp_path / "cut.jsonl", config)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not part.exists()
    with pytest.raises(ConfigError, match="is there already"):
        write_corpus(teacher, tmp_path / "cut.jsonl", config)


@pytest.mark.parametrize("ends", ["bos_id", "eos_id"])
def test_a_document_ends_where_the_teacher_ends_it(ends: str, tok: Tokenizer, tmp_path: Path) -> None:
    made = CLM(tok, BackboneConfig(hidden_size=16, num_layers=1, num_heads=1, head_bias=True), length=LENGTH)
    made.configure_model()
    assert made.head.bias is not None
    torch.nn.init.constant_(made.head.bias[getattr(tok, ends)], 50.0)
    with pytest.raises(DataError, match="ends every text at once"):
        write_corpus(made, tmp_path / "a.jsonl", CorpusWritingConfig(**WRITING))


def test_whoever_cannot_write_that_is_refused_before_it_begins(teacher: CLM, tok: Tokenizer, tmp_path: Path) -> None:
    counting = NGram(tok, length=LENGTH)
    counting.configure_model()
    short = CLM(tok, BackboneConfig(hidden_size=16, num_layers=1, num_heads=1, position="learned", max_length=LENGTH - 1), length=4)
    short.configure_model()
    for writer, name, why in (
        (counting, "a.jsonl", "a NGram cannot write"),
        (short, "a.jsonl", "15 learned positions"),
        (teacher, "a.txt", r"end in .jsonl|ends in .jsonl"),
    ):
        with pytest.raises(ConfigError, match=why):
            write_corpus(writer, tmp_path / name, CorpusWritingConfig(**WRITING))
    assert not list(tmp_path.iterdir())


def test_unusual_ends_of_lines_in_a_text_are_none_of_the_file(tmp_path: Path) -> None:
    part = tmp_path / "a.jsonl.part"
    whole = [json.dumps({"text": f"{n} \u2028 \x85", "tokens": 3}, ensure_ascii=False) + "\n" for n in range(4)]
    part.write_text("".join(whole) + '{"text": "ha', encoding="utf-8")
    assert corpus_writing._whole_batches(part, 2) == whole
    part.write_bytes(part.read_bytes()[:-4] + "é".encode()[:1])  # cut inside a character
    assert corpus_writing._whole_batches(part, 3) == whole[:3]


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"length": 5}, {"temperature": 0.0}, {"batch_size": 0}, {"top_p": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CorpusWritingConfig(**WRITING | settings)


def test_the_command_writes_what_a_student_with_another_vocabulary_reads(
    teacher: CLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path / "runs"))
    content: dict[str, Any] = {"state_dict": teacher.state_dict()}
    teacher.on_save_checkpoint(content)
    write_checkpoint(content, tmp_path / "teacher.ckpt")
    output = str(tmp_path / "corpus.jsonl")
    assert main(["distill-corpus", "RUN", "--output", output, "--tokens", "2k", "--prompt_tokens", "5"]) == 2
    assert "--prompt_tokens has no effect" in capsys.readouterr().err
    assert main(["distill-corpus", str(tmp_path / "teacher.ckpt"), "--output", output, "--tokens", "2k", "--batch_size", "64"]) == 0
    settings = ["--model.backbone={hidden_size: 16, num_layers: 1, num_heads: 2}", "--model.length=16", "--tokenizer={kind: characters}"]
    root = Path(__file__).parents[2] / "configs"
    code = main(
        ["fit", "-c", str(root / "pretrain/mlm.yaml"), "-c", str(root / "debug/smoke.yaml"), *settings, f"--data.corpus={output}",
         "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    )  # fmt: skip
    assert code == 0
