"""GradCache: the gradient of the whole batch, with the dropout of the first reading, whatever is beside the comparison."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmlab.nn.seeding import reseed
from lmlab.objectives import grad_cache
from lmlab.tokenizer import Tokenizer
from tests.objectives.sentence_toy import contrastive, fitted, gradients, stamped
from tests.objectives.toy import tokenizer

FLOAT_NOISE = 1e-6  # of the largest element: float32 sums taken in another order
HALF_NOISE = 0.05  # relative: eight bits of mantissa, in products of another shape
SETTINGS: list[dict[str, Any]] = [
    {},
    {"mlp": "always", "pooling": "mean"},
    {"temperature_kind": "learned"},
    {"mlm_weight": 0.5},
    {"temperature_kind": "learned", "mlm_weight": 0.5, "mlp": "train", "positives": "neighbours"},
    {"family": "decoder", "pooling": "last"},
]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    largest = max(value.abs().max() for value in a.values())
    return a.keys() == b.keys() and all(bool((a[k] - b[k]).abs().max() <= FLOAT_NOISE * largest) for k in a)


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("micro", [1, 2])
def test_gradients_are_those_of_the_whole_batch(tok: Tokenizer, micro: int, settings: dict[str, Any]) -> None:
    made = contrastive(tok, **settings).train()
    whole = gradients(made, *stamped(made, tok))
    cut = gradients(made, *stamped(made, tok, micro))
    assert cut.keys() == {name for name, _ in made.named_parameters()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in cut.values())
    assert same(whole, cut)


def test_the_second_reading_drops_what_the_first_did(tok: Tokenizer) -> None:
    """Bit for bit, with a masked language model that draws dropout of its own in between."""
    made = contrastive(tok, dropout=0.3, positives="dropout", mlp="train", mlm_weight=1.0).train()
    seen: list[torch.Tensor] = []
    plain = made.vectors
    made.vectors = lambda batch: seen.append(found := plain(batch)) or found  # type: ignore[method-assign]
    gradients(made, *stamped(made, tok, 2))
    first, second = seen[:4], seen[4:]
    assert [v.requires_grad for v in seen] == [False] * 4 + [True] * 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][:, 0], first[0][:, 1]), "two views of one text"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler has some of its own
def test_compiled_the_second_reading_drops_what_the_first_did(tok: Tokenizer) -> None:
    """They are two graphs, and the second has dropout of the masked language model too."""
    made = contrastive(tok, dropout=0.3, positives="dropout", mlm_weight=0.5).train()
    batch, _ = stamped(made, tok, 4)
    [chunk] = made.chunks(batch, 8)
    ones = torch.ones_like(made.vectors(chunk)).detach()
    made.compile()
    sums = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            first = made(chunk, "vectors").sum().item()
        torch.manual_seed(seed)
        second = made({**chunk, "gradient": ones, "parameter_gradients": ()}, "replayed").loss.item()
        assert first == pytest.approx(second, rel=1e-4)
        sums.append(first)
    assert abs(sums[0] - sums[1]) > 1e-2


def test_every_step_drops_something_else(tok: Tokenizer) -> None:
    made = contrastive(tok, dropout=0.3, positives="dropout").train()
    batch, step = stamped(made, tok, 2)
    other = step._replace(window=step.window._replace(seed=step.window.seed + 1))
    found = [gradients(made, batch, of) for of in (step, step, other)]
    assert same(*found[:2]) and not same(found[0], found[2])


def test_gradients_with_dropout_are_those_of_the_vectors_that_were_compared(tok: Tokenizer) -> None:
    """An independent reading: all chunks with gradients, each under its seed, compared and differentiated at once."""
    made = contrastive(tok, dropout=0.3, positives="dropout").train()
    batch, step = stamped(made, tok, 2)
    cached = gradients(made, batch, step)
    seeds: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grad_cache, "reseed", lambda seed: seeds.append(seed) or reseed(seed))
        made.passes(batch, step)
    made.zero_grad()
    vectors = []
    for chunk, seed in zip(made.chunks(batch, 2), seeds, strict=True):
        torch.manual_seed(seed)
        vectors.append(made.vectors(chunk))
    assert len(set(seeds)) == 4
    step.total(made.compare(torch.cat(vectors), batch)).backward()
    assert same({name: p.grad for name, p in made.named_parameters() if p.grad is not None}, cached)


def test_weights_cast_without_gradients_are_not_used_with_them(tok: Tokenizer) -> None:
    made = contrastive(tok, mlp="always").train()
    found = []
    for micro in (8, 2):
        with torch.autocast("cpu", torch.bfloat16):  # each with a cache of its own, which the first reading fills
            found.append(gradients(made, *stamped(made, tok, micro)))
    whole, cut = found
    assert whole.keys() == cut.keys()
    for name, gradient in whole.items():
        assert (gradient - cut[name]).norm() < HALF_NOISE * gradient.norm(), name


def test_what_is_logged_is_that_of_the_whole_batch(tok: Tokenizer) -> None:
    made = contrastive(tok, mlm_weight=0.5, temperature_kind="learned").train()
    reports = []
    for micro in (8, 2):
        batch, step = stamped(made, tok, micro)
        outcomes = [one() for one in made.passes(batch, step)]
        sums: dict[str, float] = {}
        for outcome in outcomes:
            assert outcome.report is not None
            for name, part in (outcome.report.parts | outcome.report.monitors).items():
                sums[name] = sums.get(name, 0.0) + part.sum.item()
                sums[f"{name} count"] = sums.get(f"{name} count", 0) + part.count.item()
        reports.append(sums)
    assert reports[0] == pytest.approx(reports[1], rel=1e-5)
    assert set(reports[0]) == {n + c for n in ("contrastive", "mlm", "temperature") for c in ("", " count")}


@pytest.mark.parametrize("settings", [{}, {"temperature_kind": "learned", "mlm_weight": 0.5}], ids=str)
def test_a_run_in_small_passes_is_that_in_large_ones(tok: Tokenizer, settings: dict[str, Any]) -> None:
    """At a mild temperature: a sharp one multiplies what is rounded from step to step."""
    whole = fitted(contrastive(tok, temperature=0.5, **settings), tok, 8)
    cut = fitted(contrastive(tok, temperature=0.5, **settings), tok, 2)
    assert same(whole, cut)
