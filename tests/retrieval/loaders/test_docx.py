import io
import zipfile

import pytest

from tests.retrieval.collecting import put, read
from tests.retrieval.loaders.office import docx, paragraph

STYLES = """
<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/><w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style>
<w:style w:styleId="Eigene"><w:name w:val="Eigene"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>
<w:style w:styleId="Rot"><w:name w:val="Rot"/><w:basedOn w:val="Eigene"/></w:style>
<w:style w:styleId="Kreis"><w:name w:val="Kreis"/><w:basedOn w:val="Kreis"/></w:style>
"""


def cell(text):
    return f"<w:tc>{paragraph(text)}</w:tc>"


def test_headings_lists_and_tables(tmp_path):
    body = (
        paragraph("Leave", "berschrift1")
        + "<w:p><w:r><w:t>Thirty </w:t></w:r><w:del><w:r><w:delText>forty </w:delText></w:r></w:del>"
        "<w:r><w:tab/><w:t>days</w:t><w:br/><w:t>a year</w:t></w:r></w:p>"
        + paragraph("one", listed=True)
        + paragraph("two", listed=True)
        + paragraph("Sick & well", "Rot")
        + f"<w:tbl><w:tr>{cell('a')}{cell('b')}</w:tr><w:tr>{cell('c')}{cell('d')}</w:tr></w:tbl>"
        + paragraph("End", "Kreis")
    )
    put(tmp_path, "a.docx", docx(body, STYLES))
    (document,) = read(tmp_path).documents
    assert document.title == "Leave"
    assert document.text == (
        "# Leave\n\nThirty \tdays\na year\n\n- one\n\n- two\n\n## Sick & well\n\na | b\n\nc | d\n\nEnd\n"
    )


def test_text_boxes_and_tables_within_tables_are_read_once(tmp_path):
    box = f"<w:txbxContent>{paragraph('boxed')}</w:txbxContent>"
    inner = f"<w:tbl><w:tr>{cell('x')}{cell('y')}</w:tr></w:tbl>"
    body = (
        f"<w:p><w:r><w:t>around</w:t><Choice>{box}</Choice><Fallback>{box}</Fallback></w:r></w:p>"
        f"<w:tbl><w:tr><w:tc>{inner}</w:tc>{cell('z')}</w:tr></w:tbl>"
    )
    put(tmp_path, "a.docx", docx(body))
    (document,) = read(tmp_path).documents
    assert (document.title, document.text) == ("a", "boxed\n\naround\n\nx | y | z\n")


def bombed():
    entities = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    return docx(paragraph("x").replace("x", "&b;"), prologue=entities)


def other():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("xl/workbook.xml", "<x/>")
    return file.getvalue()


WHOLE = docx("".join(paragraph(f"word {number}") for number in range(200)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE[:-30], "a.docx is not a Word file that can be read (File is not a zip file)"),
        (b"\xd0\xcf\x11\xe0 an old or encrypted file", "a.docx is not a Word file that can be read ("),
        (WHOLE.replace(b"word/document.xml", b"word/document.xmx"), "a.docx is not a Word file: it has no"),
        (docx("<w:p>"), "a.docx is not a Word file that can be read (mismatched tag"),
        (bombed(), "a.docx declares XML entities"),
        (other(), "a.docx is not a Word file: it has no word/document.xml"),
        (docx(paragraph("x" * (2 << 20))), "a.docx: its word/document.xml is larger than"),
        (WHOLE[:300] + bytes(40) + WHOLE[340:], "a.docx "),
    ],
    ids=range(8),
)
def test_what_is_no_word_file_is_told_of(tmp_path, content, reason):
    put(tmp_path, "a.docx", content)
    put(tmp_path, "b.txt", "b")
    found = read(tmp_path, max_file_mib=1)
    assert list(found.by_id) == ["b.txt"]
    assert found.reasons[0].startswith(reason)
