"""An artifact that is damaged after it was made: refused by name by all that take it, and made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jora_tasks.adapters import export_adapter
from jora_tasks.artifacts import STAGE_OF, ArtifactStore
from jora_tasks.asking import ask
from jora_tasks.errors import InputError
from jora_tasks.manifest import MANIFEST
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.spec import RunSpec, load_spec
from jora_tasks.stages.pipeline import STAGES, run_stage


@pytest.fixture
def store(finished_home: Path, tmp_path: Path) -> ArtifactStore:
    """A copy of a finished home."""
    shutil.copytree(finished_home, tmp_path / "home")
    return ArtifactStore(tmp_path / "home")


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def consumers(kind: str) -> list[str]:
    return [stage.name for stage in STAGES.values() if kind in stage.inputs]


@pytest.mark.parametrize("kind", STAGE_OF)
def test_one_flipped_bit_in_any_file_or_half_a_manifest_is_refused_by_every_stage(
    kind: str, store: ArtifactStore, tiny_project: Path
) -> None:
    spec = load_spec(tiny_project)
    good = store.latest(spec.name, kind)
    damages: list[tuple[Path, Callable[[Path], None]]] = [(good.path / MANIFEST, truncate)]
    damages += [(good.path / name, flip) for name in good.manifest["files"] if good.file(name).stat().st_size]
    assert len(damages) > 1 and consumers(kind)
    versions = len(Registry(store.home).versions(spec.name))
    for file, damage in damages:
        whole = file.read_bytes()
        damage(file)
        for stage in consumers(kind):
            with pytest.raises(
                InputError, match=f"{good.path} does not match its manifest: .*run its stage again"
            ):
                run_stage(stage, spec, store, Progress())
        file.write_bytes(whole)
    assert len(Registry(store.home).versions(spec.name)) == versions
    assert store.get(kind, good.key).digest == good.digest


def test_a_damaged_adapter_or_index_answers_and_leaves_with_no_one(
    store: ArtifactStore, tiny_project: Path
) -> None:
    spec = load_spec(tiny_project)
    adapter, index = (store.latest(spec.name, kind) for kind in ("adapter", "index"))
    flip(adapter.file("adapter_model.safetensors"))
    for use in (
        lambda: export_adapter(adapter.key, store.home / "out", store, spec.name),
        lambda: asked(spec, store, adapter.key),
    ):
        with pytest.raises(InputError, match=f"{adapter.path} does not match its manifest"):
            use()
    assert not (store.home / "out").exists()
    flip(index.file("chunks.parquet"))
    with pytest.raises(InputError, match=f"{index.path} does not match its manifest"):
        asked(spec, store, None)


def asked(spec: RunSpec, store: ArtifactStore, adapter: str | None) -> None:
    ask("How long?", spec, store, adapter)


@pytest.mark.parametrize("kind", ["corpus", "index", "contexts", "prompts"])
def test_its_stage_makes_it_again_the_same(kind: str, store: ArtifactStore, tiny_project: Path) -> None:
    spec = load_spec(tiny_project)
    good = store.latest(spec.name, kind)
    flip(good.file(next(iter(good.manifest["files"]))))
    again = run_stage(STAGE_OF[kind], spec, store, Progress())
    assert (again["state"], again["key"], again["digest"]) == ("built", good.key, good.digest)
