import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.measures import mean, measure, ndcg_at, recall_at, reciprocal_rank_at

IDS = [f"c{i}" for i in range(12)]
RANKED = st.lists(st.sampled_from(IDS), unique=True)
RELEVANT = st.sets(st.sampled_from(IDS), min_size=1, max_size=4)


@given(st.lists(st.tuples(RANKED, RELEVANT), min_size=1, max_size=5), st.integers(1, 15))
def test_measures_equal_ir_measures(queries, k):
    qrels = {f"q{i}": dict.fromkeys(relevant, 1) for i, (_, relevant) in enumerate(queries)}
    run = {
        f"q{i}": {chunk: float(-rank) for rank, chunk in enumerate(ranked)}
        for i, (ranked, _) in enumerate(queries)
    }
    for ours, theirs in ((recall_at, "R"), (reciprocal_rank_at, "RR"), (ndcg_at, "nDCG")):
        oracle = getattr(ir_measures, theirs) @ k
        values = [ours(ranked, relevant, k) for ranked, relevant in queries]
        assert mean(values) == pytest.approx(ir_measures.calc_aggregate([oracle], qrels, run)[oracle])


def test_all_measures_of_a_ranking():
    assert measure(["a", "b", "c"], {"b"}, 3) == {
        "recall@1": 0,
        "recall@3": 1,
        "rr@3": 0.5,
        "ndcg@3": pytest.approx(0.63093, abs=1e-5),
    }
    assert set(measure([], {"b"}, 3).values()) == {0.0}


def test_a_text_that_comes_again_counts_once_where_it_came_first():
    once, again = measure(["a", "b", "c", "d"], {"b", "d"}, 4), measure(["a", "b", "b", "d"], {"b", "d"}, 4)
    assert once == again
    assert measure(["b", "b"], {"b"}, 2)["ndcg@2"] == 1


def test_mean_of_nothing_is_none():
    assert mean([]) is None
    assert mean([1.0, 0.0]) == 0.5
