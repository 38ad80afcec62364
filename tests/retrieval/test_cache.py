import contextlib
import sqlite3

import numpy as np
import pytest

from jora_tasks.errors import InputError, RunStopped
from retrieval.cache import Cache, text_key
from retrieval.chunking import Cut
from retrieval.page_cache import PageCache


def test_vectors_come_back_by_text_in_the_order_asked(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(1201, 3)).astype(np.float32)
    keys = [text_key(str(number)) for number in range(1201)]
    with Cache(tmp_path / "new" / "cache.sqlite") as cache:
        cache.add_vectors(keys, vectors)
        cache.add_vectors(keys[:1], np.zeros((1, 3)))  # the first one stays
    with Cache(tmp_path / "new" / "cache.sqlite") as cache:
        order = [7, 1200, 7, 0]
        assert np.array_equal(cache.vectors([keys[i] for i in order], 3), vectors[order])
        assert cache.known([*keys, text_key("unknown")]) == set(keys)
        with pytest.raises(InputError, match="delete it and run again"):
            cache.vectors([text_key("unknown")], 3)
        with pytest.raises(InputError, match="delete it and run again"):
            cache.vectors(keys[:1], 4)


def test_cuts_and_facts_come_back(tmp_path):
    made = {
        b"1" * 32: [(Cut(0, 4, "A › B", 2), text_key("x")), (Cut(5, 9, "", 1), text_key("y"))],
        b"2" * 32: [],
    }
    with Cache(tmp_path / "cache.sqlite") as cache:
        cache.add_cuts(made)
        cache.add_fact("name", "value")
        assert cache.cuts([*made, b"3" * 32]) == made
        assert (cache.fact("name"), cache.fact("other")) == ("value", None)


def test_two_processes_may_write_at_a_time(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as one, Cache(tmp_path / "cache.sqlite") as other:
        one.add_vectors([text_key("a")], np.ones((1, 2)))
        other.add_vectors([text_key("a"), text_key("b")], np.full((2, 2), 2.0))
        assert one.vectors([text_key("a"), text_key("b")], 2).tolist() == [[1, 1], [2, 2]]


def test_a_file_that_is_no_cache_is_named(tmp_path):
    file = tmp_path / "cache.sqlite"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"cache\.sqlite cannot be read .*; delete it and run again"):
        Cache(file)


def altered(file, statement):
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        assert database.execute(statement).rowcount == 1


@pytest.mark.parametrize("value", ["x'0000803f0000803f'", "x'00'", "'text'", "1.5"])
def test_an_altered_vector_counts_as_absent_and_is_made_again(tmp_path, value):
    file, keys = tmp_path / "cache.sqlite", [text_key("a"), text_key("b")]
    with Cache(file) as cache:
        cache.add_vectors(keys, np.full((2, 2), 3.0))
    altered(file, f"UPDATE vectors SET value = {value} WHERE key = x'{keys[0].hex()}'")
    with Cache(file) as cache:
        with pytest.raises(InputError, match="delete it and run again"):
            cache.vectors(keys, 2)
        assert cache.known(keys) == {keys[1]}
        cache.add_vectors(keys[:1], np.full((1, 2), 4.0))
        assert cache.vectors(keys, 2).tolist() == [[4, 4], [3, 3]]


def test_altered_cuts_facts_and_pages_count_as_absent(tmp_path):
    file, pages_file = tmp_path / "cache.sqlite", tmp_path / "pages.sqlite"
    made = {b"1" * 32: [(Cut(0, 4, "A", 2), text_key("x"))]}
    with Cache(file) as cache, PageCache(pages_file) as pages:
        cache.add_cuts(made)
        cache.add_fact("name", "1")
        pages.add(b"k", "title", "text")
    altered(file, "UPDATE cuts SET value = CAST('[[0, ' AS BLOB)")
    altered(file, "UPDATE facts SET value = CAST('2' AS BLOB)")
    altered(pages_file, 'UPDATE pages SET value = CAST(\'["title", "other"]\' AS BLOB)')
    with Cache(file) as cache, PageCache(pages_file) as pages:
        assert cache.cuts(made) == {} and cache.fact("name") is None and pages.get(b"k") is None
        cache.add_cuts(made)
        cache.add_fact("name", "1")
        pages.add(b"k", "title", "text")
        assert cache.cuts(made) == made and cache.fact("name") == "1" and pages.get(b"k") == ("title", "text")


def test_damage_in_the_middle_is_told_with_the_file(tmp_path):
    file, keys = tmp_path / "cache.sqlite", [text_key(str(number)) for number in range(2000)]
    with Cache(file) as cache:
        cache.add_vectors(keys, np.ones((2000, 16)))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = b"\xa5" * 40_000
    file.write_bytes(content)
    with (
        pytest.raises(
            InputError, match=r"The cache .*cache\.sqlite cannot be read \(.*\); delete it and run"
        ),
        Cache(file) as cache,
    ):
        cache.known(keys)


def test_a_file_of_an_older_format_is_made_anew(tmp_path):
    file = tmp_path / "cache.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as old, old:
        old.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        old.execute("INSERT INTO vectors VALUES (?, ?)", (text_key("a"), b"0000"))
    with Cache(file) as cache, Cache(file) as other:
        assert cache.known([text_key("a")]) == set()
        cache.add_vectors([text_key("a")], np.ones((1, 2)))
        assert other.known([text_key("a")]) == {text_key("a")}


def test_a_cache_in_use_is_not_told_as_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.sqlite._WAIT_SECONDS", 0.1)
    file = tmp_path / "cache.sqlite"
    with Cache(file) as cache, contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunStopped, match=r"cache\.sqlite was in use by another process"):
            cache.add_fact("name", "value")
