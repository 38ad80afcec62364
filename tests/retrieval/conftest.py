"""A small real embedder with random weights: sentence-transformers' own format, no download."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_embedder_folder(tmp_path_factory) -> Path:
    return write_tiny_embedder(tmp_path_factory.mktemp("embedders") / "tiny", seed=0)


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


@pytest.fixture(scope="session")
def tiny_embedder(tiny_embedder_folder):
    from retrieval.embedding import Embedder

    return Embedder(tiny_embedder_folder, "tiny", "sha256:1")
