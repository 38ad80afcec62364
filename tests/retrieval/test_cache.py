import numpy as np
import pytest

from jora_tasks.errors import InputError
from retrieval.cache import Cache, text_key
from retrieval.chunking import Cut


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
