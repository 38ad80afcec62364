import json
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jora_tasks.errors import InputError
from retrieval.chunking import Chunk
from retrieval.embedding import Embedder, EmbedderIdentity, embedding_text
from retrieval.index import Index, check_embedder, check_identity, read_chunks
from retrieval.onnx_int8 import int8_encoder
from retrieval.vectors import InMemory
from tests.retrieval.indexes import write_index
from tests.tiny import pickle_weights

TEXTS = ["the option", "the default of heading", "a much longer text, and the words in it!", "zebra", "0 1 2"]
IDENTITY = EmbedderIdentity("tiny", "sha256:1", 8, True, 64)


def chunks(count):
    return [Chunk(f"c{i}", "d", i, i + 1, "H", "x", 1) for i in range(count)]


def unit(rows, seed=0, width=8):
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_equals_brute_force(tmp_path):
    vectors, questions = unit(50), unit(7, seed=1)
    write_index(tmp_path, chunks(50), InMemory(vectors), IDENTITY)
    exact = questions.astype(np.float64) @ vectors.T.astype(np.float64)
    for cosines, hits in zip(exact, Index(tmp_path).search(questions, 5), strict=True):
        best = np.argsort(-cosines)[:5]
        assert [row for row, _ in hits] == best.tolist()
        np.testing.assert_allclose([score for _, score in hits], cosines[best], atol=1e-6)


def test_all_chunks_where_fewer_than_k(tmp_path):
    write_index(tmp_path, chunks(3), InMemory(unit(3)), IDENTITY)
    assert len(Index(tmp_path).search(unit(1), 10)[0]) == 3


@pytest.mark.parametrize("count", [1, 5, 20])
def test_only_allowed_chunks_are_found(tmp_path, count):
    vectors, questions = unit(50), unit(4, seed=1)
    write_index(tmp_path, chunks(50), InMemory(vectors), IDENTITY)
    allowed = np.zeros(50, bool)
    allowed[np.random.default_rng(2).permutation(50)[:count]] = True
    exact = np.where(allowed, questions @ vectors.T, -2)
    for cosines, hits in zip(exact, Index(tmp_path).search(questions, 10, allowed), strict=True):
        assert [row for row, _ in hits] == np.argsort(-cosines)[: min(10, count)].tolist()


def test_chunks_come_back_as_they_were(tmp_path):
    given = [Chunk("id", "d", 3, 7, "A › B", "caf\u00e9", 2)]
    write_index(tmp_path, given, InMemory(unit(1)), IDENTITY)
    assert read_chunks(tmp_path) == given
    assert json.loads((tmp_path / "embedder.json").read_text()) == IDENTITY.record()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vectors_that_cannot_be_compared_are_refused_before_anything_is_written(tmp_path, bad):
    vectors = unit(4)
    vectors[2] = bad
    with pytest.raises(InputError, match="1 of 4 texts a vector with NaN"):
        write_index(tmp_path, chunks(4), InMemory(vectors), IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_another_embedder_is_refused_and_both_are_named(tmp_path):
    write_index(tmp_path, chunks(2), InMemory(unit(2)), IDENTITY)
    check_embedder(tmp_path, Embedder(tmp_path, IDENTITY.name, IDENTITY.digest))
    with pytest.raises(
        InputError, match=r"embedder tiny .* is large .*build the index again with `jora index`"
    ):
        check_embedder(tmp_path, Embedder(tmp_path, "large", "sha256:2"))


def test_vectors_equal_sentence_transformers_and_are_the_same_bits_whatever_the_batch(tiny_embedder_folder):
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(tiny_embedder_folder)).encode(TEXTS, normalize_embeddings=True)
    together = Embedder(tiny_embedder_folder, "tiny", "sha256:1", batch_tokens=1000)
    seen: list[int] = []
    ours = together.embed_texts([*TEXTS, TEXTS[0]], seen.append)
    assert ours.dtype == np.float32
    assert seen[-1] == len(TEXTS) + 1 > len(seen)  # equal texts were computed together
    np.testing.assert_allclose(ours[:-1], oracle, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    for row, text in enumerate(TEXTS):
        assert np.array_equal(together.embed_texts([text])[0], ours[row])
    one_by_one = Embedder(tiny_embedder_folder, "tiny", "sha256:1", batch_tokens=1)
    assert np.array_equal(one_by_one.embed_questions(TEXTS), ours[:-1])


def test_prompts_are_the_model_s_own_unless_others_are_given(tiny_embedder_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "prompted"
    shutil.copytree(tiny_embedder_folder, folder)
    _alter(folder, "config_sentence_transformers.json", prompts={"query": "the ", "document": "option "})
    oracle = SentenceTransformer(str(folder))
    own = Embedder(folder, "tiny", "sha256:1")
    assert (own.identity.query_prompt, own.identity.passage_prompt) == ("the ", "option ")
    assert own.tokens_around == 3
    np.testing.assert_allclose(
        own.embed_texts(TEXTS), oracle.encode_document(TEXTS, normalize_embeddings=True), atol=1e-5
    )
    np.testing.assert_allclose(
        own.embed_questions(TEXTS), oracle.encode_query(TEXTS, normalize_embeddings=True), atol=1e-5
    )
    given = Embedder(folder, "tiny", "sha256:1", query_prompt="zero ", passage_prompt="and ")
    expected = oracle.encode(["zero " + text for text in TEXTS], normalize_embeddings=True)
    np.testing.assert_allclose(given.embed_questions(TEXTS), expected, atol=1e-5)
    expected = oracle.encode(["and " + text for text in TEXTS], normalize_embeddings=True)
    np.testing.assert_allclose(given.embed_texts(TEXTS), expected, atol=1e-5)


def test_a_model_that_leaves_its_prompt_out_of_pooling_embeds_as_sentence_transformers_does(
    tiny_embedder_folder, tmp_path
):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "without"
    shutil.copytree(tiny_embedder_folder, folder)
    _alter(folder, "1_Pooling/config.json", include_prompt=False)
    expected = SentenceTransformer(str(folder)).encode(TEXTS, prompt="the ", normalize_embeddings=True)
    given = Embedder(folder, "tiny", "sha256:1", passage_prompt="the ")
    np.testing.assert_allclose(given.embed_texts(TEXTS), expected, atol=1e-5)


def test_another_prompt_pooling_or_backend_is_refused_at_query_time(tmp_path):
    built = replace(IDENTITY, query_prompt="q: ", pooling="mean")
    write_index(tmp_path, chunks(2), InMemory(unit(2)), built)
    check_embedder(tmp_path, Embedder(tmp_path, "tiny", "sha256:1", query_prompt="q: "))
    with pytest.raises(InputError, match=r"index\.query_prompt 'q: ', but it is 'x: ' now"):
        check_embedder(tmp_path, Embedder(tmp_path, "tiny", "sha256:1", query_prompt="x: "))
    with pytest.raises(InputError, match=r"index\.backend torch, but it is onnx_int8 now"):
        check_embedder(tmp_path, Embedder(tmp_path, "tiny", "sha256:1", backend="onnx_int8"))
    check_identity(tmp_path, replace(built, name="moved"))
    with pytest.raises(InputError, match=r"pooling 'mean', but that of tiny is 'cls'"):
        check_identity(tmp_path, replace(built, pooling="cls"))


def test_damaged_weights_and_missing_parts_are_refused(tiny_embedder_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_embedder_folder, damaged)
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][:] = np.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"embedder broken gave 1 of 1 texts a vector with NaN"):
        Embedder(damaged, "broken", "sha256:2").embed_texts(TEXTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"index\.embedder none has no tokenizer"):
        _ = Embedder(tmp_path / "empty", "none", "sha256:3").identity


def _truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _alter(folder, name, **settings):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def _forget_the_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    _alter(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_forget_the_tokenizer, r"has no tokenizer; put its tokenizer\.json"),
        (_truncate, "cannot be read"),
        (pickle_weights, r"cannot be read .*no file named model\.safetensors"),
        (lambda folder: shutil.rmtree(folder / "1_Pooling"), "cannot be read"),
        (lambda folder: _alter(folder, "config.json", hidden_size=64), "cannot be read"),
        (
            lambda folder: _alter(folder, "1_Pooling/config.json", embedding_dimension=64),
            "of 32 instead of 64",
        ),
        (lambda folder: _alter(folder, "tokenizer_config.json", pad_token=None), "padding token"),
    ],
    ids=[
        "no tokenizer",
        "truncated",
        "pickled",
        "no pooling",
        "hidden size",
        "pooling size",
        "no padding, as in Llama",
    ],
)
def test_a_damaged_embedder_is_named_before_anything_is_embedded(
    tiny_embedder_folder, tmp_path, damage, message
):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_embedder_folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=rf"index\.embedder broken .*{message}"):
        Embedder(folder, "broken", "sha256:2").offsets("the option")


def test_embedded_text_has_the_end_of_the_heading_path_that_fits(tiny_embedder):
    heading, offsets = "the option and the default", tiny_embedder.offsets
    assert embedding_text("text", heading, offsets, 10) == "the option and the default\ntext"
    assert embedding_text("text", heading, offsets, 2) == "the default\ntext"
    assert embedding_text("text", heading, offsets, 0) == "text"


def test_the_remedy_for_a_missing_extra_takes_it_from_the_project_itself(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install -c constraints\.txt -e '\.\[onnx\]'"):
        int8_encoder(None, "sha256:1", tmp_path)
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert "onnx" in project["optional-dependencies"]
    sources = [*root.glob("jora_tasks/**/*.py"), *root.glob("retrieval/**/*.py"), root / "README.md"]
    by_name = f"{project['name']}["  # asks an index for the name, where it may be another project's
    assert [str(file) for file in sources if by_name in file.read_text()] == []


def test_int8_vectors_are_close_the_same_whatever_the_batch_and_made_once(tiny_embedder_folder, tmp_path):
    cache = tmp_path / "onnx"
    made = Embedder(tiny_embedder_folder, "tiny", "sha256:1", backend="onnx_int8", cache_folder=cache)
    ours = made.embed_texts(TEXTS)
    expected = made.float32().embed_texts(TEXTS)
    assert 0.95 < np.einsum("nd,nd->n", ours, expected).min() < 1
    (file,) = cache.iterdir()
    stamp = file.stat().st_mtime_ns
    again = Embedder(tiny_embedder_folder, "tiny", "sha256:1", backend="onnx_int8", cache_folder=cache)
    for row, text in enumerate(TEXTS):
        assert np.array_equal(again.embed_texts([text])[0], ours[row])
    assert file.stat().st_mtime_ns == stamp
    assert again.identity.backend == "onnx_int8"


def test_offsets_are_the_tokenizer_s_of_the_whole_text(tiny_embedder):
    text = " ".join(TEXTS) * 20  # longer than the embedder reads
    expected = tiny_embedder.model.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False
    )["offset_mapping"]
    assert tiny_embedder.offsets(text) == expected
    assert len(expected) > tiny_embedder.identity.max_seq_length
