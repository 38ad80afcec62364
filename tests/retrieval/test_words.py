import pytest

from retrieval.words import terms, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The option, twice: the OPTION.", ["the", "option", "twice", "the", "option"]),
        ("AIRFLOW__CORE__DAGS_FOLDER", ["airflow__core__dags_folder", "airflow", "core", "dags", "folder"]),
        ("dags_folder", ["dags_folder", "dags", "folder"]),
        ("HTTPServer2", ["httpserver2", "http", "server", "2"]),
        ("parseXMLFile DAGs", ["parsexmlfile", "parse", "xml", "file", "dags"]),
        ("core.dags/a-b", ["core", "dags", "a", "b"]),
        ("Straße ÉCOLE e\u0301cole", ["strasse", "école", "école"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # marks are parts of words
        ("東京都に Python3で", ["東京", "京都", "都に", "python3", "python", "3", "で"]),
        ("한국어를", ["한국", "국어", "어를"]),
        ("-- !? \u2028", []),
    ],
)
def test_terms(text, expected):
    assert list(terms(text)) == expected


def test_words_are_folded_and_whole():
    assert words("The ﬁle_name, Über") == ["the", "file_name", "über"]
