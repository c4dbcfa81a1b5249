"""Samples that objectives write: texts by corpus and model, put together without loss."""

from __future__ import annotations

import numpy as np
import torch

from lmlab.data.batch import Example
from lmlab.run.samples import origin
from tests.objectives.toy import LENGTH, Blocks, batches, objective, tokenizer

TOK = tokenizer()


def test_every_objective_writes_samples_that_know_their_truth() -> None:
    for name in ("clm", "mlm", "span_corruption"):
        made = objective(name, TOK)
        made.configure_model()
        feed = made.feed()
        examples = [Blocks(feed, TOK)[i]._replace(position=i) for i in range(3)]
        samples = made.eval().samples(examples, step=7)
        assert len(samples) == 3 and all(s.step == 7 for s in samples)
        assert all(any(p.by == "model" for p in s.pieces) for s in samples)
        assert samples == made.samples(examples, step=7)
        if name != "clm":
            assert all(p.truth is not None for s in samples for p in s.pieces if p.by == "model")
        assert len(made.predict_step(batches(name, TOK)[0], 0)) == 4


def test_stages_of_a_text_know_each_other_though_masks_cut_through_characters() -> None:
    ids = TOK.encode("話說天下大勢，分久必合，合久必分。", parse_special=False)[:LENGTH]
    example = Example(0, 0, np.array(ids), np.zeros(len(ids), dtype=int), len(ids))
    origins = set()
    for seed in range(3):
        made = objective("mlm", TOK, mask_prob=0.5)
        torch.manual_seed(seed)
        made.configure_model()
        [sample] = made.samples([example], step=seed)
        assert sum(piece.by == "model" for piece in sample.pieces) > 1
        origins.add(origin(sample))
    assert origins == {TOK.decode(ids)}
