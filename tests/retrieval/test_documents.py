import unicodedata
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.documents import Document, document_digest, normalise

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
documents = st.builds(
    Document,
    id=words,
    source=st.sampled_from(["a.md", "b.txt", "c/d.MD"]),
    title=words,
    text=words,
    metadata=st.dictionaries(words, words, max_size=2),
)


@given(st.text(st.one_of(st.sampled_from("\r\n\ufeffe\u0301 x"), st.characters()), max_size=40))
def test_normalised_text_is_nfc_with_plain_newlines(text):
    once = normalise(text)
    assert "\r" not in once
    assert unicodedata.is_normalized("NFC", once)
    assert normalise("\ufeff" + text.removeprefix("\ufeff")) == normalise(text.removeprefix("\ufeff"))
    assert once.count("\n") == text.count("\r\n") + sum(map(text.replace("\r\n", "").count, "\r\n"))


@settings(max_examples=200)
@given(documents, documents)
def test_digests_differ_as_what_later_stages_read_does(one, other):
    def content(document):
        kind = document.source.rpartition(".")[2].lower()
        return kind, document.title, document.text, document.metadata

    assert (document_digest(one) == document_digest(other)) == (content(one) == content(other))
    assert document_digest(replace(one, id=one.id + "x")) == document_digest(one)


def test_order_of_metadata_does_not_count():
    one = Document("a", "a.md", "", "", {"x": "1", "y": "2"})
    assert document_digest(one) == document_digest(replace(one, metadata={"y": "2", "x": "1"}))
