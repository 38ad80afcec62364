import pytest

from jora_tasks.errors import InputError
from jora_tasks.prompting.mix import draw_instructions, mixed_in
from jora_tasks.trainer.data import Conversation


def conversations(count):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return [Conversation(str(i), messages, f"mix.jsonl:{i}") for i in range(count)]


def test_the_number_makes_the_share():
    for questions, fraction in ((300, 0.25), (200, 0.5), (9, 0.1), (100, 0.0)):
        mixed = mixed_in(questions, fraction)
        assert mixed / (questions + mixed) == pytest.approx(fraction, abs=0.001)


def test_the_draw_is_the_seeds_and_grows():
    few, many = (draw_instructions(conversations(100), count, 0) for count in (10, 30))
    assert many[:10] == few and len({each.id for each in many}) == 30
    assert draw_instructions(conversations(100)[::-1], 10, 0) == few
    assert draw_instructions(conversations(100), 10, 1) != few
    assert len(draw_instructions(conversations(5), 10, 0)) == 5


def test_an_id_given_twice_is_refused():
    with pytest.raises(InputError, match=r"mix\.jsonl:0: the id '0' is that of mix\.jsonl:0"):
        draw_instructions(conversations(1) * 2, 1, 0)
