import pytest

from jora_tasks.errors import InputError
from retrieval.page_cache import PageCache


def test_pages_are_there_for_the_next_process(tmp_path):
    with PageCache(tmp_path / "new" / "pages.sqlite") as cache:
        assert cache.get(b"key") is None
        cache.add(b"key", "Title", "text \U0001f600")
        cache.add(b"key", "Title", "text \U0001f600")
    with PageCache(tmp_path / "new" / "pages.sqlite") as cache:
        assert cache.get(b"key") == ("Title", "text \U0001f600")
        assert cache.get(b"other") is None


def test_another_file_is_refused(tmp_path):
    (tmp_path / "pages.sqlite").write_bytes(b"no database, but long enough to be looked at" * 9)
    with pytest.raises(InputError, match=r"The cache .*pages\.sqlite cannot be read \(.*delete it and run"):
        PageCache(tmp_path / "pages.sqlite")
