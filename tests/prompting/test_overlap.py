import random

from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.prompting.overlap import NGRAM, Asked, find_overlaps, overlaps_of
from retrieval.evidence import Span

LONG = " ".join(f"w{i}" for i in range(NGRAM))


def test_the_same_question_but_for_case_punctuation_and_space():
    (found,) = find_overlaps([Asked("a", "What is  X?"), Asked("b", "What is Y?")], [Asked("t", "what is x")])
    assert (found.id, found.other, found.kind) == ("a", "t", "exact")


def test_questions_of_signs_alone_are_told_apart():
    assert find_overlaps([Asked("a", "?!")], [Asked("t", "…")]) == []
    assert len(find_overlaps([Asked("a", "?! ")], [Asked("t", "?!")])) == 1


def test_thirteen_words_in_a_row_in_questions_or_in_answers():
    (found,) = find_overlaps([Asked("a", f"Before {LONG} after")], [Asked("t", f"{LONG.upper()}, or not?")])
    assert (found.kind, found.shared) == ("13-gram", LONG)
    shorter = LONG.rsplit(" ", 1)[0]
    assert find_overlaps([Asked("a", f"Before {shorter} after")], [Asked("t", f"{shorter}, or not?")]) == []
    (found,) = find_overlaps([Asked("a", "x", (LONG,))], [Asked("t", "y", (f"Well, {LONG}.",))])
    assert found.kind == "13-gram"
    assert find_overlaps([Asked("a", LONG + " q")], [Asked("t", "y", (LONG,))]) == []


def test_the_same_fact_is_the_same_answer_from_the_same_place():
    test = [Asked("t", "How long?", ("30 days",), (Span("d", 10, 20),))]
    fact = Asked("a", "Length?", ("30 Days.",), (Span("d", 15, 25),))
    assert [each.kind for each in find_overlaps([fact], test)] == ["fact"]
    others = [
        Asked("b", "Length?", ("30 days",), (Span("d", 20, 25),)),
        Asked("c", "Length?", ("30 days",), (Span("e", 10, 20),)),
        Asked("e", "Length?", ("31 days",), (Span("d", 10, 20),)),
        Asked("f", "Length?", ("30 days",), (Span("d", 0, 400),)),  # a passage, with many facts
    ]
    assert find_overlaps(others, test) == []


def test_dev_questions_are_only_told():
    found = overlaps_of(
        {"train": [], "dev": [Asked("d", "x")], "test": [Asked("t", "X")]}, [Asked("i", "x?")]
    )
    assert found.counts() == {"instructions": {"exact": 1}, "dev": {"exact": 1}}
    assert found.to_remove() == {"i"}
    assert '"of": "dev"' in found.lines()[1]


def runs(text):
    words = text.split()
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


texts = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 18)).map(
        lambda drawn: " ".join(f"v{(drawn[0] + i) % 45}" for i in range(drawn[1]))
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_just_what_overlaps_is_found(train, test):
    """Against a comparison of every pair."""
    asked = [Asked(f"a{i}", text) for i, text in enumerate(train)]
    found = {each.id for each in find_overlaps(asked, [Asked(f"t{i}", text) for i, text in enumerate(test)])}
    expected = {
        each.id
        for each in asked
        if any(each.question == text or runs(each.question) & runs(text) for text in test)
    }
    assert found == expected


def test_no_order_matters():
    generator = random.Random(0)
    asked = [Asked(f"a{i}", f"q{generator.randrange(30)}") for i in range(50)]
    others = [Asked(f"t{i}", f"q{i}") for i in range(10)]
    expected = {each.id for each in find_overlaps(asked, others)}
    generator.shuffle(asked)
    generator.shuffle(others)
    assert {each.id for each in find_overlaps(asked, others)} == expected
