from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fusion import fuse

ITEMS = "abcdefgh"
RANKING = st.lists(st.sampled_from(ITEMS), unique=True)
WEIGHTS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@given(RANKING, RANKING, WEIGHTS, WEIGHTS, st.integers(1, 100))
def test_scores_are_the_sum_of_weighted_reciprocal_ranks(one, other, w, v, constant):
    exact = {
        item: sum(
            Fraction(weight) / (constant + ranking.index(item) + 1)
            for ranking, weight in ((one, w), (other, v))
            if item in ranking
        )
        for item in ITEMS
    }
    fused = fuse([one, other], [w, v], constant)
    assert {item for item, _ in fused} == {item for item in ITEMS if exact[item]}
    assert [score for _, score in fused] == pytest.approx([float(exact[item]) for item, _ in fused])
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)


@given(RANKING, RANKING)
def test_a_ranking_without_weight_has_no_say(one, other):
    assert [item for item, _ in fuse([one, other], [0.3, 0])] == one
    assert fuse([one], [0.3]) == fuse([one, other], [0.3, 0])


@given(RANKING, RANKING, st.sampled_from([0.25, 0.5, 0.75]))
def test_better_in_both_is_better_fused(one, other, weight):
    place = {item: rank for rank, (item, _) in enumerate(fuse([one, other], [weight, 1 - weight]))}
    both = [item for item in one if item in other]
    for first in both:
        for second in both:
            if one.index(first) < one.index(second) and other.index(first) < other.index(second):
                assert place[first] < place[second]


def test_equal_scores_go_by_the_first_ranking():
    assert [item for item, _ in fuse([["a", "b"], ["b", "a"]], [0.5, 0.5])] == ["a", "b"]
    assert [item for item, _ in fuse([["a"], ["b"]], [0.5, 0.5])] == ["a", "b"]


def test_weights_must_fit():
    for weights in ([1.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="weights"):
            fuse([["a"], ["b"]], weights)
