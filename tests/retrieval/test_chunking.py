from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.chunking import chunk_document, sections
from retrieval.documents import Document
from retrieval.headings import find_headings

GUIDE = """Preface.

# Guide

## Setup

Install it.

```
# not a heading
```

## Use

### Daily

Run it.

Underlined
----------

End.
"""

MARKUP = ["# One\n", "## Two\n", "Title\n=====\n", "```\n", "- item\n", "...\n", "\n\n", "\n", "\t", " "]
# a word whose later parts take more tokens alone than within it: "##ing" against "i ##n ##g"
STICKY = "x" + "ing" * 30
WORDS = ["word ", "heading", "options.", "x" * 90, STICKY, "\u4e2d\u6587", "caf\u00e9 ", "0123456789"]
PARTS = st.sampled_from([*MARKUP, *WORDS])


def document(text, source="a.md", title="Guide"):
    return Document(source, source, title, text)


def test_headings_of_markdown():
    found = [(heading.level, heading.title) for heading in find_headings(GUIDE, ".md")]
    assert found == [(1, "Guide"), (2, "Setup"), (2, "Use"), (3, "Daily"), (2, "Underlined")]
    assert find_headings(GUIDE, ".txt") == []


def test_headings_of_restructured_text_take_levels_in_order_of_appearance():
    text = "====\nBook\n====\n\nPart\n****\n\ntext\nnot a\n****\n\nChapter\n~~~~~~~\n\nNext\n****\n"
    found = find_headings(text, ".rst")
    assert [(h.level, h.title) for h in found] == [(1, "Book"), (2, "Part"), (3, "Chapter"), (2, "Next")]
    assert text[found[0].start :].startswith("====\nBook")


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# a ## b ##", "a ## b"),
        ("#\ta\t#", "a"),
        ("# a#", "a#"),
        ("# #", "#"),
        ("  ### a  ", "a"),
        ("#a", None),
        ("#  ", None),
        ("####### a", None),
        (f"# a{' ' * 300_000}b", "a…"),  # took minutes while a pattern tried each blank
    ],
)
def test_words_of_an_atx_heading(line, title):
    assert [each.title for each in find_headings(line, ".md")] == ([] if title is None else [title])


@pytest.mark.parametrize(
    ("source", "text"),
    [("a.md", "# {}\n\n{}"), ("a.md", "{}\n===\n\n{}"), ("a.rst", "{}\n" + "=" * 6000 + "\n\n{}")],
)
def test_chunks_carry_no_more_than_the_beginning_of_a_long_heading(tiny_embedder, source, text):
    heading = "word " * 1000 + "end"
    given = document(text.format(heading, "More words. " * 200), source, title="T")
    chunks = chunk_document(given, tiny_embedder.offsets, 40)
    assert len(chunks) > 40
    assert {each.heading for each in chunks} == {f"T › {'word ' * 39}word…"}
    joined = "".join("".join(each.text.split()) for each in chunks)
    assert "".join(heading.split()) in joined and joined.endswith("Morewords.")


def test_rule_and_table_lines_are_no_markdown_headings():
    text = "---\ntitle: x\n---\n\ntext\n\n---\n\n| a | b |\n---\n\n- item\n---\n"
    assert find_headings(text, ".md") == []


def test_sections_know_their_path_and_headings_without_text_join_the_next():
    assert [(path, GUIDE[a:b].split("\n")[0]) for a, b, path in sections(document(GUIDE))] == [
        ("Guide", "Preface."),
        ("Guide › Setup", "# Guide"),
        ("Guide › Use › Daily", "## Use"),
        ("Guide › Underlined", "Underlined"),
    ]


def test_title_comes_first_in_the_path_once():
    assert sections(document("# A\n\nx\n", title="Manual"))[0][2] == "Manual › A"
    assert sections(document("# A\n\nx\n", title="A"))[0][2] == "A"


def test_a_section_that_fits_is_one_chunk(tiny_embedder):
    chunks = chunk_document(document(GUIDE), tiny_embedder.offsets, 60)
    assert [chunk.heading for chunk in chunks] == [path for _, _, path in sections(document(GUIDE))]


def test_long_text_is_cut_at_paragraphs_then_sentences(tiny_embedder):
    paragraph = "the option and the default. " * 4
    text = "\n\n".join([paragraph.strip()] * 6)
    chunks = chunk_document(document(text), tiny_embedder.offsets, 60)
    assert [chunk.text for chunk in chunks] == ["\n\n".join([paragraph.strip()] * 2)] * 3
    sentences = chunk_document(document(paragraph * 6), tiny_embedder.offsets, 40)
    assert all(chunk.text.endswith(".") for chunk in sentences)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS, min_size=20, max_size=80), limit=st.integers(16, 40), share=st.floats(0, 0.95))
def test_spans_are_exact_short_enough_and_cover_the_text(tiny_embedder, parts, limit, share):
    text, overlap = "".join(parts), int(share * limit)
    chunks = chunk_document(document(text), tiny_embedder.offsets, limit, overlap)
    covered = set()
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip() != ""
        assert chunk.n_tokens == len(tiny_embedder.offsets(chunk.text)) <= limit
        covered.update(range(chunk.start, chunk.end))
    assert all(i in covered for i, character in enumerate(text) if not character.isspace())
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    for before, after in pairwise(chunks):
        assert before.start < after.start
        assert before.end < after.end
        repeated = len(tiny_embedder.offsets(text[after.start : before.end])) if overlap else 0
        assert after.start >= before.end or repeated <= overlap


def test_overlap_repeats_the_end_of_the_chunk_before(tiny_embedder):
    chunks = chunk_document(document("the option and default " * 30), tiny_embedder.offsets, 20, 6)
    for before, after in pairwise(chunks):
        assert 4 <= len(tiny_embedder.offsets(before.text[after.start - before.start :])) <= 6


@pytest.mark.parametrize("change", ["document", "text", "limit", "overlap"])
def test_id_depends_on_document_text_and_settings(tiny_embedder, change):
    arguments = {"document": "a.md", "text": "text here", "limit": 20, "overlap": 0}
    other = arguments | {
        change: {"document": "b.md", "text": "text there", "limit": 21, "overlap": 1}[change]
    }

    def first_id(given):
        chunks = chunk_document(
            document(given["text"], source=given["document"]),
            tiny_embedder.offsets,
            given["limit"],
            given["overlap"],
        )
        return chunks[0].id

    assert first_id(arguments) == first_id(dict(arguments))
    assert first_id(arguments) != first_id(other)
