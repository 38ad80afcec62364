import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.measures import mean, recall_at

IDS = [f"c{i}" for i in range(12)]


@given(st.permutations(IDS), st.sets(st.sampled_from(IDS), min_size=1, max_size=4), st.integers(1, 15))
def test_recall_equals_ir_measures(ranked, relevant, k):
    qrels = {"q": dict.fromkeys(relevant, 1)}
    run = {"q": {chunk: float(-rank) for rank, chunk in enumerate(ranked)}}
    oracle = ir_measures.calc_aggregate([ir_measures.R @ k], qrels, run)[ir_measures.R @ k]
    assert recall_at(ranked, relevant, k) == pytest.approx(oracle)


def test_mean_of_nothing_is_none():
    assert mean([]) is None
    assert mean([1.0, 0.0]) == 0.5
