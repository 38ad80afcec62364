"""Adapters taken out of a home: as a plain PEFT folder, or merged into their base."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import ArtifactStore, Source
from jora_tasks.digests import digest_file, digest_folder, digest_json
from jora_tasks.errors import InputError
from jora_tasks.manifest import MANIFEST, check_copy
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.registry import CANDIDATE, CHAMPION, RegisteredAdapter, Registry
from jora_tasks.writing import atomic_folder, check_unused

KIND = "adapter"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk: its folder, what to call it, and its manifest where a home made it."""

    folder: Path
    name: str
    digest: str
    manifest: Mapping[str, Any] | None = None


def aliased(given: str, store: ArtifactStore, line: str, or_else: str = "") -> RegisteredAdapter | None:
    """The version of a line that ``champion`` or ``candidate`` means; None for any other word.

    Raises:
      InputError: if the line has none; ``or_else`` ends it.
    """
    if given not in (CHAMPION, CANDIDATE):
        return None
    registry = Registry(store.home)
    if registered := registry.get_alias(line, given):
        return registered
    newest = max((each.version for each in registry.versions(line)), default=None)
    remedy = "run `jora register` first" if newest is None else f"`jora promote {newest}` makes one"
    raise InputError(f"{line!r} has no {given} in the registry; {remedy}{or_else}.")


@contextlib.contextmanager
def found(given: str, store: ArtifactStore, line: str, or_else: str = "") -> Iterator[Adapter]:
    """The adapter that a user means; it may be gone when the block ends.

    Args:
      given: a PEFT folder, the start of an artifact's key, or ``champion`` or ``candidate``.
      store: where artifacts and the registry are.
      line: the registered model that has these aliases.
      or_else: what the user may do as well where there is no such alias.

    Raises:
      InputError: if there is none, or its files are not those of its manifest.
    """
    folder = Path(given)
    if registered := aliased(given, store, line, or_else):
        with tempfile.TemporaryDirectory() as scratch:
            files = Registry(store.home).download(registered, Path(scratch))
            manifest = json.loads((files / MANIFEST).read_text(encoding="utf-8"))
            yield Adapter(files, registered.key, registered.digest, manifest)
    elif folder.is_dir() and folder.resolve().parent != store.home / "artifacts" / KIND:
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder} has no {CONFIG}; give a PEFT folder or the key of an adapter.")
        check_copy(folder)
        yield Adapter(folder, folder.resolve().name, digest_folder(folder))
    else:
        artifact = store.get(KIND, folder.name if folder.is_dir() else given)
        yield Adapter(artifact.path, artifact.key, artifact.digest, artifact.manifest)


def export_adapter(given: str, output: Path, store: ArtifactStore, line: str) -> dict[str, Any]:
    """Copy an adapter out of the home as a plain PEFT folder, and check the copy against its digest.

    Returns:
      A JSON object: adapter, digest, files and path.

    Raises:
      InputError: for an output in use or an adapter that is not there; as `found`.
    """
    check_unused(output)
    with found(given, store, line) as adapter:
        if adapter.manifest is None:
            raise InputError(f"{given} is a PEFT folder already; give the key of an adapter, or copy it.")
        names = sorted(adapter.manifest["files"])
        with atomic_folder(output) as folder:
            for name in names:
                shutil.copyfile(adapter.folder / name, folder / name)
            if digest_json({name: digest_file(folder / name) for name in names}) != adapter.digest:
                raise InputError(f"Adapter {adapter.name} changed while it was copied; try again.")
    return {"adapter": adapter.name, "digest": adapter.digest, "files": names, "path": str(output.resolve())}


def merge_into_base(
    given: str,
    output: Path,
    store: ArtifactStore,
    line: str,
    progress: Progress,
    *,
    base: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Merge an adapter into its base in f32 and write the result as a Hugging Face folder.

    Args:
      base: the base model's folder, name or hub id; by default what the adapter says it was trained over.
      dtype: of the merged weights.

    Returns:
      A JSON object: what ``merged.json`` says, and path.

    Raises:
      InputError: for an output in use, an adapter or base that is not there, or a base with other
        weights than the adapter was trained over.
    """
    from jora_tasks.trainer.merge import MERGED, merge_adapter

    check_unused(output)
    with found(given, store, line) as adapter:
        folder, source = _base(adapter, base, store)
        merge_adapter(
            folder,
            adapter.folder,
            output,
            dtype=dtype,
            facts={
                "base": source.reference(),
                "adapter": {"name": adapter.name, "digest": adapter.digest},
                "trained_over": _trained_over(adapter),
            },
            card=_card(source, adapter, dtype),
            on_tensor=lambda done, total: progress("merge", done=done, total=total, unit="tensors"),
        )
    written = json.loads((output / MERGED).read_text(encoding="utf-8"))
    return {**written, "path": str(output.resolve())}


def _base(adapter: Adapter, given: str | None, store: ArtifactStore) -> tuple[Path, Source]:
    """The base's folder, checked against what the adapter was trained over where that is known."""
    known = _base_of(adapter)
    name = given or known.get("name", "")
    try:
        folder = base_model_folder(name or "unnamed", store.home)
    except InputError as error:
        if given:
            raise InputError(str(error).replace("model.base", "--base", 1)) from None
        raise InputError(
            f"Adapter {adapter.name} was trained over {name or 'a base without a name'}, which cannot be "
            "fetched by that name; give its folder with --base."
        ) from None
    source = model_source(folder, name)
    if known.get("digest", source.digest) != source.digest:
        raise InputError(
            f"Adapter {adapter.name} was trained over {known['name']} ({known['digest'][:19]}), not over "
            f"{source.name} ({source.digest[:19]}); give the folder of that model with --base."
        )
    return folder, source


def _base_of(adapter: Adapter) -> dict[str, str]:
    """Name and, where a home made the adapter, digest of the base."""
    if adapter.manifest is not None:
        inputs = adapter.manifest["inputs"].values()
        return next((dict(each) for each in inputs if each["kind"] == "model"), {})
    try:
        settings = json.loads((adapter.folder / CONFIG).read_text(encoding="utf-8"))
        return {"name": str(settings.get("base_model_name_or_path") or "")}
    except (ValueError, AttributeError):
        raise InputError(f"{adapter.folder / CONFIG} is not valid JSON; export the adapter again.") from None


def _trained_over(adapter: Adapter) -> str:
    """What the base's weights were in training, as far as it is known: ``nf4, computed in bfloat16``."""
    settings = {} if adapter.manifest is None else adapter.manifest["settings"]
    dtype, quantisation = settings.get("dtype", "unknown"), settings.get("quantization", "none")
    return str(dtype) if quantisation == "none" else f"{quantisation}, computed in {dtype}"


def _card(base: Source, adapter: Adapter, dtype: str) -> str:
    """The model card: which weights these are."""
    origin = f" ({base.note})" if base.note else ""
    return f"""---
base_model: {base.name}
library_name: transformers
pipeline_tag: text-generation
---

# {base.name} with adapter {adapter.name}

| | |
|---|---|
| Base | {base.name}{origin}, {base.digest} |
| Adapter | {adapter.name}, {adapter.digest} |
| Base weights in training | {_trained_over(adapter)} |
| Merged | in float32 onto the weights of the base above, then stored as {dtype} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```
"""
