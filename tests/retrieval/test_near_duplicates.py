import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.near_duplicates import distinct, shingles, similarity

TEXT = " ".join(f"word{i}" for i in range(60))
CHANGED = TEXT.replace("word30", "other")
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=8)


def test_similarity_is_the_share_of_runs_of_five_words_in_common():
    assert similarity(shingles(TEXT), shingles(TEXT.upper().replace(" ", ",\n"))) == 1
    assert similarity(shingles(TEXT), shingles(CHANGED)) == pytest.approx(51 / 61)  # 5 of 56 runs differ
    assert similarity(shingles("a b"), shingles("a b c")) == 0
    assert similarity(shingles("?"), shingles("!")) == 0


def test_the_first_of_near_duplicates_stays():
    texts = [TEXT, "another text", CHANGED, TEXT, "a third"]
    assert distinct(texts, 0.8, 9) == ([0, 1, 4], 2)
    assert distinct(texts, 0.9, 9) == ([0, 1, 2, 4], 1)
    assert distinct(texts, 0.0, 9) == ([0, 1, 2, 3, 4], 0)
    assert distinct(texts, 0.8, 2) == ([0, 1], 0)


@given(TEXTS, st.sampled_from([0.2, 0.5, 0.9, 1.0]), st.integers(1, 8))
def test_what_is_kept_differs_and_what_is_left_out_does_not(texts, most, limit):
    kept, left_out = distinct(texts, most, limit)
    marks = [shingles(text) for text in texts]
    for position in range(kept[-1] + 1 if kept else 0):
        alike = [similarity(marks[position], marks[other]) >= most for other in kept if other < position]
        assert (position in kept) is not any(alike)
    assert len(kept) <= limit
    if len(kept) < limit:
        assert len(kept) + left_out == len(texts)
