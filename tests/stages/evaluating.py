"""Prompts, adapters and champions for evaluations, over a random model whose tokens are whole words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.models import model_source
from jora_tasks.registry import DIGEST, EVALUATION, KEY, Registry
from jora_tasks.spec import LoraConfig, RunSpec, parse_spec
from jora_tasks.stages.contexts import contexts_schema

LABELS = [f"[{i}]" for i in range(1, 21)]
WORDS = [*(f"word{i}" for i in range(40)), *LABELS]  # so that a random model cites now and then


def write_word_base(folder: Path) -> Path:
    """A random Llama of two layers, whose tokens are whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for each in messages %}{{ each['content'] + ' ' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_spec(base: Path, **evaluation: Any) -> RunSpec:
    settings = {"max_new_tokens": 4, "batch_size": 3, "bootstrap_samples": 200} | evaluation
    return parse_spec({"model": {"base": str(base)}, "evaluation": settings})


RETRIEVAL = {
    "recall_at_k": {"1": 0.5, "4": 0.75},
    "measures": {"dev": {}, "test": {"recall@1": 0.5, "recall@4": 0.75, "rr@4": 0.625, "ndcg@4": 0.66}},
    "retriever": {"mode": "lexical", "dense_weight": 0.0, "reason": "set by retrieval.mode"},
}


def make_passages(i: int) -> list[dict[str, Any]]:
    """A source for each label, as the contexts stage writes them."""
    return [
        {
            "chunk_id": f"q{i}-{number}",
            "document_id": "guide.md",
            "start": number,
            "end": number + 1,
            "heading": f"Heading {i}",
            "text": f"{WORDS[number]} {WORDS[(7 * number + i) % 40]}",
            "rank": number + 1,
            "score": 0.5,
        }
        for number in range(len(LABELS))
    ]


def make_prompts(store: ArtifactStore, test: int = 10, seed: int = 0, cite: bool = False) -> Artifact:
    """Prompts of many lengths, as the prompts stage writes them; pairs of questions share a group."""
    generator = random.Random(seed)

    def write_contexts(folder: Path) -> dict[str, Any]:
        rows = [
            {
                "question_id": f"q{i}",
                "question": f"question {i}?",
                "answers": [WORDS[i % 60]],
                "split": "test",
                "group": f"fact{i // 2}",
                "evidence": [],
                "contexts": make_passages(i) if cite else [],
                "candidates": [],
                "measures": {"recall@1": float(i % 2), "rr@4": 0.5},
            }
            for i in range(test)
        ]
        table = pa.Table.from_pylist(rows, schema=contexts_schema())
        pq.write_table(table, folder / "contexts.parquet")
        return RETRIEVAL

    contexts = store.build(
        "contexts",
        version=1,
        settings={"seed": seed, "n": test, "cite": cite},
        inputs={},
        write=write_contexts,
    )

    def write(folder: Path) -> dict[str, Any]:
        rows = []
        for i in range(test + 3):
            prompt = [generator.randrange(3, 63) for _ in range(generator.randrange(3, 40))]
            rows.append(
                {
                    "example_id": f"q{i}" if i < test else f"train{i}",
                    "split": "test" if i < test else "train",
                    "question": f"question {i}?",
                    "answers": [WORDS[i % 60]],
                    "input_ids": [*prompt, 5, 1],
                    "prompt_length": len(prompt),
                    "closed_book_ids": prompt[-3:],
                    "oracle_labels": [],
                    "context_ids": [each["chunk_id"] for each in make_passages(i)] if cite else [],
                }
            )
        ids = pa.list_(pa.int32())
        schema = pa.schema(
            [
                ("example_id", pa.string()),
                ("split", pa.string()),
                ("question", pa.string()),
                ("answers", pa.list_(pa.string())),
                ("input_ids", ids),
                ("prompt_length", pa.int32()),
                ("closed_book_ids", ids),
                ("oracle_labels", ids),
                ("context_ids", pa.list_(pa.string())),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "prompts.parquet")
        return {}

    return store.build(
        "prompts", version=1, settings={"cite": cite}, inputs={"contexts": contexts}, write=write
    )


def make_adapter(
    store: ArtifactStore, base_folder: Path, prompts: Artifact, seed: int, base: Source | None = None
) -> Artifact:
    """A random adapter, strong enough to change answers."""
    from jora_tasks.trainer.config import read_config
    from jora_tasks.trainer.export import save_adapter
    from jora_tasks.trainer.model import LanguageModel

    lora_config = LoraConfig(r=2, lora_alpha=8, target_modules=("q_proj", "down_proj"))

    def write(folder: Path) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        config = read_config(base_folder)

        def draw(*shape: int) -> np.ndarray:
            return generator.normal(size=(config.num_hidden_layers, *shape)).astype(np.float32)

        lora = {
            name: {
                "a": draw(2, config.projections[name].in_features),
                "b": draw(2, config.projections[name].out_features),
            }
            for name in lora_config.target_modules
        }
        model = LanguageModel(config=config, base={}, lora=lora, lora_config=lora_config)
        save_adapter(model, folder, "tiny-base")
        steps = [{"step": i, "loss": 1 / (i + 1), "learning_rate": 1e-3} for i in range(5)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        return {"steps": 5}

    source = base or model_source(base_folder, str(base_folder))
    return store.build(
        "adapter",
        version=1,
        settings={"seed": seed},
        inputs={"prompts": prompts, "base_model": source},
        write=write,
    )


def register(store: ArtifactStore, adapter: Artifact, promote: bool = True, **tags: str) -> int:
    registry = Registry(store.home)
    version = registry.register(
        adapter.path,
        "documents",
        metrics={},
        tags={DIGEST: adapter.digest, KEY: adapter.key, EVALUATION: "sha256:e", **tags},
        params={},
    )
    if promote:
        registry.promote("documents", version, by="tests", reason="to compare with")
    return version


def rows_of(evaluation: Artifact, arm: str) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(evaluation.file("predictions.parquet")).to_pylist()
    return {row["example_id"]: row for row in rows if row["arm"] == arm}


def report_of(evaluation: Artifact) -> dict[str, Any]:
    return json.loads(evaluation.file("report.json").read_text())
