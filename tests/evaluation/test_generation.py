from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from jora_tasks.evaluation.generation import (
    batches_of,
    check_lengths,
    generate,
    generate_and_score,
    places_of_shard,
)
from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.load import load_model

NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    loaded = load_model(folder, lora=LoraConfig(r=4))
    lora = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(0), x.shape), loaded.lora)
    return dataclasses.replace(loaded, lora=lora)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, length).tolist() for length in (5, 70, 1, 64, 33)]


@pytest.fixture(scope="module")
def expected(folder, prompts):
    return transformers_greedy(folder, prompts, NEW)


def transformers_greedy(folder, prompts, new):
    """Each prompt alone: no padding, no cache of ours."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),  # or it takes tokens equal to pad for padding
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def answer(model, prompts, **changes):
    settings = {"max_new_tokens": NEW, "eos_ids": (), "pad_id": 0, "batch_size": 2, "use_adapter": False}
    return generate(model, prompts, **{**settings, **changes})


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_equals_transformers_whatever_the_batch(model, prompts, expected, batch_size):
    assert answer(model, prompts, batch_size=batch_size) == expected


def test_padding_token_does_not_matter(model, prompts, expected):
    assert answer(model, prompts, pad_id=63) == expected


def test_stops_before_the_first_end_token(model, prompts, expected):
    ends = {expected[0][3], expected[1][5]}
    cut = [row[: next((i for i, token in enumerate(row) if token in ends), NEW)] for row in expected]
    assert len(cut[0]) <= 3
    assert answer(model, prompts, eos_ids=ends) == cut


@pytest.mark.parametrize("max_new_tokens", [1, 30])
def test_losses_of_known_answers_are_those_of_transformers(folder, model, prompts, max_new_tokens):
    """Answers of none, one, a block, a block and one, and several blocks of tokens, in one batch."""
    import torch
    import transformers

    targets = [np.random.default_rng(1).integers(0, 64, count).tolist() for count in (0, 1, 8, 9, 23)]
    settings = {"max_new_tokens": max_new_tokens, "eos_ids": (), "pad_id": 0, "batch_size": 5}
    found = generate_and_score(model, prompts, targets, use_adapter=False, **settings)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert found[0].loss is None
    for prompt, target, each in list(zip(prompts, targets, found, strict=True))[1:]:
        ids = torch.tensor([prompt + target])
        labels = torch.where(torch.arange(ids.shape[1]) < len(prompt), -100, ids)
        with torch.no_grad():
            assert each.loss == pytest.approx(oracle(input_ids=ids, labels=labels).loss.item(), rel=1e-4)


def test_adapter_and_base_from_one_copy(model, prompts, expected):
    """The adapter's answers are those of full passes over prompt and answer."""
    rows = answer(model, prompts[:1], use_adapter=True)
    assert rows != expected[:1]
    whole = np.asarray(model.logits(np.array([prompts[0] + rows[0]])))[0].argmax(-1)
    assert whole[len(prompts[0]) - 1 : -1].tolist() == rows[0]


def test_reports_progress_and_takes_no_prompts(model, prompts):
    seen = []
    answer(model, prompts, max_new_tokens=1, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert answer(model, []) == []


@pytest.mark.parametrize(
    ("bad", "words"), [([], "prompt 1 is empty"), ([64], "prompt 1 .* vocabulary of 64")]
)
def test_bad_prompts_are_named(model, bad, words):
    with pytest.raises(InputError, match=words):
        answer(model, [[1], bad])


def test_no_answer_goes_beyond_the_positions_of_the_model(model):
    assert model.config.max_positions == 2048
    with pytest.raises(InputError, match=r"evaluation\.max_new_tokens 48 after a prompt of 2001 tokens"):
        answer(model, [[1], [2] * 2001], max_new_tokens=48)
    check_lengths([[2] * 2000], 48, model.config)


def test_smollm2_says_what_transformers_says(smollm2_folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    questions = (
        "What is the capital of France?",
        "Why is the sky blue? Explain it to a physicist in detail.",
    )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]
    found = answer(load_model(smollm2_folder), prompts, max_new_tokens=16)
    assert found == transformers_greedy(smollm2_folder, prompts, 16)
    assert "Paris" in tokenizer.decode(found[0])


@given(
    lengths=st.lists(st.integers(1, 9), max_size=40),
    batch_size=st.integers(1, 8),
    multiple=st.integers(1, 4),
    shards=st.integers(1, 8),
)
def test_parts_are_answered_in_the_batches_of_the_whole(lengths, batch_size, multiple, shards):
    rows, whole = batches_of(lengths, batch_size, multiple)
    parts = [sorted(places_of_shard(lengths, batch_size, multiple, shard, shards)) for shard in range(shards)]
    batches = []
    for part in filter(None, parts):
        same, chosen = batches_of([lengths[place] for place in part], batch_size, multiple)
        assert same == rows
        batches += [[part[place] for place in batch] for batch in chosen]
    assert sorted(batches) == sorted(whole)
    assert sum(map(bool, parts)) == (min(shards, max(1, len(lengths) // rows)) if lengths else 0)
