import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from jora_tasks.errors import InputError
from retrieval.index import read_chunks


def rows_of(artifact):
    return pq.read_table(artifact.file("prompts.parquet")).to_pylist()


def retrieved(rag, **sections):
    table = pq.read_table(rag.contexts(**sections).file("contexts.parquet")).to_pylist()
    return {row["question_id"]: [each["chunk_id"] for each in row["contexts"]] for row in table}


def oracle_of(rag, name):
    return next(c.id for c in read_chunks(rag.index().path) if c.heading.endswith(f"› {name}"))


def test_conversation_is_the_models_own_chat(rag):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(rag.model)
    for row in rows_of(rag.prompts()):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == text.removesuffix("\n")
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        prompt = tokenizer.apply_chat_template(
            row["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(row["input_ids"][: row["prompt_length"]]) == prompt
        assert tokenizer.decode(row["input_ids"][row["prompt_length"] :]) == row["answers"][0] + "<|im_end|>"


def test_sources_are_numbered_and_whole(rag):
    chunks = {chunk.id: chunk for chunk in read_chunks(rag.index().path)}
    spec = rag.spec()
    for row in rows_of(rag.prompts()):
        system, user, _ = row["messages"]
        sources = "".join(
            f"[{n}] ({chunks[id_].heading})\n{chunks[id_].text}\n\n"
            for n, id_ in enumerate(row["context_ids"], start=1)
        )
        assert system["content"] == spec.prompts.instruction
        assert user["content"] == f"{sources}Question: {row['question']}"


def test_closed_book_has_the_question_and_no_source(rag):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(rag.model)
    instruction = rag.spec().prompts.closed_book_instruction
    for row in rows_of(rag.prompts()):
        text = tokenizer.decode(row["closed_book_ids"])
        assert text.startswith(f"<|im_start|>system\n{instruction}<|im_end|>")
        assert text.endswith(f"Question: {row['question']}<|im_end|>\n<|im_start|>assistant\n")
        assert "[1]" not in text


def test_held_out_prompts_have_what_was_retrieved_by_rank(rag):
    found = retrieved(rag)
    rows = [row for row in rows_of(rag.prompts()) if row["split"] != "train"]
    assert [row["context_ids"] for row in rows] == [found[row["example_id"]] for row in rows]
    missed = [row for row in rows if not row["oracle_ids"]]
    assert missed  # else the next line tests nothing
    assert all(oracle_of(rag, row["example_id"]) not in row["context_ids"] for row in missed)


def test_training_prompts_get_the_missing_oracle_in_place_of_the_last(rag):
    found = retrieved(rag)
    rows = [row for row in rows_of(rag.prompts()) if row["split"] == "train"]
    added = 0
    for row in rows:
        oracle = oracle_of(rag, row["example_id"])
        assert row["oracle_ids"] == [oracle]
        ranked = found[row["example_id"]]
        expected = ranked if oracle in ranked else [*ranked[:-1], oracle]
        added += oracle not in ranked
        assert sorted(row["context_ids"]) == sorted(expected)
        assert set(row["oracle_ids"]) | set(row["distractor_ids"]) == set(row["context_ids"])
    assert added
    plain = [row for row in rows_of(rag.prompts(prompts={"add_missing_oracle": False}))]
    assert sum(not row["oracle_ids"] for row in plain if row["split"] == "train") == added


def test_order_of_training_sources_is_drawn_by_seed_and_question(rag):
    def orders(**prompts):
        rows = rows_of(rag.prompts(prompts=prompts))
        return [row["context_ids"] for row in rows if row["split"] == "train"]

    first = orders(seed=0)
    places = {
        row["context_ids"].index(row["oracle_ids"][0])
        for row in rows_of(rag.prompts())
        if row["split"] == "train"
    }
    assert places == {0, 1, 2}
    assert orders(seed=1) != first
    kept = dict(zip([q["id"] for q in rag.questions], first, strict=False))
    rag.questions = [question for question in rag.questions if question["id"] != "red_limit"]
    assert orders(seed=0) == [order for name, order in kept.items() if name != "red_limit"]


def test_budget_drops_whole_chunks_and_names_them(rag):
    everything = rows_of(rag.prompts())
    budget = sorted(len(row["input_ids"]) for row in everything)[len(everything) // 2] - 30
    artifact = rag.prompts(prompts={"token_budget": budget})
    found, rows = retrieved(rag), rows_of(artifact)
    assert any(row["dropped_ids"] for row in rows)
    for row in rows:
        assert len(row["input_ids"]) <= budget
        assert row["messages"][1]["content"].endswith(f"Question: {row['question']}")
        if row["split"] == "train":
            assert row["oracle_ids"] == [oracle_of(rag, row["example_id"])]
        else:
            assert sorted([*row["context_ids"], *row["dropped_ids"]]) == sorted(found[row["example_id"]])
            ranks = [found[row["example_id"]].index(id_) for id_ in row["context_ids"]]
            assert ranks == sorted(ranks)
        assert row["dropped_reason"] == (f"over the budget of {budget} tokens" if row["dropped_ids"] else "")
    assert artifact.counts["dropped_chunks"] == sum(len(row["dropped_ids"]) for row in rows)


def test_a_chunk_that_does_not_fit_makes_way_for_a_shorter_one(byte_tokenizer_folder):
    from jora_tasks.spec import PromptsConfig
    from jora_tasks.stages.prompts import Passage, pack
    from jora_tasks.trainer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(byte_tokenizer_folder)
    config = PromptsConfig(token_budget=300, instruction="i")
    passages = [
        Passage(name, "d", "h", "x" * size, False) for name, size in (("a", 80), ("b", 200), ("c", 20))
    ]
    prompt = pack(passages, "q", "5", config, tokenizer)
    assert [passage.chunk_id for passage in prompt.passages] == ["a", "c"]
    assert [passage.chunk_id for passage in prompt.dropped] == ["b"]
    assert len(prompt.input_ids) <= 300


def test_a_question_over_the_budget_and_an_answer_without_token_are_refused(rag, byte_tokenizer_folder):
    from jora_tasks.spec import PromptsConfig
    from jora_tasks.stages.prompts import pack
    from jora_tasks.trainer.tokenizer import load_tokenizer

    rag.questions[3]["question"] = "why " * 100
    with pytest.raises(InputError, match=r"'why why.*…' .* without any source; raise prompts\.token_budget"):
        rag.prompts(prompts={"token_budget": 300})
    assert rag.left("prompts") == []
    with pytest.raises(InputError, match="answer '' to 'q' has no token"):
        pack([], "q", "", PromptsConfig(), load_tokenizer(byte_tokenizer_folder))


def test_counts(rag):
    artifact = rag.prompts()
    rows = rows_of(artifact)
    lengths = [len(row["input_ids"]) for row in rows]
    assert artifact.counts["questions"] == {"train": 8, "dev": 2, "test": 6}
    assert artifact.counts["tokens"]["max"] == max(lengths)
    histogram = artifact.counts["length_histogram"]
    assert sum(histogram.values()) == len(rows)
    assert histogram == {
        bucket: sum(int(bucket) / 2 < length <= int(bucket) for length in lengths) for bucket in histogram
    }


def test_reused_unless_contexts_tokenizer_or_settings_change(rag, tmp_path, byte_tokenizer_folder):
    import shutil

    first = rag.prompts()
    assert rag.prompts().reused
    keys = {first.key, rag.prompts(prompts={"seed": 5}).key}
    rag.model = tmp_path / "bytes"
    shutil.copytree(byte_tokenizer_folder, rag.model)
    assert rag.prompts().key == first.key
    (rag.model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    keys.add(rag.prompts().key)
    assert len(keys) == 3
    assert str(tmp_path) not in (first.path / "manifest.json").read_text()


def test_a_base_model_without_tokenizer_is_refused(rag, tmp_path):
    rag.model = tmp_path / "model"
    rag.model.mkdir()
    (rag.model / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no tokenizer"):
        rag.prompts()


def test_stages_before_training_import_neither_jax_nor_airflow():
    import subprocess
    import sys

    code = "import sys\n"
    code += "from jora_tasks.stages import corpus, index, contexts, prompts\n"
    heavy = ("jax", "torch", "faiss", "airflow", "transformers", "sentence_transformers", "pyarrow")
    code += f"loaded = [name for name in {heavy} if name in sys.modules]\nassert not loaded, loaded\n"
    subprocess.run([sys.executable, "-c", code], check=True)
