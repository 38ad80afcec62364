"""Base models and embedders: fetched once, checked, refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from jora_tasks import models
from jora_tasks.errors import InputError


def test_the_packaged_base_is_a_plain_folder_that_says_where_it_is_from(smollm2_folder: Path) -> None:
    assert (smollm2_folder / "model.safetensors").is_file()
    assert models.BASE_SHA256 in (smollm2_folder / "dequantised.json").read_text()
    assert "Q4_1" in models.model_source(smollm2_folder, "smollm2-135m-instruct").reference()["note"]
    assert "quantization_config" not in (smollm2_folder / "config.json").read_text()


def test_a_source_has_no_local_path(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    source = models.model_source(models.base_model_folder(str(folder), tmp_path), str(folder))
    assert source.name == "my-model"
    before = source.digest
    (folder / "config.json").write_text("{ }")
    assert models.model_source(folder, str(folder)).digest != before


@pytest.mark.parametrize("name", ["absent", "./absent", "/absent/model", "a/b/c"])
def test_an_unknown_model_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"model\.base: .*neither a folder nor a hub id"):
        models.base_model_folder(name, tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        models.embedder_folder(str(tmp_path), tmp_path)


def test_an_altered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / models.BASE_FILE).write_bytes(b"not it")
    monkeypatch.setattr(models, "_package_folder", lambda module, distribution: tmp_path)
    with pytest.raises(InputError, match="not the expected file"):
        models.base_model_folder("smollm2-135m-instruct", tmp_path / "home")
    assert not (tmp_path / "home" / "models" / "smollm2-135m-instruct").exists()
