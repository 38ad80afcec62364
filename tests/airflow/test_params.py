from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from pydantic import ValidationError

from jora_tasks.airflow.params import (
    ADAPTER_TRAINING_SECTIONS,
    DOCUMENT_INDEX_SECTIONS,
    base_mark,
    base_spec,
    form_spec,
    settings,
    spec_from_params,
    spec_params,
)
from jora_tasks.airflow.runs import good_spec_file, good_spec_variable
from jora_tasks.errors import InputError
from jora_tasks.spec import PROJECTIONS, RunSpec, load_spec

SECTIONS = tuple(RunSpec.model_fields)
PARAMS = spec_params(SECTIONS, RunSpec())
NAMES = [setting.name for setting in settings()]
PROBES: list[Any] = [
    *(-1, 0, 1, 2, 15, 16, 63, 64, 99, 100, 101, 1000, 1001, 1024, 1025, 4096, 4097, 8192, 8193),
    *(100000, 100001, 131072, 131073, -0.1, 0.5, 0.51, 0.95, 1.5, 4096.5),
    *("", "a", "A b", "float32", "bfloat16", "float16", "full", "none", True, None),
]


def values(sections: tuple[str, ...], spec: RunSpec) -> dict[str, Any]:
    return {name: param.resolve() for name, param in spec_params(sections, spec).items()}


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def spec_takes(name: str, value: Any) -> bool:
    """Whether the spec has nothing against this value of this field by itself."""
    try:
        RunSpec.model_validate(nested(name, value), strict=True)
    except ValidationError as error:
        return tuple(name.split(".")) not in {wrong["loc"] for wrong in error.errors()}
    return True


def form_takes(name: str, value: Any) -> bool:
    try:
        copy.copy(PARAMS[name]).resolve(value)
    except ParamValidationError:
        return False
    return True


def is_empty_field(name: str, value: Any) -> bool:
    """Whether a form's field that may stay empty did; the spec sees an empty text or list then."""
    return value is None and "null" in PARAMS[name].schema.get("type", "")


def test_an_empty_field_of_a_form_is_an_empty_value():
    """Airflow's form cannot be sent while a field that needs a value has none, which "" is to it."""
    for name, param in PARAMS.items():
        if param.value in ("", [], {}):
            assert "null" in param.schema["type"], name
    emptied = {"index.query_prompt": None, "lora.init_from": None, "gate.must_not_fall": None}
    assert spec_from_params(emptied, RunSpec()) == RunSpec()


def test_every_setting_is_in_the_form_of_the_dag_that_reads_it():
    index = spec_params(DOCUMENT_INDEX_SECTIONS, RunSpec())
    training = spec_params(ADAPTER_TRAINING_SECTIONS, RunSpec())
    assert index.keys() | training.keys() == set(NAMES)
    assert index.keys() & training.keys() == {"name"}
    assert "training.mesh.fsdp" in training
    assert {name.partition(".")[0] for name in index} == {"name", "documents", "index"}


def test_the_defaults_of_the_forms_are_the_spec():
    spec = load_spec(None, ("training.epochs=3", "lora.target_modules=[q_proj, v_proj]"))
    assert spec_from_params(values(SECTIONS, spec), RunSpec()) == spec
    assert spec_from_params(values(SECTIONS, load_spec(None)), RunSpec()) == load_spec(None)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lora.target_modules"])
def test_the_form_takes_what_the_spec_takes(name):
    if name in ("documents.path", "questions.path", "model.base", "index.embedder"):
        probes = ["", "a", None, 1]
    else:
        probes = PROBES
    # JSON has one kind of number: 1.0 is an integer there and -1 may be a float.
    wrong = [
        value
        for value in probes
        if not (isinstance(value, float) and value.is_integer())
        and not is_empty_field(name, value)
        and form_takes(name, value) != spec_takes(name, value)
    ]
    assert wrong == []


def test_target_modules_are_several_choices():
    assert form_takes("lora.target_modules", ["q_proj", "o_proj"])
    assert not form_takes("lora.target_modules", ["q_porj"])
    assert not form_takes("lora.target_modules", [])
    spec = spec_from_params({"lora.target_modules": list(PROJECTIONS[:2])}, RunSpec())
    assert spec.lora.target_modules == PROJECTIONS[:2]
    again = spec_from_params({"lora.target_modules": ["all-linear"]}, spec)
    assert again.lora.target_modules == "all-linear"
    expression = r"model\.layers\.[0-3]\..*_proj"
    assert form_takes("lora.target_modules", [expression])
    assert spec_from_params({"lora.target_modules": [expression]}, spec).lora.target_modules == expression


def test_layers_and_modules_are_lists():
    assert form_takes("lora.layers_to_transform", [0, 5]) and not form_takes("lora.layers_to_transform", [-1])
    assert form_takes("documents.metadata_columns", ["year", "author"])
    assert not form_takes("documents.metadata_columns", [""])
    assert form_takes("lora.modules_to_save", ["lm_head"]) and not form_takes("lora.modules_to_save", ["x"])
    spec = spec_from_params({"lora.layers_to_transform": [5, 0], "lora.init_from": ""}, RunSpec())
    assert (spec.lora.layers_to_transform, spec.lora.init_from) == ((0, 5), "")


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_described(name):
    param = PARAMS[name]
    assert param.description.endswith((".", ")"))
    assert param.schema["title"] and param.schema["section"]
    assert "type" in param.schema


def test_values_that_do_not_go_together_are_refused_in_a_sentence():
    with pytest.raises(InputError, match=r"chunk_overlap \(300\) must be smaller than chunk_tokens \(200\)"):
        spec_from_params({"index.chunk_overlap": 300}, RunSpec())
    with pytest.raises(InputError, match="'all-linear'"):
        spec_from_params({"lora.target_modules": ["all-linear", "q_proj"]}, RunSpec())


def test_a_name_that_is_no_setting_is_refused():
    with pytest.raises(InputError, match=r"training\.epoch is not a setting"):
        spec_from_params({"training.epoch": 2}, RunSpec())


def test_defaults_come_from_the_named_spec(tmp_path: Path, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text("documents: {path: papers}\nretrieval: {top_k: 7}\n")
    monkeypatch.setenv("JORA_SPEC", str(file))
    defaults = values(SECTIONS, base_spec())
    assert defaults["retrieval.top_k"] == 7
    assert defaults["documents.path"] == str(tmp_path / "papers")
    for given, taken in (("other", str(tmp_path / "other")), ("s3://bucket/x", "s3://bucket/x")):
        assert spec_from_params({"documents.path": given}, base_spec()).documents.path == taken


def test_the_form_begins_with_the_last_good_run_unless_the_file_is_another(home, tmp_path: Path, monkeypatch):
    """Whatever the times of the files are: clocks are set."""
    file, good = tmp_path / "run.yaml", good_spec_file(home, "adapter_training")
    file.write_text("training: {epochs: 3}\n")
    monkeypatch.setenv("JORA_SPEC", str(file))
    assert form_spec("adapter_training").training.epochs == 3
    good.parent.mkdir(parents=True)
    good.write_text(f"{base_mark()}\ntraining: {{epochs: 5}}\n")
    for times in ((1, 1), (2**32, 2**32)):
        os.utime(file, times)
        assert form_spec("adapter_training").training.epochs == 5
    assert form_spec("document_index").training.epochs == 3
    assert base_spec().training.epochs == 3  # what a scheduled run takes
    file.write_text("training: {epochs: 4}\n")
    for times in ((1, 1), (2**32, 2**32)):
        os.utime(file, times)
        assert form_spec("adapter_training").training.epochs == 4
    good.write_text(f"{base_mark()}\ntraining: {{epochs: no number}}\n")
    assert form_spec("adapter_training").training.epochs == 4
    monkeypatch.delenv("JORA_SPEC")
    good.write_text(f"{base_mark()}\ntraining: {{epochs: 5}}\n")
    assert form_spec("adapter_training").training.epochs == 5


def test_a_bad_spec_file_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("JORA_SPEC", str(tmp_path / "no.yaml"))
    with pytest.raises(InputError, match=r"no\.yaml: no such file"):
        base_spec()


def test_filters_are_an_object_of_texts_numbers_or_lists():
    for filters in ({}, {"product": "handbook"}, {"product": ["a", "b"], "year": 2024}, {"a": [1.5, "b"]}):
        spec = spec_from_params(values(SECTIONS, RunSpec()) | {"retrieval.filters": filters}, RunSpec())
        assert spec.retrieval.filters == load_spec(None, (f"retrieval.filters={filters}",)).retrieval.filters
        assert form_takes("retrieval.filters", filters)
    for wrong in ({"product": {"a": 1}}, {"product": [[1]]}, ["product"], "product"):
        assert not form_takes("retrieval.filters", wrong)
        with pytest.raises(InputError, match=r"retrieval\.filters"):
            spec_from_params({"retrieval.filters": wrong}, RunSpec())
    with pytest.raises(InputError, match="product has no value; give one or leave the key out"):
        spec_from_params({"retrieval.filters": {"product": []}}, RunSpec())


def test_on_a_fleet_the_form_begins_with_what_airflow_s_variable_keeps(
    airflow_db, home, tmp_path, monkeypatch
):
    file, name = tmp_path / "run.yaml", f"AIRFLOW_VAR_{good_spec_variable('adapter_training').upper()}"
    file.write_text("training: {epochs: 3}\n")
    monkeypatch.setenv("JORA_SPEC", str(file))
    monkeypatch.setenv("JORA_ARTIFACTS", (tmp_path / "share").as_uri())
    assert form_spec("adapter_training").training.epochs == 3
    spec = load_spec(file, ("training.epochs=5",)).model_dump(mode="json")
    for kept, epochs in (
        ({"begun_with": base_mark(), "spec": spec}, 5),
        ({"begun_with": "# another", "spec": spec}, 3),
        ({"begun_with": base_mark(), "spec": {"training": {"epochs": "no number"}}}, 3),
        ({"spec": spec}, 3),
        ([1], 3),
    ):
        monkeypatch.setenv(name, json.dumps(kept))
        assert form_spec("adapter_training").training.epochs == epochs, kept
    monkeypatch.setenv(name, "no JSON")
    assert form_spec("adapter_training").training.epochs == 3
