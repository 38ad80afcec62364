from collections import Counter

import pytest

from jora_tasks.prompting.passages import Library, Passage, Retrieved, missing_oracles
from jora_tasks.prompting.raft import (
    DUPLICATE,
    HOLDS_ANSWER,
    ORACLE_REMOVED,
    REPLACED,
    select_sources,
)
from jora_tasks.spec import PromptsConfig
from retrieval.chunking import Chunk
from retrieval.evidence import Span


def chunk(name, text, document="d", start=0):
    return Chunk(name, document, start, start + len(text), "Guide", text, 1)


def found(each, score, oracle=False):
    return Passage(each.id, each.document_id, each.start, each.end, each.heading, each.text, oracle, score)


ORACLE = chunk("oracle", "Leave is 30 days.")
COPY = chunk("copy", "Leave  is 30 DAYS.", "e")
OTHER_PLACE = chunk("said-again", "Remember: 30 days, as in 2019.", "f")
CLOSE = chunk("close", "Leave is asked for in June.", "g")
FAR = chunk("far", "The canteen opens at noon, 130 days a year.", "h")
MORE = [chunk(f"more{i}", f"Text {i} of no use.", f"m{i}") for i in range(20)]
LIBRARY = Library([ORACLE, COPY, OTHER_PLACE, CLOSE, FAR, *MORE])
SPANS = (Span("d", 9, 16),)


def question(contexts, candidates=(), spans=SPANS, id_="q"):
    return Retrieved(
        id_, "How long is leave?", ("30 days",), "train", spans, tuple(contexts), tuple(candidates)
    )


CONTEXTS = [found(COPY, 0.9), found(ORACLE, 0.8, True), found(OTHER_PLACE, 0.7)]
CANDIDATES = [found(CLOSE, 0.6), found(FAR, 0.2)]


def select(question, **settings):
    selection = select_sources(question, PromptsConfig(**settings), LIBRARY)
    return selection, [each.chunk_id for each in selection.passages]


def test_by_default_a_prompt_has_what_was_retrieved_its_oracle_first():
    selection, ids = select(question(CONTEXTS, CANDIDATES))
    assert ids == ["oracle", "said-again"]
    assert selection.reasons == {"copy": DUPLICATE}
    assert (selection.drawn_without, selection.short) == (False, 0)


def test_a_missing_oracle_takes_the_place_of_the_last():
    selection, ids = select(question([found(CLOSE, 0.6), found(FAR, 0.2)]))
    assert ids == ["oracle", "close"]
    assert selection.reasons == {"far": REPLACED}
    assert select(question([found(CLOSE, 0.6), found(FAR, 0.2)]), add_missing_oracle=False)[1] == [
        "close",
        "far",
    ]


def test_without_oracle_nothing_that_gives_the_answer_is_left_and_nothing_twice():
    selection, ids = select(
        question(CONTEXTS, [*CANDIDATES, found(chunk("far2", FAR.text), 0.1)]), oracle_fraction=0.0
    )
    assert ids[:2] == ["close", "far"]
    assert len(ids) == 3 and ids[2].startswith("more")
    assert selection.reasons == {"oracle": ORACLE_REMOVED, "copy": DUPLICATE, "said-again": HOLDS_ANSWER}
    assert (selection.drawn_without, selection.random) == (True, 1)


def test_hard_distractors_are_the_closest_without_the_answer_below_the_margin():
    asked = question(CONTEXTS, CANDIDATES)
    assert select(asked, distractor_source="hard", distractors=2)[1] == ["oracle", "close", "far"]
    selection, ids = select(asked, distractor_source="hard", distractors=2, distractor_margin=0.3)
    assert ids[:2] == ["oracle", "far"] and ids[2].startswith("more")
    assert selection.random == 1
    unfound = question([found(CLOSE, 0.6), found(FAR, 0.2)])
    hard = select(unfound, distractor_source="hard", distractors=2, distractor_margin=0.1)[1]
    assert hard[0] == "oracle" and not {"close", "far"} & set(hard)


def test_random_distractors_come_from_the_whole_index_without_the_answer():
    drawn = Counter()
    for number in range(60):
        _, ids = select(question(CONTEXTS, id_=f"q{number}"), distractor_source="random", distractors=4)
        assert ids[0] == "oracle" and len(set(ids)) == 5
        assert not {"copy", "said-again"} & set(ids)
        drawn.update(ids[1:])
    assert drawn.keys() == {each.id for each in (CLOSE, FAR, *MORE)}
    assert max(drawn.values()) < 30


def test_more_distractors_than_retrieved_come_from_the_candidates_and_never_repeat_the_oracle():
    assert select(question(CONTEXTS, CANDIDATES), distractors=3)[1] == [
        "oracle",
        "said-again",
        "close",
        "far",
    ]


def test_too_few_chunks_are_told():
    library = Library([ORACLE, CLOSE])
    selection = select_sources(
        question(CONTEXTS[1:2]), PromptsConfig(distractors=5, distractor_source="random"), library
    )
    assert [each.chunk_id for each in selection.passages] == ["oracle", "close"]
    assert selection.short == 4


@pytest.mark.parametrize("fraction", [0.2, 0.6])
def test_the_share_that_keeps_the_oracle_is_the_papers_p(fraction):
    kept = [
        bool(
            [
                each
                for each in select(question(CONTEXTS, id_=f"q{i}"), oracle_fraction=fraction)[0].passages
                if each.oracle
            ]
        )
        for i in range(400)
    ]
    assert abs(sum(kept) / 400 - fraction) < 0.08  # over 3 standard deviations


def test_a_larger_share_keeps_what_a_smaller_one_keeps_and_the_seed_decides():
    def kept(fraction, seed=0):
        settings = {"oracle_fraction": fraction, "seed": seed}
        return {
            i for i in range(100) if not select(question(CONTEXTS, id_=f"q{i}"), **settings)[0].drawn_without
        }

    assert kept(0.3) < kept(0.7) < kept(1.0) == set(range(100))
    assert kept(0.3, seed=1) != kept(0.3)


def test_unknown_evidence_leaves_the_sources_as_retrieved():
    asked = question(CONTEXTS, CANDIDATES, spans=())
    assert select(asked, oracle_fraction=0.0, distractors=1)[1] == ["copy", "said-again"]


def test_a_copy_of_the_evidence_is_an_oracle_and_needs_no_other():
    twin = chunk("twin", ORACLE.text, "a")
    contexts = [found(twin, 0.9, True), found(CLOSE, 0.8)]
    assert select(question(contexts))[1] == ["twin", "close"]
    both = [found(CLOSE, 0.9), found(twin, 0.8, True), found(ORACLE, 0.7, True), found(FAR, 0.6)]
    selection, ids = select(question(both))
    assert ids == ["twin", "close", "far"]
    assert selection.reasons == {"oracle": DUPLICATE}
    for settings in ({"distractors": 1}, {"distractor_source": "hard", "distractors": 1}):
        assert select(question(both), **settings)[1] == ["twin", "close"]
    assert not {"twin", "oracle"} & set(select(question(both), oracle_fraction=0.0)[1])


def test_a_repeated_text_gives_its_place_to_another():
    again = found(chunk("again", OTHER_PLACE.text, "z"), 0.9)
    contexts = [again, found(OTHER_PLACE, 0.8), found(CLOSE, 0.7), found(FAR, 0.6)]
    selection, ids = select(question(contexts))
    assert ids == ["oracle", "again", "close", "far"]
    assert selection.reasons == {"said-again": DUPLICATE}


def test_evidence_in_several_documents_brings_a_chunk_of_each():
    spans = (*SPANS, Span("g", 0, 5), Span("h", 4, 11))
    present = [found(CLOSE, 0.5, True)]
    assert [each.chunk_id for each in missing_oracles(spans, present, LIBRARY)] == ["oracle", "far"]
    contexts = [found(MORE[0], 0.9), found(CLOSE, 0.5, True), found(MORE[1], 0.4)]
    selection, ids = select(question(contexts, spans=spans))
    assert ids == ["close", "oracle", "far"]
    assert selection.reasons == {"more0": REPLACED, "more1": REPLACED}
    assert select(question(contexts, spans=spans), distractors=2)[1] == [
        "close",
        "oracle",
        "far",
        "more0",
        "more1",
    ]


def test_of_chunks_that_share_the_evidence_the_one_with_most_of_it_is_added():
    parts = [chunk("left", "Leave is 3", "x"), chunk("right", "0 days a year", "x", 10)]
    assert [each.chunk_id for each in missing_oracles([Span("x", 9, 16)], [], Library(parts))] == ["right"]
    assert missing_oracles([Span("x", 9, 16)], [found(parts[0], 0.1, True)], Library(parts)) == []
