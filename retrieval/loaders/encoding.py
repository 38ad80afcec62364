"""Which encoding a text file is in."""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO, get_args

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig, Encoding

# The longer mark first: that of UTF-32 begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLOCK = 1 << 20
_CHANCE = 9  # characters beyond ASCII: of so few, most may be UTF-8 by accident
_SAMPLE = 1 << 16  # bytes that an encoding is guessed from
# Bytes beyond ASCII with those around them: much plain text beside would blur the guess.
# After each come enough ASCII bytes that no character of several bytes is cut.
_TELLING = re.compile(rb"[^\n\x80-\xff]{0,100}(?:[\x80-\xff]+[^\n\x80-\xff]{0,20})+")
_DECLARED = re.compile(rb"""<meta[^>]{1,200}charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)


def text_encoding(stream: BinaryIO, source: str, config: DocumentsConfig) -> str:
    """The codec of a text file, read in blocks; the stream is left at its start.

    A byte-order mark decides, else text that is UTF-8 is; else what an HTML page declares,
    ``documents.encoding``, or what the bytes look like.

    Raises:
      InputError: for zero bytes outside UTF-16 and UTF-32, UTF-8 that is damaged, as long as
        most of it is whole, and bytes that look like no text.
    """
    head = stream.read(4096)
    stream.seek(0)
    for mark, marked in _MARKS:
        if head.startswith(mark):
            return marked
    if codec := _unmarked_utf16(head):
        return codec
    damage = _utf8_damage(stream, source)
    stream.seek(0)
    if damage is None:
        return "utf-8"
    if (declared := _DECLARED.search(head)) and (codec := _known(declared[1].decode())):
        return codec
    if config.encoding != "auto":
        return config.encoding
    position, sample = damage
    _refuse_damaged_utf8(sample, source, position)
    return _guessed(sample, source, position)


def decode(stream: BinaryIO, source: str, config: DocumentsConfig) -> str:
    """The whole text of a file.

    Raises:
      InputError: see `text_encoding`.
    """
    codec = text_encoding(stream, source, config)
    try:
        return stream.read().decode(codec)
    except UnicodeDecodeError as error:
        raise undecodable(source, codec, error) from None


def undecodable(source: str, codec: str, error: UnicodeDecodeError) -> InputError:
    """What to say of a file with bytes that its encoding does not have."""
    return InputError(
        f"{source} is not {codec} text (byte {error.start} of what was read); save it as UTF-8, "
        "or name its encoding in documents.encoding."
    )


def _unmarked_utf16(head: bytes) -> str | None:
    """UTF-16 of mostly Latin text: every other byte is zero."""
    pairs = len(head) // 2
    first, second = head[0::2].count(0), head[1::2].count(0)
    if pairs and second > pairs * 0.4 and first <= pairs * 0.02:
        return "utf-16-le"
    if pairs and first > pairs * 0.4 and second <= pairs * 0.02:
        return "utf-16-be"
    return None


def _utf8_damage(stream: BinaryIO, source: str) -> tuple[int, bytes] | None:
    """The position of the first byte that is not UTF-8 and the lines around it; None if there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, kept = 0, b""  # bytes before the block, and the end of the block before
    while block := stream.read(_BLOCK):
        if (zero := block.find(0)) >= 0:
            raise InputError(
                f"{source} has a zero byte at byte {position + zero}, so it is not text; save it as UTF-8."
            )
        try:
            decoder.decode(block, final=len(block) < _BLOCK)
        except UnicodeDecodeError as error:
            # what the decoder kept of a character cut by the block's start counts in error.start
            start = max(0, error.start - (len(error.object) - len(block)))
            return position + start, _around(kept + block, len(kept) + start)
        position, kept = position + len(block), block[-_SAMPLE:]
    return None


def _around(data: bytes, position: int) -> bytes:
    """At most `_SAMPLE` bytes around a position, cut at ends of lines if there are any."""
    start, end = max(0, position - _SAMPLE // 2), min(len(data), position + _SAMPLE // 2)
    if start and (line := data.find(b"\n", start, position)) >= 0:
        start = line + 1
    if end < len(data) and (line := data.rfind(b"\n", position, end)) >= 0:
        end = line + 1
    return data[start:end]


def _refuse_damaged_utf8(sample: bytes, source: str, position: int) -> None:
    """Most characters beyond ASCII are UTF-8: some bytes are broken, and no other encoding is right.

    In another encoding some bytes happen to be UTF-8 too: at most a third as many as those that do not.
    """
    text = sample.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(character > "\x7f" for character in text) - broken
    if whole > max(_CHANCE, broken):
        raise InputError(
            f"{source} is UTF-8 text with broken characters, the first at byte {position}; mend it there, "
            "or name its encoding in documents.encoding."
        )


def _guessed(sample: bytes, source: str, position: int) -> str:
    from charset_normalizer import from_bytes

    candidates = [codec for codec in get_args(Encoding) if codec != "auto"]
    telling = b"\n".join(_TELLING.findall(sample))
    matches = list(from_bytes(telling, cp_isolation=candidates))
    if not matches:
        raise InputError(
            f"{source} is not UTF-8 text (byte {position}) and looks like no other encoding; "
            "save it as UTF-8, or name its encoding in documents.encoding."
        )
    best = matches[0]
    # Short Western text is as likely in several code pages; then the most common one is meant.
    for match in matches:
        as_good = (match.chaos, match.coherence) == (best.chaos, best.coherence)
        if as_good and "cp1252" in match.could_be_from_charset:
            return "cp1252"
    return str(best.encoding)


def _known(name: str) -> str | None:
    try:
        codec = codecs.lookup(name).name
    except LookupError:
        return None
    # What pages call Latin-1 or ASCII is Windows-1252 (the WHATWG's encoding standard says so too).
    if codec in ("iso8859-1", "ascii"):
        return "cp1252"
    return (
        None if codec.startswith(("utf-", "rot", "hex", "base64", "bz2", "zlib", "uu", "quopri")) else codec
    )
