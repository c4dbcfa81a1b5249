"""Samples that objectives write: texts by corpus and model, put together without loss."""

from __future__ import annotations

from tests.objectives.toy import Blocks, batches, objective, tokenizer

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
