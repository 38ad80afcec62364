import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.retrieval.collecting import put, read

GERMAN = "Der Bär läuft über die Straße und grüßt die Mädchen. Danach schläft er.\n"
RUSSIAN = "Привет, как дела? Это обычный русский текст о погоде и природе.\n"
POLISH = "Zażółć gęślą jaźń, to jest polski tekst o pogodzie i przyrodzie.\n"
JAPANESE = "日本語のテキストです。これは試験です。\n"


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        *((GERMAN, codec) for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252")),
        *((GERMAN, codec) for codec in ("utf-16-le", "utf-16-be")),
        ("café", "latin-1"),
        ("“smart” quotes – café", "cp1252"),
        ("Il a été à l'école, où ça commence à huit heures.", "cp1252"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "utf-16"),
        (POLISH, "cp1250"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        ("中文文本测试一下编码检测\n", "gb18030"),
    ],
)
def test_encodings_are_found(tmp_path, text, codec):
    put(tmp_path, "a.txt", text.encode(codec))
    put(tmp_path, "b.csv", f'text\n"{text}"\n'.encode(codec))
    found = read(tmp_path)
    assert [document.text.strip() for document in found.documents] == [text.strip()] * 2, found.reasons


def test_a_character_beyond_the_first_block_is_found(tmp_path):
    long = "plain words\n" * 100_000  # more than is decoded at once
    put(tmp_path, "a.txt", long.encode() + GERMAN.encode("cp1252"))
    put(tmp_path, "b.txt", (long + GERMAN).encode())
    assert {document.text for document in read(tmp_path).documents} == {long + GERMAN}


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), st.integers(0, 9)
)
def test_utf8_is_always_taken_for_what_it_is(tmp_path_factory, text, padding):
    # characters lie across the boundary of the blocks that are checked
    text = "a" * ((1 << 20) - padding) + text
    folder = tmp_path_factory.mktemp("documents")
    put(folder, "a.md", text)
    from retrieval.documents import normalise

    assert read(folder).documents[0].text == normalise(text)


def test_an_encoding_can_be_named_or_declared(tmp_path):
    put(tmp_path, "a.txt", "ő és ű".encode("cp1250"))
    page = "<meta http-equiv=content-type content='text/html; charset=iso-8859-2'><p>ő és ű"
    put(tmp_path, "b.html", page.encode("iso-8859-2"))
    found = read(tmp_path, encoding="cp1250")
    assert [document.text.strip() for document in found.documents] == ["ő és ű"] * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"abc\0def", "a.txt has a zero byte at byte 3, so it is not text; save it as UTF-8."),
        (
            POLISH.encode() * 3 + b"\xff",
            f"a.txt is UTF-8 text with broken characters, the first at byte {len(POLISH.encode()) * 3}; "
            "mend it there, or name its encoding in documents.encoding.",
        ),
        (
            # once read as Mac Roman
            ("It’s “quoted” – the user’s guide isn’t short… “Yes”, he said.\n" * 4)
            .encode()
            .replace(b"\xe2\x80\x99", b"?\x80\x99", 2),
            "a.txt is UTF-8 text with broken characters, the first at byte 3; mend it there, or name its "
            "encoding in documents.encoding.",
        ),
        (
            bytes(range(128, 256)) * 9,
            "a.txt is not UTF-8 text (byte 0) and looks like no other encoding; save it as UTF-8, or name "
            "its encoding in documents.encoding.",
        ),
        (
            "é".encode("utf-16") + b"\x00",
            "a.txt is not utf-16 text (byte 4 of what was read); save it as UTF-8, or name its encoding in "
            "documents.encoding.",
        ),
        (
            b"a" * ((1 << 20) + 1),
            "a.txt has 1.0 MiB, more than documents.max_file_mib (1); split it, or raise the bound.",
        ),
    ],
)
def test_what_is_not_text_is_told_of(tmp_path, content, reason):
    put(tmp_path, "a.txt", content)
    put(tmp_path, "b.txt", "b")
    found = read(tmp_path, max_file_mib=1)
    assert (list(found.by_id), found.reasons) == (["b.txt"], [reason])
