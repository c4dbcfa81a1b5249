"""`lmlab embed`: a table, files, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lmlab
from lmlab.budget import BudgetConfig
from lmlab.cli import main
from lmlab.data.module import CorpusModule
from lmlab.data.store import StoreConfig
from lmlab.loading import untrained
from lmlab.rulers.retrieval import halves
from lmlab.session import RunConfig
from tests.objectives.sentence_toy import contrastive
from tests.objectives.toy import tokenizer

TEXTS = ["The quick fox", "A lazy dog sleeps", "狐"]
STORE = StoreConfig(test_share=0.3)
LINES = ["\x0cA page", *TEXTS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("embed")
    (folder / "text.txt").write_text("\n\n".join(f"The fox number {n} jumps over it. The dog sleeps on and on." for n in range(40)))
    made = contrastive(tokenizer())
    data = CorpusModule(folder / "text.txt", made.tokenizer, made.feed(), global_batch_size=4, cache_dir=str(folder / "cache"), store=STORE)
    budget, config = BudgetConfig(steps=2, validations=1), RunConfig(name="e", root=str(folder))
    return str(lmlab.fit(made, data, budget, config, trainer={"accelerator": "cpu", "enable_progress_bar": False}).path)


def test_a_few_texts_are_compared_in_a_table(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", run, *(word for text in TEXTS for word in ("--text", text))]) == 0
    printed = capsys.readouterr().out
    vectors = lmlab.load(run).embed(TEXTS)  # type: ignore[operator]
    assert "1.00" in printed and f"{vectors[0] @ vectors[1]:.2f}" in printed and "lazy" in printed


def test_files_hold_the_vectors(run: str, tmp_path: Path) -> None:
    """One for each line; a byte order mark is none of it, a form feed is not the end of one."""
    (tmp_path / "in.txt").write_bytes("\ufeff\r\n".encode() + "\r\n".join([*LINES, " "]).encode())
    expected = lmlab.load(run).embed(LINES).numpy()  # type: ignore[operator]
    for name in ("v.npy", "v.jsonl", "fresh.npy"):
        fresh = ["--weights", "fresh"] if name == "fresh.npy" else []
        assert main(["embed", run, "--file", str(tmp_path / "in.txt"), "--output", str(tmp_path / name), *fresh]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == LINES
    np.testing.assert_allclose([row["vector"] for row in rows], expected, rtol=1e-6)
    fresh = torch.from_numpy(np.load(tmp_path / "fresh.npy"))
    assert fresh.shape == expected.shape and (fresh - torch.from_numpy(expected)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--text", "a", "--output", "v.csv"], "end it in .npy or .jsonl"),
        (["--text", "a", "--file", "b"], "give one of them"),
        (["--file", "missing.txt"], "cannot be read"),
        ([word for n in range(13) for word in ("--text", str(n))], "too many for a table"),
    ],
)
def test_what_cannot_be_is_refused(run: str, given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", run, *given]) == 2
    assert said in capsys.readouterr().err


def test_input_that_is_no_text_is_refused(run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfea\n"), encoding="utf-8"))
    assert main(["embed", run]) == 2
    said = capsys.readouterr().err
    assert "standard input" in said and "UTF-8" in said and "None" not in said


def test_halves_of_passages_are_looked_for(
    run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted here by loops, from the same vectors."""
    monkeypatch.setenv("LMLAB_RUNS", str(Path(run).parents[1]))
    text = tmp_path / "other.txt"
    text.write_text("\n\n".join(f"Animal {n} runs to tree {n}. Tree {n} is where animal {n} sleeps." for n in range(200)), encoding="utf-8")
    assert main(["retrieve", "e", "e", "--length", "100", "--corpus", str(text), "--split", "test", "--limit", "5"]) == 0
    chance, fresh, one, same = (line.split()[-2:] for line in capsys.readouterr().out.splitlines()[-4:])
    assert main(["retrieve", "e", "--length", "100", "--corpus", str(text), "--split", "test", "--limit", "5", "--checkpoint", "last"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].split()[-2:] == fresh, "the untrained network is always the same one"
    assert chance == ["chance", "20.0%"] and one == same != fresh
    model = lmlab.load(run)
    passages = halves(CorpusModule(text, model.tokenizer, model.feed(), cache_dir=str(tmp_path)), "test", 100, 5)
    sides = [model.embed([p[side] for p in passages]).tolist() for side in (0, 1)]  # type: ignore[operator]
    ranks = []
    for asked, others in (sides, sides[::-1]):
        for i in range(5):
            cosines = [sum(a * b for a, b in zip(asked[i], other, strict=True)) for other in others]
            ranks.append(1 + sum(cosine > cosines[i] for cosine in cosines))
    assert one == [f"{sum(rank == 1 for rank in ranks) / 10:.1%}", f"{sum(1 / rank for rank in ranks) / 10:.3f}"]


def test_passages_come_from_the_text_that_a_run_has_not_seen(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The text is split as the run's was, not in the usual way."""
    model = lmlab.load(run)
    text = Path(run).parents[1] / "text.txt"
    own, usual = (
        len(halves(CorpusModule(text, model.tokenizer, model.feed(), store=store), "test", 40)) for store in (STORE, StoreConfig())
    )
    assert main(["retrieve", run, "--split", "test", "--length", "40"]) == 0
    assert own != usual and f"{own} passages of up to 40 tokens, test text" in capsys.readouterr().out


def test_an_untrained_network_is_drawn_by_its_seed_and_without_dropout(run: str) -> None:
    trained = lmlab.load(run)
    state = torch.get_rng_state()
    first, same, other = untrained(trained), untrained(trained), untrained(trained, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and not first.training
    weights = [torch.cat([p.flatten() for p in one.parameters()]) for one in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and (weights[0] - weights[2]).abs().max() > 1e-2


@pytest.mark.parametrize(("given", "said"), [(["--limit", "1"], "too few to search"), (["--corpus", "austin"], "austen")])
def test_what_cannot_be_retrieved_is_refused(run: str, given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retrieve", run, *given]) != 0
    assert said in capsys.readouterr().err
