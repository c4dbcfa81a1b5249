"""Contrastive learning: against the equations, and what every objective must do."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lmlab.backbones import BackboneConfig
from lmlab.config import rebuild
from lmlab.data.batch import Batch, Example
from lmlab.data.corpus import TextCorpus
from lmlab.data.loader import EVAL_SEED
from lmlab.data.module import CorpusModule
from lmlab.data.sentence_rows import SentenceRows
from lmlab.errors import ConfigError
from lmlab.losses import Tally
from lmlab.objectives.contrast_config import ContrastConfig
from lmlab.objectives.contrastive import Contrastive
from lmlab.objectives.mlm import MLM
from lmlab.optim import OptimizerConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.sentence_toy import BATCH, contrastive, fitted, gradients, stamped
from tests.objectives.toy import LENGTH, Blocks, tokenizer

TOLERANCE = 1e-5  # float32 sums in another order
KINDS: list[dict[str, Any]] = [
    {"positives": "dropout", "dropout": 0.1, "mlp": "train"},
    {"positives": "word_repetition", "mlm_weight": 0.1},
    {"positives": "neighbours", "pooling": "mean", "temperature_kind": "learned"},
    {"family": "decoder", "pooling": "last", "mlp": "always"},
]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def labelled(made: Contrastive, num: int = 4) -> Batch:
    """Hand-made examples that bring a positive and a hard negative."""
    generator = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return generator.integers(10, 200, generator.integers(2, 9))

    cls, sep = made.tokenizer.cls_id, made.tokenizer.sep_id
    examples = []
    for index in range(num):
        ids = np.array([cls, *draw(), sep])
        extra = {"positive_ids": draw(), "negative_ids": draw().tolist()}
        examples.append(Example(index, index, ids, np.zeros(len(ids), np.int64), len(ids) - 2, None, extra))
    return made.feed().collate(examples, 0)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_hard_negatives_are_those_of_equation_5(tok: Tokenizer, weight: float) -> None:
    """Gao et al. 2021 (SimCSE): the positives and the hard negatives of the whole batch, one's own weighted."""
    made = contrastive(tok, positives="labelled", hard_negatives="labelled", hard_negative_weight=weight).train()
    batch = labelled(made)
    vectors = made.vectors(batch)
    h, plus, minus = (F.normalize(v, dim=-1) for v in vectors.detach().unbind(1))
    expected = 0.0
    for i in range(4):
        total = 0.0
        for j in range(4):
            total += math.exp(float(h[i] @ plus[j]) / 0.05)
            total += (weight if i == j else 1.0) * math.exp(float(h[i] @ minus[j]) / 0.05)
        expected -= math.log(math.exp(float(h[i] @ plus[i]) / 0.05) / total)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        part = made(batch).parts["contrastive"]
        part.sum.backward()
    assert part.sum.item() == pytest.approx(expected, rel=1e-4) and part.count.item() == 4
    assert made.flops(batch) == counter.get_total_flops()


def test_whose_text_is_known_already_is_no_negative(tok: Tokenizer) -> None:
    """Neither the anchor's own text, nor that of what it is to find, nor what a copy of it is to find; one softmax at a time."""
    made = contrastive(tok, positives="labelled", hard_negatives="labelled", temperature=0.5).train()
    texts = torch.tensor([[1, 2, 3], [4, 5, 2], [6, 2, 1], [7, 8, 8], [1, 9, 4]])
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(5, 3, 6), dim=-1)
    expected = 0.0
    for i in range(5):
        shares = {
            (j, view): math.exp(2 * float(vectors[i, 0] @ vectors[j, view]))
            for j in range(5)
            for view in (1, 2)
            if (j, view) == (i, 1) or (texts[j, view] not in texts[i, :2] and (view == 2 or texts[j, 0] != texts[i, 0]))
        }
        expected -= math.log(shares[i, 1] / sum(shares.values()))
    found = made.compare(vectors, {"texts": texts, "counts": {"contrastive": torch.tensor([5])}})
    assert found.parts["contrastive"].sum.item() == pytest.approx(expected, rel=TOLERANCE)


def test_two_dropout_views_of_a_text_are_equation_4(tok: Tokenizer) -> None:
    made = contrastive(tok, dropout=0.2, positives="dropout", mlp="train").train()
    batch, _ = stamped(made, tok)
    torch.manual_seed(3)
    vectors = F.normalize(made.vectors(batch), dim=-1)
    torch.manual_seed(3)
    part = made(batch).parts["contrastive"]
    scores = vectors[:, 0] @ vectors[:, 1].T / 0.05
    assert part.sum.item() == pytest.approx(F.cross_entropy(scores, torch.arange(BATCH), reduction="sum").item(), rel=TOLERANCE)
    assert (vectors[:, 0] - vectors[:, 1]).abs().max() > 1e-3


def test_a_sentence_that_is_there_twice_is_no_negative_of_itself(tok: Tokenizer) -> None:
    made = contrastive(tok).train()
    view, feed = Blocks(made.feed(), tok), made.feed()
    first, second = view[0], view[1]._replace(position=1)
    pair = made(feed.collate([first, second], 0)).parts["contrastive"]
    tripled = made(feed.collate([first, second, first], 0)).parts["contrastive"]
    # the copy finds its own view at least as easily: nothing is added to the first text's choice, the second one has one text more
    both = made.vectors(feed.collate([first, second, first], 0))
    h, plus = (F.normalize(v, dim=-1) for v in both.unbind(1))
    allowed = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    scores = (h @ plus.T / 0.05).masked_fill(~allowed, -torch.inf)
    assert tripled.sum.item() == pytest.approx(F.cross_entropy(scores, torch.arange(3), reduction="sum").item(), rel=1e-4, abs=1e-6)
    assert pair.count.item() == 2 and tripled.count.item() == 3


def test_what_is_fed(tok: Tokenizer) -> None:
    made = contrastive(tok, mlm_weight=0.5, mask_prob=0.4)
    feed = made.feed()
    assert made.mlm is not None and (feed.view, feed.length, feed.min_tokens) == ("sentences", LENGTH, 5)
    train, evaluation = feed.collate, feed.eval_collate
    assert isinstance(train, SentenceRows) and isinstance(evaluation, SentenceRows)
    assert train.masking == made.mlm.feed().collate != evaluation.masking == made.mlm.feed().eval_collate
    assert train.masking is not None and train.masking.prob == 0.4
    pairs = contrastive(tok, positives="neighbours").feed()
    assert (pairs.view, pairs.min_tokens) == ("sentence_pairs", 1)
    assert pairs.length - 3 == 2 * (LENGTH - 2), "as many tokens of text as two full rows hold"
    causal = contrastive(tok, family="decoder", pooling="last", min_tokens=2).feed()
    assert (causal.prefix, causal.suffix, causal.min_tokens) == ((tok.bos_id,), (tok.eos_id,), 2)


def test_vectors_do_not_depend_on_what_else_is_in_the_batch(tok: Tokenizer) -> None:
    for settings in ({"pooling": "mean"}, {"pooling": "cls"}, {"family": "decoder", "pooling": "last"}):
        made = contrastive(tok, **settings)
        texts = ["The fox", "The quick brown fox jumps over the dog", "dog"]
        together = made.embed(texts)
        torch.testing.assert_close(together, torch.cat([made.embed([t]) for t in texts]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
        assert made.embed([]).shape == (0, 24)


def test_embedding_is_at_rest_in_the_middle_of_training(tok: Tokenizer) -> None:
    """Without dropout, without the layer that is for training only, and without a trace."""
    made = contrastive(tok, dropout=0.5, positives="dropout", mlp="train").train()
    state = torch.random.get_rng_state()
    vector = made.embed(["The fox"])
    assert torch.equal(vector, made.embed(["The fox"])) and made.training and made.backbone.training
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = torch.tensor([[tok.cls_id, *tok.encode("The fox"), tok.sep_id]])
    with torch.no_grad():
        torch.testing.assert_close(vector, F.normalize(made.eval().backbone(ids)[:, 0], dim=-1))
    assert made.projector is not None
    always = contrastive(tok, mlp="always")
    assert always.projector is not None
    with torch.no_grad():
        expected = torch.tanh(always.projector(always.eval().backbone(ids)[:, 0]))
    torch.testing.assert_close(always.embed(["The fox"]), F.normalize(expected, dim=-1))


def test_validation_draws_the_same_views_every_time_and_leaves_no_trace(tok: Tokenizer) -> None:
    """Views, which the loss sees through the layer for training, are dropped out; what the evenness is of is not."""
    made = contrastive(tok, dropout=0.3, positives="dropout", mlp="train").eval()
    batch, _ = stamped(made, tok)
    first = made(batch)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    second = made(batch)
    assert torch.equal(torch.random.get_rng_state(), state) and not made.backbone.training
    assert first.parts["contrastive"].sum == second.parts["contrastive"].sum
    torch.manual_seed(EVAL_SEED)
    pooled = made.train().pooled(batch).unflatten(0, (BATCH, 2))
    assert made.projector is not None
    h, plus = F.normalize(torch.tanh(made.projector(pooled)), dim=-1).unbind(1)
    expected = F.cross_entropy(h @ plus.T / 0.05, torch.arange(BATCH), reduction="sum").item()
    assert first.parts["contrastive"].sum.item() == pytest.approx(expected, rel=1e-4)
    between = F.normalize(pooled, dim=-1)
    expected = (between[:, 0] - between[:, 1]).square().sum().item()
    assert first.monitors["alignment"].sum.item() == pytest.approx(expected, rel=1e-4)
    still = F.normalize(made.eval().pooled(batch)[::2], dim=-1)
    expected = (-2 * torch.pdist(still).square()).exp().sum().item()
    assert first.monitors["uniformity"].sum.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mlp", ["train", "always"])
def test_validation_metrics_are_those_of_the_vectors(tok: Tokenizer, mlp: str) -> None:
    """Straight from the definitions, over two batches, in numpy."""
    made = contrastive(tok, positives="neighbours", pooling="mean", mlp=mlp).eval()
    view, collate = Blocks(made.feed(), tok), made.feed().eval_collate
    batches = [collate([view[i] for i in range(first, first + 6)], 0) for first in (0, 6)]
    tally = Tally()
    with torch.no_grad():
        for batch in batches:
            tally.add(made(batch))
        assert made.projector is not None
        used = [made.pooled(b) if mlp == "train" else torch.tanh(made.projector(made.pooled(b))) for b in batches]
        vectors = [F.normalize(v, dim=-1).view(6, 2, -1).double().numpy() for v in used]
    means = tally.means(lambda table: table, made.summary)
    assert set(means) == {"loss", "retrieval_accuracy", "alignment", "uniformity", "effective_rank"}
    pairs = np.concatenate(vectors)
    assert means["alignment"] == pytest.approx(((pairs[:, 0] - pairs[:, 1]) ** 2).sum(-1).mean(), rel=TOLERANCE)
    spread = [math.exp(-2 * ((v[i, 0] - v[j, 0]) ** 2).sum()) for v in vectors for i in range(6) for j in range(i)]
    assert means["uniformity"] == pytest.approx(math.log(np.mean(spread)), rel=TOLERANCE)
    shares = np.linalg.svd(np.cov(pairs[:, 0], rowvar=False, bias=True), compute_uv=False)
    shares = shares[shares > 1e-12] / shares.sum()
    assert means["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_a_large_batch_is_measured_in_small_passes(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation has no micro-batches, and would else need more memory than the training."""
    for kind in ({"mlm_weight": 0.5}, {"positives": "neighbours", "mlm_weight": 0.5}, {"positives": "dropout", "dropout": 0.1}):
        made = contrastive(tok, **kind).eval()
        batch, _ = stamped(made, tok)
        whole = made(batch)
        monkeypatch.setattr("lmlab.objectives.contrastive.ROWS", 6)
        sizes: list[int] = []
        hook = made.backbone.register_forward_pre_hook(lambda module, args, sizes=sizes: sizes.append(len(args[0])))
        cut = made(batch)
        hook.remove()
        monkeypatch.undo()
        assert max(sizes) == 6
        assert whole.parts.keys() == cut.parts.keys() and whole.monitors.keys() == cut.monitors.keys()
        for name, part in (whole.parts | whole.monitors).items():
            other = (cut.parts | cut.monitors)[name]
            assert torch.equal(part.count, other.count)
            if "dropout" not in kind or name in ("uniformity", "mean_vector"):  # the others see what is dropped
                torch.testing.assert_close(part.sum, other.sum, rtol=1e-4, atol=1e-5)


def test_a_learned_temperature_moves_and_stays_in_its_range(tok: Tokenizer) -> None:
    made = contrastive(tok, temperature_kind="learned", temperature=0.01).train()
    assert made.logit_scale is not None and made.logit_scale.shape == (1,)
    batch, step = stamped(made, tok)
    coldest = made.eval()(batch)
    with torch.no_grad():
        made.logit_scale += 3  # as a step too far would
    assert made(batch).parts["contrastive"].sum == coldest.parts["contrastive"].sum and "temperature" not in coldest.monitors
    made.train()
    found = gradients(made, batch, step)
    assert made.logit_scale.item() == pytest.approx(math.log(100)) and found["logit_scale"].any()
    weights = fitted(contrastive(tok, temperature_kind="learned"), tok, BATCH)
    assert weights["logit_scale"].item() != pytest.approx(math.log(20), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_rebuilt_from_its_json(tok: Tokenizer, kind: dict[str, Any]) -> None:
    made = contrastive(tok, **kind)
    again = rebuild(json.loads(json.dumps(made.recipe())))
    again.configure_model()
    again.load_state_dict(made.state_dict())
    batch, step = stamped(made, tok)
    assert again.recipe() == made.recipe() and torch.equal(step.total(again.eval()(batch)), step.total(made.eval()(batch)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_parameter_gets_a_gradient_and_flops_are_those_torch_counts(tok: Tokenizer, kind: dict[str, Any]) -> None:
    made = contrastive(tok, **kind).train()
    batch, step = stamped(made, tok)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.total(made(batch)).backward()
    assert made.flops(batch) == counter.get_total_flops()
    assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_it_learns_one_batch_by_heart(tok: Tokenizer, kind: dict[str, Any]) -> None:
    made = contrastive(tok, **kind, temperature=0.5).train()
    batch, _ = stamped(made, tok)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        part = made(batch).parts["contrastive"]
        (part.sum / part.count).backward()
        optimizer.step()
        losses.append(part.sum.item() / BATCH)
    assert losses[-1] < 0.6 * losses[0] and made(batch).parts["contrastive"].sum.item() / BATCH < 1.0


def test_workers_change_no_bit(tok: Tokenizer) -> None:
    alone, helped = (fitted(contrastive(tok, mlm_weight=0.5), tok, 4, steps=3, num_workers=n) for n in (0, 2))
    assert all(torch.equal(alone[k], helped[k]) for k in alone)


def test_the_masked_part_is_what_mlm_alone_gives(tok: Tokenizer) -> None:
    made = contrastive(tok, mlm_weight=0.25, mask_prob=0.3).eval()
    batch, _ = stamped(made, tok)
    alone = MLM(tok, made.backbone_config, length=LENGTH, mask_prob=0.3)
    alone.configure_model()
    alone.backbone.load_state_dict(made.backbone.state_dict())
    assert made.mlm is not None
    alone.head.load_state_dict(made.mlm.head.state_dict())
    losses = made(batch)
    assert losses.parts["mlm"].weight == 0.25
    assert losses.parts["mlm"].sum.item() == pytest.approx(alone.eval()(batch["mlm"]).parts["mlm"].sum.item(), rel=TOLERANCE)
    assert "mlm/accuracy" in losses.monitors and made.products == (made, made.mlm)
    assert len({id(p) for p in made.parameters()}) == len(list(made.named_parameters(remove_duplicate=False)))


def test_samples_are_nearest_neighbours(tok: Tokenizer) -> None:
    made = contrastive(tok, pooling="mean").eval()
    view = Blocks(made.feed(), tok)
    made.texts_per_sample = 10  # type: ignore[misc]
    examples = [view[i] for i in range(30)]
    samples = made.samples([examples[3], *examples, examples[5]], step=4)  # what is there twice would be nearest to itself
    rows = [e.input_ids.tolist() for e in (examples[3], *examples[:3], *examples[4:])]
    vectors = torch.cat([F.normalize(made.pooled({"input_ids": torch.tensor([row])}), dim=-1) for row in rows])
    assert len(samples) == 3
    for sample, asked in zip(samples, (0, 10, 20), strict=True):
        query, *found = sample.pieces
        assert [p.by for p in (query, *found)] == ["corpus", "search", "search", "search"]
        assert query.text == " ".join(tok.decode(rows[asked]).split())
        cosines = (vectors @ vectors[asked]).tolist()
        expected = sorted(((c, i) for i, c in enumerate(cosines) if i != asked), reverse=True)[:3]
        assert [p.cosine for p in found] == pytest.approx([c for c, _ in expected], abs=1e-4)
        assert [p.text for p in found] == [" ".join(tok.decode(rows[i]).split()) for _, i in expected]


def test_of_neighbours_the_first_is_looked_for(tok: Tokenizer) -> None:
    made = contrastive(tok, positives="neighbours").eval()
    view = Blocks(made.feed(), tok)
    examples = [view[i] for i in range(2)]
    second = [int((e.extra or {})["second_start"]) for e in examples]
    [sample] = made.samples(examples, step=0)
    firsts = [" ".join(tok.decode(e.input_ids[1 : s - 1].tolist()).split()) for e, s in zip(examples, second, strict=True)]
    assert [p.text for p in sample.pieces] == firsts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"positives": "dropout"}, "two views of a text differ in nothing else"),
        ({"positives": "same"}, "not a choice"),
        ({"positives": "neighbours", "length": 2}, "between two special tokens"),
        ({"positives": "neighbours", "length": 17}, "max_length"),
        ({"positives": "neighbours", "length": 17, "family": "decoder", "pooling": "last"}, "max_length"),
        ({"positives": "word_repetition", "family": "decoder"}, "pooling"),
        ({"positives": "word_repetition", "family": "decoder", "pooling": "last", "mlm_weight": 0.1}, "mlm_weight"),
        ({"positives": "neighbours", "min_tokens": 4}, "nothing reads it"),
        ({"positives": "neighbours", "dup_rate": 0.1}, "nothing reads it"),
        ({"positives": "neighbours", "mask_prob": 0.4}, "nothing reads it"),
        ({"positives": "neighbours", "hard_negative_weight": 2.0}, "nothing reads it"),
        ({"positives": "neighbours", "hard_negatives": "labelled"}, "come from labelled data"),
        ({"positives": "neighbours", "temperature": 0.0}, "temperature"),
        ({"positives": "neighbours", "temperature": math.inf}, "positive and finite"),
        ({"positives": "neighbours", "mlm_weight": math.inf}, "finite and not negative"),
        ({"positives": "neighbours", "mlm_weight": -1.0}, "finite and not negative"),
        ({"positives": "neighbours", "mlm_weight": 1.0, "mask_prob": 1.0}, "between 0 and 1"),
        ({"positives": "word_repetition", "dup_rate": 1.5}, "a share of the tokens"),
        ({"positives": "labelled", "hard_negatives": "labelled", "hard_negative_weight": 0.0}, "positive and finite"),
        ({"positives": "neighbours", "temperature": 0.001, "temperature_kind": "learned"}, "at least 0.01"),
    ],
)
def test_impossible_settings_are_refused(tok: Tokenizer, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        family = given.pop("family", "encoder")
        length, backbone = given.pop("length", 16), BackboneConfig(hidden_size=24, num_heads=2, position="learned", max_length=16)
        Contrastive(tok, backbone, length=length, family=family, contrast=ContrastConfig(**given))


def test_a_batch_with_nothing_to_compare_is_refused(tok: Tokenizer, tmp_path: Any) -> None:
    made = contrastive(tok)
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n\n".join(f"The fox number {n} jumps over the dog. The dog sleeps on and on." for n in range(20)))
    given = {"tokenizer": tok, "feed": made.feed(), "cache_dir": str(tmp_path / "cache")}
    assert isinstance(CorpusModule(corpus, **given).corpus, TextCorpus)
    with pytest.raises(ConfigError, match="global batch of 1 is too small"):
        CorpusModule(corpus, global_batch_size=1, **given).train_dataloader()
    with pytest.raises(ConfigError, match="evaluation of 1 example"):
        CorpusModule(corpus, global_batch_size=4, eval_examples=1, **given).val_dataloader()
    assert len(CorpusModule(corpus, global_batch_size=4, eval_examples=2, **given).val_dataloader()) == 1


def test_no_optimizer_decays_the_temperature(tok: Tokenizer) -> None:
    made = contrastive(tok, temperature_kind="learned", mlp="always")
    made.optimizer_config = OptimizerConfig(name="adamw", weight_decay=0.1)
    groups = made.configure_optimizers().param_groups
    assert all(g["weight_decay"] == 0 for g in groups if any(p is made.logit_scale for p in g["params"]))
