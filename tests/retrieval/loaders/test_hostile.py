"""Whatever bytes a file holds, it gives documents or reasons."""

import io
import random
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Unreadable
from retrieval.loaders import SUFFIXES, load
from tests.retrieval.loaders.office import docx, paragraph, pdf


def outcomes(name, data, **values):
    return list(load(io.BytesIO(data), len(data), name, DocumentsConfig(**values)))


def check(found):
    for each in found:
        if isinstance(each, Unreadable):
            assert each.reason.startswith(each.source) and each.reason.endswith(".")
        else:
            document, place = each
            assert place.startswith(document.source)
            assert document.id and document.title
            (document.id + document.title + document.text).encode()


def whole(suffix):
    out = io.BytesIO()
    if suffix == ".pdf":
        return pdf("A page.", "Another page.")
    if suffix == ".docx":
        return docx(paragraph("Head", "H") + paragraph("words"), '<w:style w:styleId="H"/>')
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": [f"row {i}" for i in range(50)]}), out)
    elif suffix == ".zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.md", "# A\n" + "words " * 100)
            archive.writestr("b.csv", "text\n" + "row\n" * 50)
            archive.writestr("c.docx", whole(".docx"))
    elif suffix == ".jsonl":
        return b'{"text": "one", "id": "1"}\n' * 3
    elif suffix in (".csv", ".tsv"):
        return b'id,text\n1,"one"\n2,two\n'
    else:
        return "<title>T</title># Head\n\nSöme text\n====\n".encode()
    return out.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_bytes_give_documents_or_reasons(suffix):
    @settings(max_examples=30, deadline=None)
    @given(st.binary(max_size=300))
    def any_bytes(data):
        check(outcomes(f"dir/a{suffix}", data))

    any_bytes()
    assert not any(isinstance(each, Unreadable) for each in outcomes(f"a{suffix}", whole(suffix)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_anywhere_gives_documents_or_reasons(suffix):
    sound, dice = whole(suffix), random.Random(0)
    for _ in range(80):
        data = bytearray(sound)
        for _ in range(dice.randint(1, 12)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        check(outcomes(f"a{suffix}", bytes(data[: dice.choice([len(data), dice.randint(0, len(data))])])))
