import io
import random

from tests.retrieval.collecting import put, read
from tests.retrieval.loaders.office import pdf


def test_pages_and_title(tmp_path):
    put(tmp_path, "a.pdf", pdf("Leave is thirty days.", "", "Second page.", title="Leave rules"))
    put(tmp_path, "b.pdf", pdf("A first line."))
    first, second = read(tmp_path).documents
    assert (first.title, first.text) == ("Leave rules", "Leave is thirty days.\n\nSecond page.")
    assert (second.id, second.title) == ("b.pdf", "A first line.")


def test_pages_without_text_make_an_empty_document(tmp_path):
    put(tmp_path, "scan.pdf", pdf(""))
    put(tmp_path, "b.pdf", pdf("words"))
    found = read(tmp_path)
    assert (list(found.by_id), found.tally.empty, found.unreadable) == (["b.pdf"], 1, [])


def encrypted(user: str) -> bytes:
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=io.BytesIO(pdf("secret words")))
    writer.encrypt(user, "owner", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_an_encrypted_pdf_is_told_of_and_one_that_opens_without_password_is_read(tmp_path):
    put(tmp_path, "a.pdf", encrypted("password"))
    put(tmp_path, "b.pdf", encrypted(""))
    found = read(tmp_path)
    assert found.reasons == ["a.pdf is encrypted; save it without a password."]
    assert found.by_id["b.pdf"].text == "secret words"


def test_damaged_pdfs_are_told_of_whatever_is_broken(tmp_path, capfd):
    whole, dice = pdf("Some words on a page.", "More words."), random.Random(0)
    put(tmp_path, "empty.pdf", b"")
    put(tmp_path, "head.pdf", whole[:100])
    for number in range(60):
        broken = bytearray(whole)
        for _ in range(dice.randint(1, 40)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        put(tmp_path, f"{number}.pdf", bytes(broken[: dice.randint(1, len(broken))]))
    put(tmp_path, "z.txt", "z")
    found = read(tmp_path)
    assert "z.txt" in found.by_id
    assert {"empty.pdf", "head.pdf"} <= {each.source for each in found.unreadable}
    assert found.tally.documents + found.tally.empty + found.tally.unreadable == 63
    assert all("is not a PDF that can be read (" in each or "encrypted" in each for each in found.reasons)
    assert capfd.readouterr().err == ""


def test_a_bound_on_the_text_of_a_small_file(tmp_path):
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=io.BytesIO(pdf(*["words " * 100_000] * 2)))
    for page in writer.pages:
        page.compress_content_streams()
    out = io.BytesIO()
    writer.write(out)
    assert len(out.getvalue()) < 100_000
    put(tmp_path, "a.pdf", out.getvalue())
    put(tmp_path, "z.txt", "z")
    assert list(read(tmp_path, max_file_mib=2).by_id) == ["a.pdf", "z.txt"]
    assert read(tmp_path, max_file_mib=1).reasons == [
        "a.pdf has more than 1 MiB of text; split it, or raise documents.max_file_mib."
    ]
