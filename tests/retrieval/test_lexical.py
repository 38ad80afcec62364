import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from retrieval.lexical import LEXICAL, LexicalIndex, write_lexical
from retrieval.words import terms

TEXTS = [
    "AIRFLOW__CORE__DAGS_FOLDER names the folder of the dags",
    "The default of dag_dir_list_interval is 300 seconds",
    "Seconds and seconds and seconds",
    "!!!",
    "東京都の人口",
]


def opened(folder, texts=TEXTS):
    write_lexical(folder, texts)
    return LexicalIndex(folder, len(texts))


def bm25(texts, question, k1=1.5, b=0.75):
    """BM25 by the book, in Lucene's form."""
    documents = [Counter(terms(text)) for text in texts]
    mean = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in terms(question):
            df = sum(term in each for each in documents)
            if document[term]:
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                length = 1 - b + b * document.total() / mean
                score += idf * document[term] / (document[term] + k1 * length)
        scores.append(score)
    return scores


WORDS = st.lists(
    st.sampled_from(["the", "dag", "dags_folder", "core", "seconds", "300", "Über", "?"]), max_size=8
).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS.filter(str), min_size=1, max_size=9), WORDS, st.integers(1, 12))
def test_scores_are_those_of_bm25(tmp_path_factory, texts, question, k):
    found = opened(tmp_path_factory.mktemp("lexical"), texts).search(question, k)
    exact = bm25(texts, question)
    best = sorted((row for row, score in enumerate(exact) if score > 0), key=lambda row: -exact[row])[:k]
    assert len(found) == len(best)
    np.testing.assert_allclose([score for _, score in found], [exact[row] for row in best], rtol=1e-5)
    np.testing.assert_allclose([score for _, score in found], [exact[row] for row, _ in found], rtol=1e-5)


def test_parts_of_identifiers_are_found(tmp_path):
    index = opened(tmp_path)
    for question, row in (("dags_folder", 0), ("airflow", 0), ("INTERVAL?", 1), ("京都", 4)):
        assert index.search(question, 5)[0][0] == row


def test_a_question_without_a_known_word_finds_nothing(tmp_path):
    index = opened(tmp_path)
    for question in ("zebra", "", "?!", "京城"):
        assert index.search(question, 5) == []
    assert opened(tmp_path / "wordless", ["!!!", "…"]).search("the", 5) == []


def test_equal_scores_go_by_row_and_only_allowed_rows_are_found(tmp_path):
    index = opened(tmp_path, ["one word", "other", "one word", "one word", "one word"])
    assert [row for row, _ in index.search("word", 3)] == [0, 2, 3]
    allowed = np.array([False, True, False, True, True])
    assert [row for row, _ in index.search("word", 3, allowed)] == [3, 4]


def test_an_index_of_other_chunks_or_a_damaged_one_is_refused(tmp_path):
    write_lexical(tmp_path, TEXTS)
    with pytest.raises(InputError, match=r"is of 5 chunks, not of 6; build the index again"):
        LexicalIndex(tmp_path, 6)
    (tmp_path / LEXICAL / "data.csc.index.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"cannot be read .* build the index again"):
        LexicalIndex(tmp_path, 5)


def test_another_process_writes_the_same_bytes_and_wakes_no_device(tmp_path):
    write_lexical(tmp_path / "here", TEXTS)
    code = (
        "import sys, pathlib\n"
        "from retrieval.lexical import LexicalIndex, write_lexical\n"
        f"folder = pathlib.Path({str(tmp_path / 'there')!r})\n"
        f"write_lexical(folder, {TEXTS!r})\n"
        "assert LexicalIndex(folder, 5).search('seconds', 5)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib')]\n"
        "import jax; assert jax.numpy.ones(3).sum() == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."})
    files = sorted(path.name for path in (tmp_path / "here" / LEXICAL).iterdir())
    assert files == sorted(path.name for path in (tmp_path / "there" / LEXICAL).iterdir())
    for name in files:
        here, there = ((tmp_path / place / LEXICAL / name).read_bytes() for place in ("here", "there"))
        assert here == there
