"""A small real pipeline for the stages before training: documents, questions, embedder, tokenizer."""

import importlib.util
import json
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import parse_spec

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _from(path: str, name: str):
    """A helper of another folder's conftest."""
    file = Path(__file__).parent.parent / path
    spec = importlib.util.spec_from_file_location(f"helpers_{file.parent.name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.fixture(scope="session")
def stage_embedders(tmp_path_factory):
    write = _from("retrieval/conftest.py", "write_tiny_embedder")
    folder = tmp_path_factory.mktemp("stage-embedders")
    return write(folder / "tiny", seed=0), write(folder / "other", seed=1)


@pytest.fixture
def other_embedder_folder(stage_embedders):
    return stage_embedders[1]


@pytest.fixture(scope="session")
def byte_tokenizer_folder(tmp_path_factory):
    """A model folder whose tokens are bytes: config, tokenizer, chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "bytes"
    folder.mkdir()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": special[0], "eos_token": special[1], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 1}))
    return folder


class Rag:
    """The stages up to prompts, on 16 options of one document, 16 questions."""

    def __init__(self, folder: Path, embedder: Path, model: Path) -> None:
        self.folder, self.embedder, self.model = folder, embedder, model
        self.store = ArtifactStore(folder / "home")
        self.progress = Progress()
        names = [
            f"{a}_{b}" for a in ("red", "blue", "long", "zero") for b in ("limit", "path", "size", "key")
        ]
        (folder / "documents").mkdir()
        parts = [f"## {name}\n\nDefault: {3 * i}\n" for i, name in enumerate(names)]
        (folder / "documents" / "guide.md").write_text("# Guide\n\nAll options.\n\n" + "\n".join(parts))
        splits = ["train"] * 8 + ["dev"] * 2 + ["test"] * 6
        self.questions = [
            {
                "id": name,
                "question": f"default of {name}",
                "answers": [str(3 * i)],
                "split": split,
                "evidence": [{"document_id": "guide.md", "text": f"## {name}\n\nDefault: {3 * i}"}],
            }
            for i, (name, split) in enumerate(zip(names, splits, strict=True))
        ]

    def spec(self, write: bool = True, **sections):
        file = self.folder / "questions.jsonl"
        if write:
            file.write_text("".join(json.dumps(question) + "\n" for question in self.questions))
        settings = {
            "documents": {"path": str(self.folder / "documents")},
            "questions": {"path": str(file)},
            "index": {"embedder": str(self.embedder), "chunk_tokens": 40},
            "retrieval": {"top_k": 3},
            "prompts": {"token_budget": 1000},
            "model": {"base": str(self.model)},
        }
        for name, values in sections.items():
            settings[name] = {**settings.get(name, {}), **values}
        return parse_spec(settings)

    def left(self, kind: str) -> list[Path]:
        """What lies among the artifacts of a kind, finished or not."""
        return [path for path in (self.store.home / "artifacts" / kind).glob("*") if path.suffix != ".lock"]

    def corpus(self, **sections):
        from jora_tasks.stages.corpus import build_corpus

        return build_corpus(self.spec(**sections), self.store, self.progress)

    def index(self, **sections):
        from jora_tasks.stages.index import build_index

        return build_index(self.spec(**sections), self.corpus(), self.store, self.progress)

    def contexts(self, **sections):
        from jora_tasks.stages.contexts import retrieve_contexts

        return retrieve_contexts(self.spec(**sections), self.index(**sections), self.store, self.progress)

    def prompts(self, **sections):
        from jora_tasks.stages.prompts import assemble_prompts

        return assemble_prompts(self.spec(**sections), self.contexts(**sections), self.store, self.progress)


@pytest.fixture
def rag(tmp_path, stage_embedders, byte_tokenizer_folder):
    return Rag(tmp_path, stage_embedders[0], byte_tokenizer_folder)
