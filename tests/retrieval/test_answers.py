import pytest

from retrieval.answers import find_answer


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("Default: 30", "3", None),
        ("Default: 30, not 300", "30", "30"),
        ("The Celery  Executor.", "celery executor", "Celery  Executor"),
        ("a (b) c", "(b)", "(b)"),
        ("x.y", ".", "."),
        ("see [core]", "[core]", "[core]"),
        ("x", " ", None),
        ("snake_case", "snake", None),
        ("Straße", "straße", "Straße"),
    ],
)
def test_whole_words_whatever_case_and_space(text, answer, found):
    span = find_answer(text, answer)
    assert (text[slice(*span)] if span else None) == found
