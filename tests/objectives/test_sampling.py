"""Putting texts together from tokens: nothing is lost and nothing is split inside a character."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.objectives.sampling import merge, pieces_of
from lmlab.run.samples import Piece
from tests.objectives.toy import batches, objective, tokenizer

TOK = tokenizer()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab 中国é😀.", min_size=1, max_size=20))
def test_the_pieces_are_the_text(text: str) -> None:
    ids = TOK.encode(text)
    pieces = pieces_of(TOK, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == TOK.decode(ids)


def test_pieces_of_the_model_stay_apart() -> None:
    pieces = [Piece(text="a"), Piece(text="b"), Piece(text="c", by="model"), Piece(text="d", by="model"), Piece(text="e")]
    assert [p.text for p in merge(pieces)] == ["ab", "c", "d", "e"]


def test_every_objective_writes_samples_that_know_their_truth() -> None:
    for name in ("clm", "mlm", "span_corruption"):
        made = objective(name, TOK)
        made.configure_model()
        feed = made.feed()
        from tests.objectives.toy import Blocks

        examples = [Blocks(feed, TOK)[i]._replace(position=i) for i in range(3)]
        samples = made.eval().samples(examples, step=7)
        assert len(samples) == 3 and all(s.step == 7 for s in samples)
        assert all(any(p.by == "model" for p in s.pieces) for s in samples)
        assert samples == made.samples(examples, step=7)
        if name != "clm":
            assert all(p.truth is not None for s in samples for p in s.pieces if p.by == "model")
        assert len(made.predict_step(batches(name, TOK)[0], 0)) == 4
