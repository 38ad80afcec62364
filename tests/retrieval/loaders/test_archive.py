import io
import stat
import struct
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

from tests.retrieval.collecting import put, read
from tests.retrieval.loaders.office import docx, paragraph, pdf


def packed(files, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_files_of_every_kind(tmp_path):
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(300)]}), table, row_group_size=100)
    files = {
        "docs/b.md": "# B",
        "docs/a.txt": "caf\xe9".encode("latin-1"),
        "docs/c.jsonl": '{"text": "c"}\n',
        "d.csv": "id,text\n1,d\n",
        "e.pdf": pdf("page"),
        "f.docx": docx(paragraph("word")),
        "g.parquet": table.getvalue(),
        "docs/.hidden.md": "no",
        "__MACOSX/a.md": "no",
        "picture.png": b"\xff",
    }
    put(tmp_path, "z.zip", packed(files))
    found = read(tmp_path)
    assert not found.unreadable
    assert {id_: document.text for id_, document in found.by_id.items() if "parquet" not in id_} == {
        "1": "d",
        "z.zip/docs/a.txt": "café",
        "z.zip/docs/b.md": "# B",
        "z.zip/docs/c.jsonl:1": "c",
        "z.zip/e.pdf": "page",
        "z.zip/f.docx": "word\n",
    }
    assert found.by_id["z.zip/docs/b.md"].title == "B"
    rows = [document.text for document in found.documents if document.source == "z.zip/g.parquet"]
    assert rows == [f"row {i}" for i in range(300)]


def test_members_that_are_not_taken_are_told_of(tmp_path):
    link = zipfile.ZipInfo("link.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("../escape.md", "/root.md", "a/../../b.md", "C:/drive.md", "fine.md"):
            archive.writestr(name, f"text of {name}")
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", packed({"a.md": "a"}))
    outside = sorted(tmp_path.parent.iterdir())
    put(tmp_path, "z.zip", out.getvalue())
    found = read(tmp_path)
    assert list(found.by_id) == ["z.zip/fine.md"]
    assert sorted(found.reasons) == [
        "z.zip/../escape.md has a path that leaves the archive; pack it again with relative paths.",
        "z.zip//root.md has a path that leaves the archive; pack it again with relative paths.",
        "z.zip/C:/drive.md has a path that leaves the archive; pack it again with relative paths.",
        "z.zip/a/../../b.md has a path that leaves the archive; pack it again with relative paths.",
        "z.zip/inner.zip is an archive within an archive; unpack it beside the other documents.",
        "z.zip/link.md is a link; pack the file itself.",
    ]
    assert sorted(tmp_path.parent.iterdir()) == outside


def test_an_encrypted_member_is_told_of(tmp_path):
    data = bytearray(packed({"a.md": "a", "b.md": "b"}))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the first member's headers
        place = data.index(mark) + flags
        data[place] |= 1
    put(tmp_path, "z.zip", bytes(data))
    found = read(tmp_path)
    assert (list(found.by_id), found.reasons) == (
        ["z.zip/b.md"],
        ["z.zip/a.md is encrypted; pack it without a password."],
    )


def test_bombs_are_refused_before_anything_is_read(tmp_path):
    put(tmp_path, "a.txt", "a")
    put(tmp_path, "bomb.zip", packed({"zeros.txt": bytes(40 << 20), "b.md": "b"}))
    put(tmp_path, "large.zip", packed({f"{i}.txt": bytes(range(256)) * 4096 for i in range(3)}))
    found = read(tmp_path, max_archive_mib=2)
    assert list(found.by_id) == ["a.txt"]
    assert found.reasons == [
        "bomb.zip unpacks to 40 MiB, more than documents.max_archive_mib (2); unpack it, or raise the bound.",
        "large.zip unpacks to 3 MiB, more than documents.max_archive_mib (2); unpack it, or raise the bound.",
    ]
    reason = read(tmp_path).reasons[0]
    assert reason.startswith("bomb.zip unpacks ") and "as a zip bomb does" in reason


def test_a_member_larger_than_its_header_says_is_not_read_beyond(tmp_path):
    data = bytearray(packed({"a.txt": "x" * (30 << 20)}))
    for mark, field in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(mark) + field, 100)  # the size it claims
    put(tmp_path, "z.zip", bytes(data))
    put(tmp_path, "b.txt", "b")
    found = read(tmp_path)
    assert list(found.by_id) == ["b.txt"]
    assert found.reasons == ["z.zip/a.txt is damaged (Bad CRC-32 for file 'a.txt'); pack it again."]


def test_damage_within_an_archive_costs_only_what_it_hits(tmp_path):
    words = "".join(f"word {i} " for i in range(2000))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        data = bytearray(packed({"a.txt": words, "b.jsonl": f'{{"text": "{words}"}}', "c.md": "c"}, method))
        for name in (b"a.txt", b"b.jsonl"):
            place = data.index(name) + len(name) + 40
            data[place : place + 60] = bytes(60)
        put(tmp_path, f"{method}.zip", bytes(data))
    put(tmp_path, "cut.zip", packed({"a.md": words})[:-20])
    found = read(tmp_path)
    assert list(found.by_id) == ["12.zip/c.md", "14.zip/c.md", "8.zip/c.md"]
    assert len(found.reasons) == 7
    assert "cut.zip is not a zip archive that can be read (File is not a zip file); pack it again." in (
        found.reasons
    )
