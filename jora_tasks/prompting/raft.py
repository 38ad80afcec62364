"""Which sources a training prompt gets: the oracle or none, and its distractors.

Source: Zhang et al., "RAFT: Adapting Language Model to Domain Specific RAG" (arXiv 2403.10131),
section 3: a share P of the examples has the oracle among distractors, the others have distractors
alone. Mining by a margin below the positive's score: Moreira et al., "NV-Retriever"
(arXiv 2407.15831), section 3 (TopK-MarginPos).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jora_tasks.prompting.draws import draws
from jora_tasks.prompting.passages import Library, Passage, Retrieved, missing_oracles, passage
from jora_tasks.spec import PromptsConfig
from retrieval.answers import find_answer
from retrieval.evidence import is_relevant

# Why a retrieved context is not in a prompt.
BUDGET = "over the budget"
ORACLE_REMOVED = "oracle removed"
HOLDS_ANSWER = "holds the answer"
DUPLICATE = "duplicate"
REPLACED = "replaced"

_DRAWS_PER_DISTRACTOR = 50  # before a random distractor is given up


@dataclass(frozen=True)
class Selection:
    """The sources of a training prompt before the budget.

    Attributes:
      passages: by claim on the budget: oracles, then distractors, best first.
      reasons: chunk id → why this retrieved context was left out.
      drawn_without: whether the draw took the oracle away.
      random: how many distractors were drawn from the whole index.
      short: how many distractors are missing, since the index has no more that qualify.
    """

    passages: tuple[Passage, ...]
    reasons: dict[str, str]
    drawn_without: bool = False
    random: int = 0
    short: int = 0


def select_sources(question: Retrieved, config: PromptsConfig, library: Library) -> Selection:
    """Choose a training prompt's sources.

    Where the evidence is unknown nothing tells an oracle from a distractor: the sources are those
    retrieved. Otherwise a draw by seed and question decides whether the oracles stay. A prompt that keeps
    them has every piece of evidence (with ``add_missing_oracle``; else what was retrieved of it). One
    that does not has no source with any of the evidence, with the words of an answer, or with the text
    of an oracle. Texts are never repeated.
    """
    contexts = question.contexts
    if not question.spans:
        return _selection(question, contexts, {})
    present = [each for each in contexts if each.oracle]
    keeps = draws(config.seed, question.id, "oracle").random() < config.oracle_fraction
    oracles: list[Passage] = []
    if keeps:
        added = missing_oracles(question.spans, present, library) if config.add_missing_oracle else []
        oracles = [*present, *added]
        if config.distractor_source == "retrieved" and not config.distractors and _served(oracles, config):
            others = [each for each in contexts if not each.oracle]
            served = _distinct([*oracles, *others])
            return _selection(question, served[: max(len(contexts), len(oracles))], {})
    wanted = config.distractors or max(len(contexts) - len(oracles), 0)
    pool = _Pool(question, config, library, clean=not oracles)
    distractors = pool.take(wanted)
    return _selection(
        question,
        [*oracles, *distractors],
        pool.reasons,
        drawn_without=not keeps,
        random=pool.random,
        short=wanted - len(distractors),
    )


def _served(oracles: Sequence[Passage], config: PromptsConfig) -> bool:
    """Whether the contexts can stay as retrieval serves them: to abstain, they must be without the answer."""
    return bool(oracles) or config.without_oracle == "answer"


def _selection(
    question: Retrieved,
    passages: Sequence[Passage],
    reasons: dict[str, str],
    drawn_without: bool = False,
    random: int = 0,
    short: int = 0,
) -> Selection:
    passages = _distinct(passages)
    chosen, texts = {each.chunk_id for each in passages}, {_words(each.text) for each in passages}

    def reason(left: Passage) -> str:
        if _words(left.text) in texts:
            return DUPLICATE
        return reasons.get(left.chunk_id, ORACLE_REMOVED if left.oracle else REPLACED)

    left = {each.chunk_id: reason(each) for each in question.contexts if each.chunk_id not in chosen}
    return Selection(tuple(passages), left, drawn_without, random, short)


def _distinct(passages: Sequence[Passage]) -> list[Passage]:
    """The first passage of each text."""
    first: dict[str, Passage] = {}
    for each in passages:
        first.setdefault(_words(each.text), each)
    return list(first.values())


class _Pool:
    """Distractors for one question, in the order of preference.

    Attributes:
      reasons: chunk id → why it was refused.
      random: how many of those taken were drawn from the whole index.
    """

    def __init__(self, question: Retrieved, config: PromptsConfig, library: Library, *, clean: bool) -> None:
        self._question = question
        self._config = config
        self._library = library
        self._without_answer = clean or config.distractor_source != "retrieved"
        self._found = (*question.contexts, *question.candidates)
        self._texts = {_words(chunk.text) for chunk in library.relevant(question.spans)}
        self.reasons: dict[str, str] = {}
        self.random = 0

    def take(self, wanted: int) -> list[Passage]:
        ranked = () if self._config.distractor_source == "random" else self._ranked()
        taken = self._fitting(ranked, wanted)
        rest = self._fitting(self._drawn(wanted - len(taken)), wanted - len(taken))
        self.random = len(rest)
        return [*taken, *rest]

    def _fitting(self, passages: Iterable[Passage], wanted: int) -> list[Passage]:
        taken: list[Passage] = []
        for each in passages if wanted > 0 else ():
            words = _words(each.text)
            if words in self._texts:
                self.reasons[each.chunk_id] = DUPLICATE
            elif self._without_answer and self._holds_answer(each):
                self.reasons[each.chunk_id] = HOLDS_ANSWER
            else:
                self._texts.add(words)
                taken.append(each)
                if len(taken) == wanted:
                    break
        return taken

    def _ranked(self) -> Iterator[Passage]:
        """What was retrieved without evidence, best first; hard ones keep the margin below the oracle."""
        bound = float("inf")
        if self._config.distractor_source == "hard" and self._config.distractor_margin:
            # an oracle that was not found scores below all that were
            scores = [each.score for each in self._found if each.oracle and each.score is not None]
            bound = max(scores, default=float("-inf")) - self._config.distractor_margin
        for each in self._found:
            if not each.oracle and each.score is not None and each.score <= bound:
                yield each

    def _drawn(self, wanted: int) -> Iterator[Passage]:
        """Chunks of the whole index; where these only fill up, none that was refused for its score."""
        chunks, random = self._library.chunks, draws(self._config.seed, self._question.id, "distractors")
        seen = set() if self._config.distractor_source == "random" else {e.chunk_id for e in self._found}
        for _ in range(min(wanted, len(chunks)) * _DRAWS_PER_DISTRACTOR):
            chunk = chunks[random.randrange(len(chunks))]
            relevant = is_relevant(chunk.document_id, chunk.start, chunk.end, self._question.spans)
            if not relevant and chunk.id not in seen:
                seen.add(chunk.id)
                yield passage(chunk, oracle=False)

    def _holds_answer(self, each: Passage) -> bool:
        told = f"{each.heading}\n{each.text}"
        return any(find_answer(told, answer) for answer in self._question.answers)


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
