"""Models so small that a whole pipeline runs in seconds, and a project around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PROJECT_SPEC = {
    "name": "tiny",
    "documents": {"path": "documents"},
    "questions": {"path": "questions.jsonl"},
    "index": {"embedder": "embedder", "chunk_tokens": 40},
    "retrieval": {"top_k": 2},
    "prompts": {"token_budget": 640},
    "model": {"base": "base"},
    "lora": {"r": 2},
    "training": {"batch_size": 4},
    "evaluation": {"max_new_tokens": 4, "bootstrap_samples": 100},
}
"""Settings of a project that `write_project` wrote, with folders relative to it."""


def pickle_weights(folder: Path) -> None:
    """Keep a model's weights as torch pickles them, and not in safetensors."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def write_tiny_embedder(folder: Path, seed: int) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?#-_=*()[]'\""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = ["the", "and", "option", "default", "heading"]
    pieces = [*specials, *characters, *(f"##{c}" for c in characters), *words, "##ing", "##s"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    hugging = folder.with_name(folder.name + "-bert")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(hugging)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=1.0,
    )
    BertModel(config).save_pretrained(hugging)
    transformer = Transformer(str(hugging), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder))
    return folder


def write_tiny_nli_model(folder: Path, seed: int = 1) -> Path:
    """As `write_tiny_reranker`, with the labels of natural language inference."""
    return write_tiny_reranker(folder, ("contradiction", "entailment", "neutral"), seed)


def write_tiny_reranker(folder: Path, labels: Sequence[str] = ("relevance",), seed: int = 1) -> Path:
    """A cross-encoder of one random layer over `write_tiny_embedder`'s tokens."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    embedder = write_tiny_embedder(folder.with_name(folder.name + "-embedder"), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(embedder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CrossEncoder(str(folder), max_length=64).save_pretrained(str(folder))
    return folder


def write_byte_tokenizer(folder: Path) -> Path:
    """A model folder whose tokens are bytes: config, tokenizer, chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": special[0], "eos_token": special[1], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 1}))
    return folder


def write_base(folder: Path, seed: int = 0) -> Path:
    """A random Llama of one layer over `write_byte_tokenizer`'s tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    hugging_config = json.loads((folder / "config.json").read_text())
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(hugging_config))
    return folder


def options() -> list[dict]:
    """16 questions on the options of `write_documents`: 8 to train, 2 dev, 6 test."""
    names = [f"{a}_{b}" for a in ("red", "blue", "long", "zero") for b in ("limit", "path", "size", "key")]
    splits = ["train"] * 8 + ["dev"] * 2 + ["test"] * 6
    return [
        {
            "id": name,
            "question": f"default of {name}",
            "answers": [str(3 * i)],
            "split": split,
            "evidence": [{"document_id": "guide.md", "text": f"## {name}\n\nDefault: {3 * i}"}],
        }
        for i, (name, split) in enumerate(zip(names, splits, strict=True))
    ]


def write_documents(folder: Path) -> None:
    """One document with the evidence of `options`."""
    folder.mkdir()
    parts = [f"{question['evidence'][0]['text']}\n" for question in options()]
    (folder / "guide.md").write_text("# Guide\n\nAll options.\n\n" + "\n".join(parts))


def write_questions(file: Path, questions: list[dict]) -> None:
    file.write_text("".join(json.dumps(question) + "\n" for question in questions))


def write_project(folder: Path) -> Path:
    """Documents, questions, embedder, base model and spec.yaml; returns the spec's file."""
    write_documents(folder / "documents")
    write_questions(folder / "questions.jsonl", options())
    write_tiny_embedder(folder / "embedder", seed=0)
    write_base(folder / "base")
    settings = json.loads(json.dumps(PROJECT_SPEC))
    settings["index"]["embedder"] = str(folder / "embedder")
    settings["model"]["base"] = str(folder / "base")
    (folder / "spec.yaml").write_text(json.dumps(settings, indent=2))  # YAML holds JSON
    return folder / "spec.yaml"
