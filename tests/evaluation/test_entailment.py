"""Support by an NLI model, with transformers' own pipeline as the oracle of its labels."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest

from jora_tasks.errors import InputError
from jora_tasks.evaluation.citations import CitedAnswer
from jora_tasks.evaluation.entailment import NliModel
from jora_tasks.evaluation.summary import ADAPTER, Question, Said, Shown, score_arm
from tests.evaluation.alce import alce
from tests.tiny import pickle_weights, write_tiny_nli_model

WORDS = ("leave", "days", "30", "40", "pay", "monthly", "sick", "year", "the", "option", "default")
SOURCES = tuple(f"{word.title()}\n{word} {WORDS[i - 3]} a {WORDS[i - 5]}" for i, word in enumerate(WORDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_nli_model(tmp_path_factory.mktemp("nli") / "tiny", seed=7)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Callable[[str, str], bool]:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device="cpu")

    @functools.cache
    def entails(premise: str, hypothesis: str) -> bool:
        found = classify({"text": premise, "text_pair": hypothesis}, truncation=True)
        return (found[0] if isinstance(found, list) else found)["label"] == "entailment"

    return entails


def test_entailment_is_what_transformers_finds_likeliest(
    folder: Path, oracle: Callable[[str, str], bool]
) -> None:
    pairs = [(source * length, f"{word} 30") for source in SOURCES for word in WORDS[:3] for length in (1, 9)]
    found = NliModel(folder, "tiny", batch_size=4).entails(pairs)
    assert found == [oracle(*pair) for pair in pairs]
    assert 0.1 < sum(found) / len(found) < 0.9  # a model that says both


def answers() -> list[tuple[str, tuple[int, ...]]]:
    """What is said, and cited: none, one, several, all, and what is not there."""
    cited: Sequence[tuple[int, ...]] = (
        (),
        (1,),
        (2, 5),
        (3, 4, 7),
        tuple(range(1, 12)),
        (99,),
        (1, 99),
        (6, 8),
    )
    return [(word, labels) for word in WORDS[:4] for labels in cited]


def test_citations_are_scored_as_alce_does_with_the_same_judge(
    folder: Path, oracle: Callable[[str, str], bool]
) -> None:
    questions = [Question(f"q{i}", f"how {word}", ("-",), "g", "g") for i, (word, _) in enumerate(answers())]
    said = {
        question.id: Said(f"{word} {''.join(f'[{label}]' for label in labels)}")
        for question, (word, labels) in zip(questions, answers(), strict=True)
    }
    asked = [(question, Shown((1,), SOURCES)) for question in questions]
    rows = score_arm(ADAPTER, asked, said, "Not said.", NliModel(folder, "tiny", batch_size=8))

    expected = []
    for question, (word, labels) in zip(questions, answers(), strict=True):

        def supports(some: Collection[int], statement: str = f"{question.text} {word}") -> bool:
            sources = [SOURCES[label - 1] for label in sorted(some) if label <= len(SOURCES)]
            return bool(sources) and oracle("\n".join(sources), statement)

        expected.append(alce(labels, supports))
    assert [(row.scores["citation_precision"], row.scores["citation_recall"]) for row in rows] == expected
    assert len(set(expected)) > 3  # right, wrong, and partly needless


def test_an_answer_without_a_word_is_supported_by_nothing(folder: Path) -> None:
    judge = NliModel(folder, "tiny", batch_size=8)
    (supports,) = judge([CitedAnswer("how much", " ", (1, 2), SOURCES, False, ())])
    assert not supports((1, 2))
    assert judge([]) == []


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"0": "contradiction", "1": "not_entailment"}, "has contradiction, not_entailment, where one must"),
        ({"0": "entailment"}, "has entailment, where one must be entailment beside others"),
        ({}, "has no labels of its own"),
    ],
)
def test_a_model_that_does_not_tell_entailment_is_refused(
    folder: Path, tmp_path: Path, labels: dict[str, str], told: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    with pytest.raises(InputError, match=rf"evaluation\.nli_model other {told}"):
        NliModel(other, "other", batch_size=8)


def test_labels_are_known_whatever_their_case(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    shouted = {number: label.upper() for number, label in config["id2label"].items()}
    (other / "config.json").write_text(json.dumps(config | {"id2label": shouted}))
    pairs = [(source, "30 days") for source in SOURCES]
    assert NliModel(other, "other", 8).entails(pairs) == NliModel(folder, "tiny", 8).entails(pairs)


def test_weights_that_cannot_be_read_or_are_pickled_are_refused(folder: Path, tmp_path: Path) -> None:
    broken, pickled = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("broken", "pickled"))
    (broken / "model.safetensors").write_bytes(b"not weights")
    pickle_weights(pickled)
    for each in (broken, pickled):
        with pytest.raises(InputError, match=rf"evaluation\.nli_model {each.name} cannot be read"):
            NliModel(each, each.name, batch_size=8).open()
