from pathlib import Path

import numpy as np
import pytest

from jora_tasks.errors import InputError
from retrieval.vectors import InMemory, build, empty_index, factory_string, open_index, search

D = 16


def clustered(count, seed=0, centres=12):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, D))
    vectors = middle[rng.integers(centres, size=count)] + 0.4 * rng.normal(size=(count, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made(vectors, kind, target=0.95):
    return build(InMemory(vectors), D, kind, target, name="tiny")


def written(index, tmp_path):
    import faiss

    faiss.write_index(index, str(tmp_path / "index.faiss"))
    return open_index(tmp_path / "index.faiss")


def test_the_type_goes_by_size():
    assert factory_string("auto", 200_000) == "Flat"
    assert factory_string("auto", 200_001) == "IVF1024,Flat"
    assert factory_string("ivf_sq8", 1_000_000) == "IVF2048,SQ8"
    assert factory_string("ivf_flat", 0) == "IVF1,Flat"
    assert factory_string("HNSW32", 5) == "HNSW32"


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_sq8", "HNSW16", "SQ8", "PCA14,IVF8,Flat"])
def test_each_type_reaches_its_target_opened_from_disk_with_its_ids(kind, tmp_path):
    vectors, target = clustered(1500), 0.9 if kind != "PCA14,IVF8,Flat" else 0.5
    built = made(vectors, kind, target)
    opened = written(built.index, tmp_path)
    exact = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:11]
    _, found = opened.search(vectors, 11)
    recall = np.mean(
        [len(set(row) - {i} & set(best)) / 10 for i, (row, best) in enumerate(zip(found, exact, strict=True))]
    )
    assert recall >= target - 0.05  # tuned on a sample
    assert built.recall == pytest.approx(recall, abs=0.06)
    assert np.mean(found[:, 0] == np.arange(1500)) > target - 0.05  # a vector's own row is its nearest
    if kind == "flat":
        assert (built.recall, built.breadth, built.queries) == (1, {}, 0)
    assert ("nprobe" in built.breadth) == (kind.startswith("ivf") or "IVF" in kind)
    assert ("efSearch" in built.breadth) == (kind == "HNSW16")


def test_the_search_is_no_broader_than_the_target_needs():
    vectors = clustered(3000)
    narrow, broad = made(vectors, "ivf_flat", 0.6), made(vectors, "ivf_flat", 0.999)
    assert narrow.breadth["nprobe"] < broad.breadth["nprobe"]
    assert 0.6 <= narrow.recall < broad.recall


def test_two_builds_are_equal_bytes():
    import faiss

    vectors = clustered(1000)
    first, second = (faiss.serialize_index(made(vectors, "ivf_sq8").index) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "HNSW16", "SQ8"])
def test_a_search_among_some_rows_finds_the_best_of_them(kind):
    vectors = clustered(1200)
    index = made(vectors, kind).index
    rows = np.array([3, 700, 1100])
    _, found = search(index, vectors[:5], 3, rows)
    for query, got in zip(vectors[:5], found, strict=True):
        assert got.tolist() == rows[np.argsort(-(vectors[rows] @ query))].tolist()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("IDMap2,Flat", r"index\.type IDMap2,Flat: an IDMap keeps ids of its own.* leave it out"),
        ("IVF16,IDMap,Flat", "IDMap"),
        ("IVF99999999,Flat", "IVF99999999 is more than any index needs; give at most IVF1048576"),
        ("HNSW100000", "give at most HNSW512"),
        ("Nonsense", r"index\.type Nonsense cannot be made for vectors of 16 numbers; use auto"),
        ("PQ7", r"index\.type PQ7 cannot be made"),
        ("LSH", r"index\.type LSH cannot be made"),
    ],
)
def test_types_that_cannot_serve_are_refused(kind, message):
    with pytest.raises(InputError, match=message):
        empty_index(kind, D)


def test_a_target_that_a_type_cannot_reach_is_told():
    with pytest.raises(
        InputError, match=r"index\.type PQ2x4 finds 0\.\d+ of the nearest 10.*recall_target 0\.95"
    ):
        made(clustered(1000), "PQ2x4")


def test_too_few_vectors_to_train_on_are_told():
    with pytest.raises(
        InputError, match=r"index\.type IVF64,Flat cannot be trained on as few as 10 vectors; use flat"
    ):
        made(clustered(10), "IVF64,Flat")


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_sq8", "HNSW8"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_vectors_and_equal_ones(kind, count):
    vectors = np.repeat(clustered(1), count, axis=0)
    assert made(vectors, kind).recall == 1


def test_a_flat_index_and_an_ivf_are_mapped_not_read(tmp_path):
    import faiss

    vectors = clustered(20_000)
    for kind in ("flat", "ivf_flat"):
        opened = written(made(vectors, kind, 0.5).index, tmp_path)
        maps = Path("/proc/self/maps").read_text()
        assert str(tmp_path / "index.faiss") in maps, kind
        assert opened.ntotal == 20_000
        del opened
    assert faiss.IO_FLAG_MMAP_IFC


def test_new_queries_are_found_as_often_as_the_target_says():
    vectors, queries = clustered(6000), clustered(7000)[6000:]
    built = made(vectors, "ivf_flat", 0.9)
    assert built.recall >= built.recall_bound >= 0.9
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    _, found = search(built.index, queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.9
