"""Text and chat messages to token ids, as the base model was trained to read them.

Two forms are read. ``tokenizer.json`` goes through transformers. A bare sentencepiece
``tokenizer.model``, as Llama-2 checkpoints have, goes through sentencepiece itself: transformers 5
rebuilds such a model without its leading-space rule, which gives other ids than the model was
trained on.

A model without a chat template gets the plain template: its start token if it has one, then

    System: <content>

    User: <content>

    Assistant:

and a newline, after which the answer and the end-of-text token follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jora_tasks.errors import InputError, first_line
from jora_tasks.reading import read_object, read_text

Message = dict[str, str]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_SAMPLE: list[Message] = [
    {"role": "system", "content": "An instruction."},
    {"role": "user", "content": "A question."},
    {"role": "assistant", "content": "An answer."},
]


# What templates are told besides the messages. Llama 3's would write today's date into every prompt, and
# Qwen3's would leave room for thoughts that answers learnt from do not have.
_CONSTANTS: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}


class _Codec(Protocol):
    """What a `ChatTokenizer` needs of a tokenizer library."""

    special: dict[str, int]  # special tokens, by their text
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    def encode(self, text: str) -> list[int]: ...
    def encode_marked(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class _FastCodec:
    """``tokenizer.json`` and its configuration, by transformers."""

    def __init__(self, folder: Path) -> None:
        # The generic class keeps to tokenizer.json; named classes may rebuild parts of it.
        from transformers import PreTrainedTokenizerFast

        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        added = self._tokenizer.added_tokens_decoder
        self.special = {str(token): id_ for id_, token in added.items() if token.special}
        self.eos_id = self._tokenizer.eos_token_id
        self.pad_id = self._tokenizer.pad_token_id
        start = self._tokenizer("a")["input_ids"][:1]
        self.bos_id = start[0] if start == [self._tokenizer.bos_token_id] else None

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    encode_marked = encode

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _SentencePieceCodec:
    """A bare ``tokenizer.model``, by sentencepiece; its control pieces never come from plain text."""

    def __init__(self, folder: Path) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        controls = [i for i in range(self._model.get_piece_size()) if self._model.is_control(i)]
        self.special = {self._model.id_to_piece(i): i for i in controls}
        self.bos_id = _known(self._model.bos_id())
        self.eos_id = _known(self._model.eos_id())
        self.pad_id = _known(self._model.pad_id())
        self._marks = re.compile("(" + "|".join(map(re.escape, self.special)) + ")") if controls else None

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_marked(self, text: str) -> list[int]:
        parts = self._marks.split(text) if self._marks else [text]
        ids: list[int] = []
        for part in filter(None, parts):
            ids += [self.special[part]] if part in self.special else self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        controls = set(self.special.values())
        return self._model.decode([int(i) for i in ids if i not in controls])


@dataclass(frozen=True)
class ChatTokenizer:
    """A base model's tokenizer and chat template.

    Attributes:
      eos_ids: every id that ends an answer: end of turn and end of text.
      pad_id: the id that fills up a row of a batch.
      template: the chat template as Jinja text, or None where the plain template serves.
    """

    eos_ids: frozenset[int]
    pad_id: int
    template: str | None
    _codec: _Codec
    _end_of_turn: int
    _render_text: Callable[[list[Message], bool], str]
    _name: str

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without a start or end token."""
        return self._codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self._codec.decode(ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages up to where the assistant's answer begins.

        Args:
          messages: system, user and so on, without the answer asked for.
        """
        return self._ids(self._render_text(self._inert(messages), True))

    def render(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of a conversation that ends with the assistant's answer.

        Returns:
          The ids up to and including the token that ends the answer, and how many of them are the
          prompt: ``ids[:n] == prompt_ids(messages[:-1])`` and ``ids[n:]`` is the answer.

        Raises:
          InputError: if the last message is not the assistant's, or the chat template does not put
            the answer after the prompt that it gives for generation.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise InputError("A conversation to learn from must end with a message of role assistant.")
        prompt_text = self._render_text(self._inert(messages[:-1]), True)
        prompt = self._ids(prompt_text)
        if self.template is None:
            answer = self._codec.encode(self._inert(messages[-1:])[0]["content"])
        else:
            text = self._render_text(self._inert(messages), False)
            if not text.startswith(prompt_text):
                raise InputError(
                    f"The chat template of {self._name} does not begin a conversation with its own "
                    "generation prompt; give the model a template that does, in chat_template.jinja."
                )
            ids = self._ids(text)
            # where a token would span prompt and answer, the answer is read as generation writes it
            joined = ids[: len(prompt)] == prompt
            answer = ids[len(prompt) :] if joined else self._codec.encode_marked(text[len(prompt_text) :])
        ends = [position for position, id_ in enumerate(answer) if id_ in self.eos_ids]
        answer = answer[: ends[0] + 1] if ends else [*answer, self._end_of_turn]
        return prompt + answer, len(prompt)

    def _ids(self, text: str) -> list[int]:
        ids = self._codec.encode_marked(text)
        if self.template is None and self._codec.bos_id is not None:
            return [self._codec.bos_id, *ids]
        return ids

    def _inert(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with special tokens in their content broken up, so that no text ends a turn."""
        return [
            {"role": message["role"], "content": _broken_up(message["content"], self._codec.special)}
            for message in messages
        ]


def load_tokenizer(folder: str | Path) -> ChatTokenizer:
    """Read the tokenizer and the chat template of a Hugging Face model folder.

    Raises:
      InputError: if there is no tokenizer, it or the model's configuration cannot be read, the chat
        template fails or leaves out what messages say, or nothing says how an answer ends.
    """
    folder = Path(folder)
    codec: _Codec
    try:
        if (folder / "tokenizer.json").is_file():
            codec = _FastCodec(folder)
        elif (folder / "tokenizer.model").is_file():
            codec = _SentencePieceCodec(folder)
        else:
            raise InputError(
                f"{folder} has no tokenizer; put the model's tokenizer.json or tokenizer.model there."
            )
        template = _chat_template(folder)
    except InputError:
        raise
    except Exception as error:  # the libraries raise plain Exception for a damaged file
        raise InputError(
            f"The tokenizer in {folder} cannot be read; fetch its files again ({first_line(error)})."
        ) from None

    render = _plain if template is None else _with_template(template, codec, folder)
    eos_ids = _configured_eos(folder) | ({codec.eos_id} if codec.eos_id is not None else set())
    end_of_turn = _template_end(render, codec) if template is not None else None
    if end_of_turn is None:
        end_of_turn = codec.eos_id if codec.eos_id is not None else min(eos_ids, default=None)
    if end_of_turn is None:
        raise InputError(
            f"The tokenizer in {folder} names no token that ends an answer; "
            "give eos_token in tokenizer_config.json."
        )
    return ChatTokenizer(
        eos_ids=frozenset(eos_ids | {end_of_turn}),
        pad_id=end_of_turn if codec.pad_id is None else codec.pad_id,
        template=template,
        _codec=codec,
        _end_of_turn=end_of_turn,
        _render_text=render,
        _name=folder.name,
    )


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The files of a model folder that decide its token ids, sorted by name."""
    return sorted(path for name in TOKENIZER_FILES if (path := Path(folder) / name).is_file())


def _plain(messages: list[Message], for_generation: bool) -> str:
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:\n"] if for_generation else turns)


def _with_template(template: str, codec: _Codec, folder: Path) -> Callable[[list[Message], bool], str]:
    """A renderer by the model's Jinja template, in transformers' sandbox."""
    from transformers.utils.chat_template_utils import render_jinja_template

    text_of = {id_: text for text, id_ in codec.special.items()}
    told: dict[str, Any] = _CONSTANTS | {
        name: text_of.get(id_, "")
        for name, id_ in (
            ("bos_token", _declared_bos(folder, codec)),
            ("eos_token", codec.eos_id),
            ("pad_token", codec.pad_id),
        )
        if id_ is not None
    }

    def render(messages: list[Message], for_generation: bool) -> str:
        try:
            outcome: Any = render_jinja_template(  # annotated as text, returns (texts, answer spans)
                [messages], chat_template=template, add_generation_prompt=for_generation, **told
            )
        except Exception as error:  # a template is a program that may raise anything
            raise InputError(
                f"The chat template of {folder.name} refuses the messages; "
                f"give the model another chat_template.jinja ({first_line(error)})."
            ) from None
        return outcome[0][0]

    def render_folded(messages: list[Message], for_generation: bool) -> str:
        return render(_fold_system(messages), for_generation)

    try:
        if _says_all(render):
            return render
    except InputError:
        pass
    if _says_all(render_folded):  # some templates refuse a system message, others leave it out
        return render_folded
    raise InputError(
        f"The chat template of {folder.name} leaves out what the messages say; "
        "give the model another chat_template.jinja."
    )


def _says_all(render: Callable[[list[Message], bool], str]) -> bool:
    """Whether a sample prompt and conversation hold what their messages say."""
    prompt, whole = render(_SAMPLE[:-1], True), render(_SAMPLE, False)
    return all(message["content"] in whole for message in _SAMPLE) and all(
        message["content"] in prompt for message in _SAMPLE[:-1]
    )


def _fold_system(messages: list[Message]) -> list[Message]:
    """The messages with a leading system message put at the head of the user's."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]


def _chat_template(folder: Path) -> str | None:
    """The template of ``chat_template.jinja`` or, in older folders, ``tokenizer_config.json``."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named ones: tool use, default
        template = next((each["template"] for each in template if each["name"] == "default"), None)
    return template


def _declared_bos(folder: Path, codec: _Codec) -> int | None:
    declared = _json(folder / "tokenizer_config.json").get("bos_token")
    text = declared.get("content") if isinstance(declared, dict) else declared
    return codec.special.get(text) if isinstance(text, str) else codec.bos_id


def _configured_eos(folder: Path) -> set[int]:
    """End-of-text ids of ``generation_config.json`` and ``config.json``."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        given = _json(folder / name).get("eos_token_id")
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(id_) is int for id_ in ids):
            raise InputError(f"{folder / name}: eos_token_id must be a whole number or a list of them.")
        found.update(ids)
    return found


def _template_end(render: Callable[[list[Message], bool], str], codec: _Codec) -> int | None:
    """The first special token that the template writes after an answer."""
    tail = render(_SAMPLE, False).rpartition(_SAMPLE[-1]["content"])[2]
    ids = codec.encode_marked(tail)
    special = set(codec.special.values())
    return next((id_ for id_ in ids if id_ in special), None)


def _broken_up(text: str, special: dict[str, int]) -> str:
    for token in special:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _known(id_: int) -> int | None:
    return id_ if id_ >= 0 else None
