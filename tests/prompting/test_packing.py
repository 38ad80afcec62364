import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from jora_tasks.prompting.conversation import source_messages
from jora_tasks.prompting.packing import Packer
from jora_tasks.prompting.passages import Passage
from jora_tasks.trainer.tokenizer import load_tokenizer
from tests.tiny import write_byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("packing") / "bytes"))


@pytest.fixture(scope="module")
def word_tokenizer(smollm2_folder):
    return load_tokenizer(smollm2_folder)


def passages(*sizes):
    return [Passage(f"c{i}", "d", 0, size, "h", "x" * size, False) for i, size in enumerate(sizes)]


def names(chosen):
    return [each.chunk_id for each in chosen]


def test_a_chunk_that_does_not_fit_makes_way_for_a_shorter_one(tokenizer):
    prompt = Packer(tokenizer, 300).pack("q", "i", passages(80, 200, 20), lambda _: "5")
    assert names(prompt.passages) == ["c0", "c2"]
    assert names(prompt.dropped) == ["c1"]
    assert len(prompt.input_ids) <= 300


def test_an_answer_without_token_and_a_question_over_the_budget_are_refused(tokenizer):
    with pytest.raises(InputError, match="answer '' to 'q' has no token"):
        Packer(tokenizer, 300).pack("q", "i", [], lambda _: "")
    with pytest.raises(InputError, match=r"takes \d+ tokens without any source; raise prompts\.token_budget"):
        Packer(tokenizer, 100).pack("q" * 100, "i", [], lambda _: "5")


def greedy(tokenizer, budget, given):
    """Each passage that still fits, every one tried in a whole prompt."""
    chosen = []
    for each in given:
        messages = [*source_messages("i", [*chosen, each], "q"), {"role": "assistant", "content": "5"}]
        if len(tokenizer.render(messages)[0]) <= budget:
            chosen.append(each)
    return names(chosen)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 120), max_size=14), st.integers(64, 900))
def test_the_same_as_trying_every_one(tokenizer, sizes, budget):
    """With tokens that are bytes, parts add up to the whole."""
    prompt = Packer(tokenizer, budget).pack("q", "i", passages(*sizes), lambda _: "5")
    assert names(prompt.passages) == greedy(tokenizer, budget, passages(*sizes))


WORDS = ["the default", "of an option,", "its type &", "when", "it was added:", "2.10.3\n\n(see", "[core])"]


@pytest.mark.parametrize("seed", range(30))
def test_never_over_the_budget_whole_chunks_and_nothing_small_left_out(word_tokenizer, seed):
    generator = random.Random(seed)
    budget = generator.randint(80, 600)
    given = [
        Passage(f"c{i}", "d", 0, 1, "Guide › Part", " ".join(generator.choices(WORDS, k=size)), False)
        for i, size in enumerate(generator.choices(range(1, 90), k=12))
    ]
    order = generator.sample(given, k=len(given))

    def arrange(chosen):
        return [each for each in order if each in chosen]

    def answer(placed):
        return f"5 {[*range(len(placed))]}"  # grows with the sources, as citations do

    packer = Packer(word_tokenizer, budget)
    prompt = packer.pack("What is it?", "Answer.", given, answer, arrange)
    assert len(prompt.input_ids) <= budget
    assert prompt.passages == arrange(prompt.passages)
    assert sorted(names([*prompt.passages, *prompt.dropped])) == sorted(names(given))
    user = prompt.messages[1]["content"]
    assert user == source_messages("", prompt.passages, "What is it?")[1]["content"]
    assert word_tokenizer.render(prompt.messages) == (prompt.input_ids, prompt.prompt_length)
    for each in prompt.dropped:  # none would have fit with many tokens to spare
        sources = [*prompt.passages, each]
        messages = [*source_messages("Answer.", sources, "What is it?")]
        messages.append({"role": "assistant", "content": answer(sources)})
        assert len(word_tokenizer.render(messages)[0]) > budget - 24


class Counting:
    """A tokenizer that counts the characters it is given to read."""

    def __init__(self, tokenizer):
        self.tokenizer, self.read, self.renders = tokenizer, 0, 0

    def encode(self, text):
        self.read += len(text)
        return self.tokenizer.encode(text)

    def render(self, messages):
        self.renders += 1
        return self.tokenizer.render(messages)


def test_a_thousand_chunks_are_read_once_each(tokenizer):
    counting = Counting(tokenizer)
    generator = random.Random(0)
    given = passages(*(generator.randint(50, 250) for _ in range(1000)))
    prompt = Packer(counting, 131072).pack("q", "i", given, lambda _: "5")
    assert 131072 - 260 < len(prompt.input_ids) <= 131072
    assert counting.renders <= 8
    assert counting.read < 2 * sum(len(each.text) + 10 for each in given)
