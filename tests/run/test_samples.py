"""`samples.jsonl` written, torn, resumed."""

from __future__ import annotations

import json
from pathlib import Path

from lmlab.run.samples import Piece, Sample, append_samples, merge, origin, read_samples


def fill(step: int, word: str) -> Sample:
    return Sample(step=step, pieces=(Piece(text="It is a "), Piece(text=word, by="model", truth="truth", probability=0.5), Piece(text=".")))


def test_samples_come_back_in_order_and_any_language(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    odd = Sample(step=1, pieces=(Piece(text="话说\n天下\u2028"), Piece(text="\ud800\x00😀", by="model")))
    append_samples(path, [fill(20, "the")])
    append_samples(path, [fill(10, "a"), odd])
    assert read_samples(path) == [odd, fill(10, "a"), fill(20, "the")]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 10, 1]


def test_a_stage_written_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_samples(path, [fill(10, "old"), fill(20, "b")])
    append_samples(path, [fill(10, "new")])
    assert read_samples(path) == [fill(10, "new"), fill(20, "b")]


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_samples(path, [fill(10, "a")])
    with path.open("a") as file:
        file.write('[]\n{"step": 1}\n{"step": 2, "pieces": [{"text": "cut')
    assert read_samples(path) == [fill(10, "a")]
    assert read_samples(tmp_path / "none.jsonl") == []


def test_stages_of_one_text_have_one_origin() -> None:
    parts = Sample(
        step=3,
        pieces=(Piece(text="It is "), Piece(text="x", by="model", truth="a "), Piece(text="y", by="model", truth="truth"), Piece(text=".")),
    )
    assert origin(fill(1, "a")) == origin(fill(2, "the")) == origin(parts) == "It is a truth."
    assert origin(Sample(step=0, pieces=(Piece(text="Once"), Piece(text=" upon", by="model")))) == "Once"


def test_pieces_of_the_model_stay_apart() -> None:
    pieces = [Piece(text="a"), Piece(text="b"), Piece(text="c", by="model"), Piece(text="d", by="model"), Piece(text="e")]
    assert [p.text for p in merge(pieces)] == ["ab", "c", "d", "e"]


def test_what_was_found_comes_back_with_its_cosine(tmp_path: Path) -> None:
    found = (Piece(text="It rained.", by="search", cosine=0.91), Piece(text="It snowed.", by="search", cosine=-0.05))
    samples = [Sample(step=step, pieces=(Piece(text="The sun shone."), *found[step:])) for step in (0, 1)]
    append_samples(tmp_path / "samples.jsonl", samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples
    assert {origin(sample) for sample in samples} == {"The sun shone."}, "stages of one text, whatever was found"
