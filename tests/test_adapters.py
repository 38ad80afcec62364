"""Adapters taken out of a home, and merged into their base, as a user does it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from jora_tasks.adapters import export_adapter, merge_into_base
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.models import model_source
from jora_tasks.progress import Event, Progress
from jora_tasks.registry import CANDIDATE, DIGEST, KEY, Registry
from tests.commands import Commands
from tests.tiny import write_base

TOKENS = np.array([[5, 9, 3, 40, 7, 7, 11, 2]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture
def adapter(registry_store: ArtifactStore, base: Path) -> Artifact:
    """A random adapter of the home, strong enough to change logits."""
    import dataclasses

    import jax

    from jora_tasks.spec import LoraConfig
    from jora_tasks.trainer.export import save_adapter
    from jora_tasks.trainer.load import load_model

    def write(folder: Path) -> dict[str, Any]:
        model = load_model(base, lora=LoraConfig(r=2, target_modules=("q_proj", "down_proj")))
        lora = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), model.lora)
        save_adapter(dataclasses.replace(model, lora=lora), folder, "tiny-base")
        (folder / "README.md").write_text("# An adapter\n")
        return {}

    source = model_source(base, str(base))
    settings = {"dtype": "bfloat16"}
    return registry_store.build(
        "adapter", version=1, settings=settings, inputs={"base_model": source}, write=write
    )


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def test_an_adapter_leaves_home_and_merges_into_its_base(
    registry_store: ArtifactStore, adapter: Artifact, base: Path, tmp_path: Path
) -> None:
    store = registry_store
    done = export_adapter(adapter.key[:6], tmp_path / "peft", store, "documents")
    assert done["digest"] == adapter.digest
    assert sorted(file.name for file in (tmp_path / "peft").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip

    events: list[Event] = []
    told = merge_into_base(
        str(tmp_path / "peft"),
        tmp_path / "merged",
        store,
        "documents",
        Progress(events.append),
        base=str(base),
    )
    expected = logits(base, tmp_path / "peft")
    assert np.abs(expected - logits(base)).max() > 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-5)
    assert told["trained_over"] == "unknown"
    assert (events[-1].done, events[-1].total, events[-1].unit) == (len(events), len(events), "tensors")

    told = merge_into_base(
        adapter.key, tmp_path / "small", store, "documents", Progress(), base=str(base), dtype="bfloat16"
    )
    assert told["base"] == model_source(base, str(base)).reference()
    assert (told["trained_over"], told["merged_in"], told["dtype"]) == ("bfloat16", "float32", "bfloat16")
    card = (tmp_path / "small" / "README.md").read_text()
    assert told["base"]["digest"] in card and adapter.digest in card and str(tmp_path) not in card
    with (
        safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as whole,
        safe_open(tmp_path / "small" / "model.safetensors", framework="pt") as rounded,
    ):
        for name in whole.keys():  # noqa: SIM118
            assert (whole.get_tensor(name).bfloat16() == rounded.get_tensor(name)).all()
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "small")("abc") == AutoTokenizer.from_pretrained(base)(
        "abc"
    )


def test_several_shards_have_an_index(adapter: Artifact, base: Path, tmp_path: Path) -> None:
    from jora_tasks.trainer.merge import merge_adapter

    one = merge_adapter(base, adapter.path, tmp_path / "one")
    many = merge_adapter(base, adapter.path, tmp_path / "many", shard_bytes=20_000)
    files = sorted(file.name for file in many.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    index = json.loads((many / "model.safetensors.index.json").read_text())
    size = sum(int(np.prod(leaf.shape)) * 4 for leaf in read(one / "model.safetensors").values())
    assert index["metadata"]["total_size"] == size
    for name, value in read(one / "model.safetensors").items():
        np.testing.assert_array_equal(read(many / index["weight_map"][name])[name], value)
    np.testing.assert_array_equal(logits(many), logits(one))


def read(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(file)


def test_the_candidate_comes_from_the_registry(
    registry_store: ArtifactStore, adapter: Artifact, tmp_path: Path
) -> None:
    registry = Registry(registry_store.home)
    tags = {DIGEST: adapter.digest, KEY: adapter.key}
    version = registry.register(adapter.path, "documents", metrics={}, tags=tags, params={})
    registry.set_alias("documents", CANDIDATE, version)
    (adapter.path / "README.md").write_text("altered")
    done = export_adapter("candidate", tmp_path / "out", registry_store, "documents")
    assert done["digest"] == adapter.digest
    assert (tmp_path / "out" / "README.md").read_text() == "# An adapter\n"
    with pytest.raises(InputError, match="'documents' has no champion"):
        export_adapter("champion", tmp_path / "other", registry_store, "documents")
    with pytest.raises(InputError, match="does not match its manifest"):
        export_adapter(adapter.key, tmp_path / "other", registry_store, "documents")
    assert not (tmp_path / "other").exists()


def test_the_lineage_of_the_candidate_is_that_of_its_adapter(
    commands: Commands, registry_store: ArtifactStore, adapter: Artifact
) -> None:
    registry = Registry(registry_store.home)
    tags = {DIGEST: adapter.digest, KEY: adapter.key}
    version = registry.register(adapter.path, "documents", metrics={}, tags=tags, params={})
    registry.set_alias("documents", CANDIDATE, version)
    for options in ((), ("--verify",)):
        by_alias, by_key = (
            commands.run("lineage", given, *options, JORA_HOME=registry_store.home)
            for given in ("candidate", adapter.key)
        )
        assert by_alias.code == 0 and by_alias.stdout == by_key.stdout and adapter.key in by_alias.stdout
    for given, line in (("champion", "documents"), ("candidate", "other")):
        ended = commands.run("lineage", given, "--set", f"name={line}", JORA_HOME=registry_store.home)
        assert ended.code == 2 and f"{line!r} has no {given} in the registry" in ended.last_line


def test_what_cannot_be_merged_is_refused_before_anything_is_written(
    registry_store: ArtifactStore, adapter: Artifact, base: Path, tmp_path: Path
) -> None:
    def merge(given: str, output: str = "merged", **options: Any) -> None:
        merge_into_base(given, tmp_path / output, registry_store, "documents", Progress(), **options)

    other = write_base(tmp_path / "other-base")
    (other / "note.txt").write_text("other files, other digest")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    for arguments, options, words in (
        ((adapter.key,), {}, "trained over tiny-base, which cannot be fetched by that name; .* --base"),
        ((adapter.key,), {"base": str(other)}, r"trained over tiny-base \(sha256:.*not over other-base"),
        ((adapter.key,), {"base": "no such"}, "^--base: 'no such' is neither"),
        ((adapter.key,), {"base": str(base), "dtype": "float16"}, "dtype 'float16' is not supported"),
        ((adapter.key, "used"), {"base": str(base)}, "used is in use"),
        (("feed",), {"base": str(base)}, "adapter 'feed' does not exist"),
        ((str(base),), {"base": str(base)}, r"has no adapter_config\.json"),
    ):
        with pytest.raises(InputError, match=words):
            merge(*arguments, **options)
    assert {file.name for file in tmp_path.iterdir()} == {"home", "other-base", "used"}
    assert [file.name for file in (tmp_path / "used").iterdir()] == ["file"]


def test_the_commands_print_json_and_leave_one_sentence(
    registry_store: ArtifactStore,
    adapter: Artifact,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JORA_HOME", str(registry_store.home))

    def jora(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jora_tasks.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    merged = ("merge", adapter.key, "--base", str(base), "--output", str(tmp_path / "merged"))
    done = jora(*merged, "--json")
    assert json.loads(done.stdout)["path"] == str(tmp_path / "merged"), done.stderr
    assert "tensors" in done.stderr
    again = jora(*merged)
    assert (again.returncode, again.stdout, again.stderr.count("\n")) == (2, "", 1)
    out = jora("export", adapter.key, "--output", str(tmp_path / "peft"))
    assert out.returncode == 0 and str(tmp_path / "peft") in out.stdout


def flip(file: Path) -> None:
    """Alter one byte."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "README.md", "manifest.json"]
)
def test_one_altered_byte_of_a_registered_adapter_is_found_wherever_it_is_loaded(
    name: str, registry_store: ArtifactStore, adapter: Artifact, base: Path, tmp_path: Path
) -> None:
    from jora_tasks.asking import _served
    from jora_tasks.spec import RunSpec
    from jora_tasks.stages.arms import _fetch_adapter

    store, registry = registry_store, Registry(registry_store.home)
    tags = {DIGEST: adapter.digest, KEY: adapter.key}
    version = registry.register(adapter.path, "documents", metrics={}, tags=tags, params={})
    registry.promote("documents", version, by="tests", reason="to load it")
    champion = registry.get_champion("documents")
    assert champion is not None
    kept = next((store.home / "mlflow" / "artifacts").rglob("adapter_config.json")).parent
    out = tmp_path / "out"

    def export(given: str) -> None:
        export_adapter(given, out, store, "documents")

    def merge(given: str) -> None:
        merge_into_base(given, out, store, "documents", Progress(), base=str(base))

    def serve(given: str) -> None:
        with _served(given, RunSpec(), store):
            pass

    flip(kept / name)
    for load in (export, merge, serve):
        with pytest.raises(
            InputError, match=r"^The files of version 1 .* are not those that were registered"
        ):
            load("champion")
        with pytest.raises(InputError, match="does not match its manifest"):
            load(str(kept))
    # the home's own copy is whole, and it is what a champion answers with
    assert _fetch_adapter(champion, store, registry, tmp_path / "a") == adapter.path
    flip(adapter.file(name))
    with pytest.raises(InputError, match="are not those that were registered"):
        _fetch_adapter(champion, store, registry, tmp_path / "b")
    for load in (export, merge, serve):
        for given in (adapter.key, str(adapter.path)):
            with pytest.raises(InputError, match="does not match its manifest"):
                load(given)
    assert not out.exists()
