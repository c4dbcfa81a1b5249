"""InfoNCE: against loops, torch's cross-entropy on a matrix written by hand, and the equation with hard negatives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lmlab.nn.info_nce import excluded, info_nce

TOLERANCE = 1e-5  # float32 sums in another order; also where little is left of a difference


def test_it_is_the_softmax_of_the_equation() -> None:
    """Gao et al. 2021 (SimCSE), equation 4, one exponential at a time."""
    torch.manual_seed(0)
    anchors, candidates, temperature = torch.randn(5, 8), torch.randn(5, 8), 0.05
    found = info_nce(anchors, candidates, torch.arange(5), torch.tensor([1 / temperature]))
    for i in range(5):
        cosine = [float(anchors[i] @ candidates[j] / anchors[i].norm() / candidates[j].norm()) for j in range(5)]
        share = math.exp(cosine[i] / temperature) / sum(math.exp(c / temperature) for c in cosine)
        assert found.nats[i].item() == pytest.approx(-math.log(share), rel=TOLERANCE, abs=TOLERANCE)
        assert bool(found.is_right[i]) == (max(cosine) == cosine[i])


def test_it_is_the_cross_entropy_of_a_matrix_written_by_hand() -> None:
    anchors, candidates = torch.eye(3), torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 2.0]])
    scores = torch.tensor([[1.0, 0.6, 0], [0, 0.8, 0], [0, 0, 1.0]]) * 10
    found = info_nce(anchors, candidates, torch.tensor([1, 1, 2]), torch.tensor([10.0]))
    torch.testing.assert_close(found.nats, F.cross_entropy(scores, torch.tensor([1, 1, 2]), reduction="none"))
    assert found.is_right.tolist() == [False, True, True]


def test_half_precision_around_it_changes_nothing() -> None:
    torch.manual_seed(0)
    anchors, candidates = torch.randn(4, 16), torch.randn(4, 16)
    plain = info_nce(anchors, candidates, torch.arange(4), torch.tensor([20.0])).nats
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(anchors, candidates, torch.arange(4), torch.tensor([20.0])).nats, plain)


def test_what_is_weighted_counts_that_often_and_what_is_left_out_not_at_all() -> None:
    torch.manual_seed(0)
    anchors, candidates = torch.randn(2, 4), torch.randn(3, 4)
    weights = torch.tensor([[1.0, 2.5, 0.0], [1.0, 1.0, 3.0]])
    found = info_nce(anchors, candidates, torch.tensor([0, 1]), torch.tensor([2.0]), weights.log())
    for i in range(2):
        terms = [float(w * math.exp(2 * F.cosine_similarity(anchors[i], c, dim=0))) for w, c in zip(weights[i], candidates, strict=True)]
        assert found.nats[i].item() == pytest.approx(-math.log(terms[i] / sum(terms)), rel=TOLERANCE, abs=TOLERANCE)


def test_copies_of_the_anchor_and_of_its_positive_are_excluded_and_positives_of_copies() -> None:
    """This rank has the last four of six examples."""
    all_texts = torch.tensor([[4, 1, 9], [3, 8, 6], [1, 5, 6], [2, 6, 2], [3, 7, 8], [1, 9, 1]])
    positives = torch.tensor([2, 3, 4, 5])
    found = excluded(all_texts[2:], all_texts, positives)
    assert found.shape == (4, 12)
    for i in range(4):
        anchor, own, _ = all_texts[i + 2].tolist()
        for j in range(12):
            of, text = all_texts[j % 6, 0], all_texts[j % 6, 1 + j // 6]
            same = text in (anchor, own) or (j < 6 and of == anchor)
            assert bool(found[i, j]) == bool(same and j != i + 2)
    assert found.sum() == 3 + 3 + 1 + 4
