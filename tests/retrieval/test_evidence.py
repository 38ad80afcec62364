from hypothesis import given
from hypothesis import strategies as st

from retrieval.chunking import Chunk
from retrieval.evidence import Evidence, Span, by_document, is_relevant, relevant_chunks, resolve

TEXTS = {"d": "Default: 5\nDefault: 7\n", "e": ""}


def test_text_stands_for_its_first_occurrence():
    assert resolve(Evidence("d", "Default"), TEXTS) == Span("d", 0, 7)


def test_span_with_its_text_and_span_alone():
    assert resolve(Evidence("d", "Default", 11, 18), TEXTS) == Span("d", 11, 18)
    assert resolve(Evidence("d", None, 11, 18), TEXTS) == Span("d", 11, 18)


def test_text_that_moved_is_found_if_there_is_no_doubt():
    assert resolve(Evidence("d", "Default: 7", 2, 12), TEXTS) == Span("d", 11, 21)
    assert resolve(Evidence("d", "Default", 2, 9), TEXTS) is None


def test_evidence_that_is_gone():
    for evidence in (Evidence("x", "Default"), Evidence("d", "Default: 9"), Evidence("d", None, 0, 99)):
        assert resolve(evidence, TEXTS) is None


@given(*(st.integers(0, 12) for _ in range(4)))
def test_overlap_is_a_shared_character(a, b, c, d):
    shared = set(range(a, b)) & set(range(c, d))
    if a < b and c < d:
        assert is_relevant("d", c, d, [Span("d", a, b)]) == bool(shared)
        assert not is_relevant("e", c, d, [Span("d", a, b)])


def test_relevant_chunks_of_several_spans():
    chunks = [Chunk(f"{doc}{i}", doc, 10 * i, 10 * i + 10, "", "", 1) for doc in "de" for i in range(3)]
    spans = [Span("d", 8, 12), Span("e", 20, 21), Span("x", 0, 5)]
    assert [chunk.id for chunk in relevant_chunks(spans, by_document(chunks))] == ["d0", "d1", "e2"]
