import json
from collections import Counter

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


@pytest.mark.parametrize("near_duplicates", [0.9, 0.0])
def test_a_copied_document_is_never_a_second_source_and_is_cited(rag, near_duplicates):
    rag.copy_guide()
    texts = {chunk.id: chunk.text for chunk in read_chunks(rag.index().path)}
    retrieval = {"mode": "lexical", "near_duplicates": near_duplicates, "top_k": 6}
    rows = rows_of(rag.prompts(retrieval=retrieval, prompts={"cite": True, "token_budget": 4000}))
    for row in rows[:8]:
        shown = [texts[id_] for id_ in row["context_ids"]]
        assert row["split"] == "train" and len(set(shown)) == len(shown) > 1
        (label,) = row["oracle_labels"]
        assert shown[label - 1].startswith(f"## {row['example_id']}\n")
        assert row["messages"][-1]["content"] == f"{row['answers'][0]} [{label}]"


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
    assert any(row["dropped"] for row in rows)
    for row in rows:
        assert len(row["input_ids"]) <= budget
        assert row["messages"][1]["content"].endswith(f"Question: {row['question']}")
        if row["split"] == "train":
            assert row["oracle_ids"] == [oracle_of(rag, row["example_id"])]
        else:
            dropped = [each["chunk_id"] for each in row["dropped"]]
            assert sorted([*row["context_ids"], *dropped]) == sorted(found[row["example_id"]])
            ranks = [found[row["example_id"]].index(id_) for id_ in row["context_ids"]]
            assert ranks == sorted(ranks)
            assert {each["reason"] for each in row["dropped"]} <= {"over the budget"}
    reasons = Counter(each["reason"] for row in rows for each in row["dropped"])
    assert artifact.counts["dropped"] == reasons and reasons.keys() == {"over the budget", "replaced"}


def test_a_question_over_the_budget_is_refused(rag):
    rag.questions[3]["question"] = "why " * 100
    with pytest.raises(InputError, match=r"'why why.*…' .* without any source; raise prompts\.token_budget"):
        rag.prompts(prompts={"token_budget": 300})
    assert rag.left("prompts") == []


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


def test_raft_without_oracle_abstains_and_is_counted(rag):
    settings = {"oracle_fraction": 0.5, "without_oracle": "abstain", "distractors": 2, "cite": True}
    artifact = rag.prompts(prompts=settings)
    rows = [row for row in rows_of(artifact) if row["split"] == "train"]
    without = [row for row in rows if not row["oracle_ids"]]
    assert 0 < len(without) < len(rows)
    for row in rows:
        target = row["messages"][-1]["content"]
        assert len(row["distractor_ids"]) == 2
        assert row["abstains"] == (row in without)
        if row["abstains"]:
            assert target == "The sources do not say."
            assert not {oracle_of(rag, row["example_id"])} & set(row["context_ids"])
        else:
            (label,) = row["oracle_labels"]
            assert target == f"{row['answers'][0]} [{label}]"
            assert row["context_ids"][label - 1] == oracle_of(rag, row["example_id"])
    counts = artifact.counts
    assert counts["training"]["abstaining"] == counts["training"]["drawn_without_oracle"] == len(without)
    assert counts["oracles_per_prompt"] == {"0": len(without), "1": len(rows) - len(without)}
    places = Counter(str(label) for row in rows for label in row["oracle_labels"])
    assert counts["oracle_positions"] == dict(sorted(places.items()))


def test_held_out_prompts_do_not_depend_on_how_training_ones_are_made(rag):
    settings = {"oracle_fraction": 0.1, "distractors": 1, "distractor_source": "random", "seed": 3}
    settings["further_instructions"] = ["Say it."]
    plain, other = rows_of(rag.prompts()), rows_of(rag.prompts(prompts=settings))
    assert [row for row in plain if row["split"] != "train"] == [
        row for row in other if row["split"] != "train"
    ]
    assert {row["messages"][0]["content"] for row in other if row["split"] == "train"} == {
        "Say it.",
        rag.spec().prompts.instruction,
    }


def test_citations_are_asked_for_everywhere(rag):
    cite = rag.spec().prompts.cite_instruction
    for row in rows_of(rag.prompts(prompts={"cite": True})):
        assert row["messages"][0]["content"].endswith(cite)


def test_training_questions_that_give_a_held_out_one_away_are_left_out_and_listed(rag):
    rag.questions[0]["question"] = rag.questions[-1]["question"].upper() + "?"
    artifact = rag.prompts()
    assert rag.questions[0]["id"] not in {row["example_id"] for row in rows_of(artifact)}
    assert artifact.counts["overlap"] == {"train": {"exact": 1}, "left_out": 1}
    (line,) = artifact.file("overlap.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == rag.questions[0]["id"]
    assert json.loads(line)["other"] == rag.questions[-1]["id"]
    kept = rag.prompts(prompts={"remove_overlap": False})
    assert len(rows_of(kept)) == 16 and kept.counts["overlap"]["left_out"] == 0
    assert kept.file("overlap.jsonl").is_file()
    for row in rag.questions[:8]:
        row["question"] = rag.questions[-1]["question"]
    with pytest.raises(InputError, match="All 8 training questions overlap"):
        rag.prompts()


def test_general_instructions_are_mixed_in_at_their_share(rag):
    mix = [{"instruction": f"Add {i} and 1.", "output": str(i + 1)} for i in range(40)]
    mix[3]["instruction"] = "x" * 2000
    mix.append({"instruction": rag.questions[-1]["question"], "output": "leak"})
    path = rag.folder / "alpaca.json"
    path.write_text(json.dumps(mix))
    settings = {"mix_path": str(path), "mix_fraction": 0.5}
    artifact = rag.prompts(prompts=settings)
    rows = rows_of(artifact)
    mixed = [row for row in rows if row["kind"] == "instruction"]
    assert {row["split"] for row in mixed} == {"train"}
    counts = artifact.counts["instructions"]
    assert counts["mixed_in"] == len(mixed) and counts["mixed_in"] + counts["over_the_budget"] == 8
    assert rows[: -len(mixed)] == rows_of(rag.prompts())
    assert all(not row["context_ids"] and "[1]" not in row["messages"][0]["content"] for row in mixed)
    assert "leak" not in {row["answers"][0] for row in mixed}
    everything = rag.prompts(prompts={**settings, "mix_fraction": 0.9})
    assert everything.counts["instructions"] == {"mixed_in": 39, "over_the_budget": 1, "fewer_than_asked": 32}
    assert everything.counts["overlap"]["instructions"] == {"exact": 1}
    path.write_text(json.dumps(mix[:20]))
    assert rag.prompts(prompts=settings).key != artifact.key
    path.write_text("[]")
    with pytest.raises(InputError, match=r"alpaca\.json has no records"):
        rag.prompts(prompts=settings)
