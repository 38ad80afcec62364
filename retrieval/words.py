"""Words of a text in any script, and the terms that lexical search looks them up by."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import regex

# Letters, digits, underscores, and the marks that belong to letters of Indic scripts among others.
_WORD = regex.compile(r"[\w\p{M}]+")
# Parts of an identifier. The last of several capitals begins a word if two small letters follow:
# HTTPServer is http and server, DAGs is dags.
_PART = regex.compile(r"\p{Lu}+(?!\p{Ll}{2})s?|\p{Lu}?[\p{Ll}\p{Lo}\p{Lm}\p{Lt}\p{M}]+|\p{N}+")
# Scripts written without spaces between words, and Korean, whose words carry their endings.
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc]+"
)


def words(text: str) -> list[str]:
    """The words of a text, case folded and in compatibility form: ``The ﬁle`` → ``the``, ``file``."""
    return [_folded(word) for word in find_words(text)]


def terms(text: str) -> Iterator[str]:
    """What a text is found by: its words, and what their parts are.

    An identifier is a term and so is each of its parts: ``AIRFLOW__CORE__DAGS_FOLDER`` →
    ``airflow__core__dags_folder``, ``airflow``, ``core``, ``dags``, ``folder``. A run of Chinese,
    Japanese, Korean, Thai, Lao, Khmer or Burmese is its pairs of neighbouring characters, as in
    Lucene's CJKAnalyzer. There are no stop words and no stemming, which would be of one language.
    """
    for word in find_words(text):
        yield from terms_of(word)


def find_words(text: str) -> list[str]:
    """The words of a text as they stand in it."""
    return _WORD.findall(text)


@lru_cache(maxsize=1 << 17)
def terms_of(word: str) -> tuple[str, ...]:
    """The `terms` of one word."""
    whole = _folded(word)
    if whole.isascii() and whole.isalpha() and (word[1:].islower() or word.isupper() or len(word) == 1):
        return (whole,)
    found = []
    for part in _split_scripts(unicodedata.normalize("NFKC", word)):
        if _UNSPACED.fullmatch(part):
            found += [part[i : i + 2] for i in range(max(1, len(part) - 1))]
        else:
            parts = [piece.casefold() for piece in _PART.findall(part)]
            folded = part.casefold()
            found += [folded] if parts in ([], [folded]) else [folded, *parts]
    return tuple(found)


def _split_scripts(word: str) -> Iterator[str]:
    """The runs of a word that are written without spaces, and what is between them."""
    position = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > position:
            yield word[position : run.start()]
        yield run.group()
        position = run.end()
    if position < len(word):
        yield word[position:]


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()
