"""The spec: round trips, refusals that name the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from jora_tasks.spec import PROJECTIONS, LoraConfig, RunSpec, dump_spec, load_spec


@given(
    st.builds(
        LoraConfig,
        r=st.integers(1, 1024),
        lora_alpha=st.floats(0.5, 4096),
        use_rslora=st.booleans(),
        target_modules=st.one_of(
            st.just("all-linear"),
            st.lists(st.sampled_from(PROJECTIONS), min_size=1, unique=True).map(tuple),
        ),
        layers_to_transform=st.lists(st.integers(0, 99), unique=True).map(tuple),
        modules_to_save=st.sets(st.sampled_from(("embed_tokens", "lm_head"))).map(tuple),
    )
)
def test_yaml_gives_back_the_same_spec(tmp_path_factory: pytest.TempPathFactory, lora: LoraConfig) -> None:
    file = tmp_path_factory.mktemp("spec") / "run.yaml"
    spec = RunSpec(lora=lora)
    file.write_text(dump_spec(spec))
    read = load_spec(file)
    assert read.lora == lora
    assert read.documents.path == str(file.parent / "documents")


def test_the_defaults_are_what_a_file_of_them_says(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_spec(RunSpec()))
    for section in ("lora", "training", "prompts", "evaluation"):
        written = getattr(RunSpec(), section).model_dump_json()
        assert getattr(load_spec(file), section).model_dump_json() == written


def test_paths_are_relative_to_the_spec_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "documents: {path: handbook}\nquestions: {path: /data/q.jsonl}\nlora: {init_from: before}\n"
    )
    spec = load_spec(file)
    assert spec.lora.init_from == str(tmp_path / "before")
    assert load_spec(None).lora.init_from == ""
    assert spec.documents.path == str(tmp_path / "handbook")
    assert spec.questions.path == "/data/q.jsonl"
    file.write_text("documents: {path: s3://bucket/handbook}\n")
    assert load_spec(file).documents.path == "s3://bucket/handbook"


def test_overrides_are_yaml_values() -> None:
    spec = load_spec(None, ("training.learning_rate=1e-4", "lora.target_modules=[v_proj, q_proj]"))
    assert spec.training.learning_rate == 1e-4
    assert spec.lora.target_modules == ("v_proj", "q_proj")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.lr=1", "training.lr is not a setting"),
        ("lora.r=0", "lora.r"),
        ("lora.target_modules=[query]", "query"),
        ("name=Not A Name", "name (got 'Not A Name') is not what it must be. Name of this line of adapters"),
        (
            "index.type=hnsw",
            "--set 'index.type=hnsw': index.type (got 'hnsw') is not what it must be. flat (exact)",
        ),
        ('lora.init_from="a\\0b"', "lora.init_from (got 'a\\x00b') must be a text without a zero byte."),
        ("index.chunk_overlap=4000", "chunk_overlap"),
        ("training.mesh.tensor=0", "training.mesh.tensor"),
        ("nonsense", "section.field=value"),
        ("name.x=1", "name"),
        ("name=2020-13-45", "is not valid YAML"),
        ("name=!!bool maybe", "is not valid YAML"),
        ("name=" + "[" * 3000, "too deeply"),
        ("gate.rise_against=[]", "gate.rise_against (got []) must not be empty; name at least 1"),
        ("training.epochs=true", "training.epochs (got True)"),
        ("training.epochs='2'", "training.epochs (got '2')"),
        ("training.max_grad_norm=.inf", "training.max_grad_norm"),
        ("training.seed=99999999999999999999", "training.seed"),
        ("training=null", "training must be a mapping of settings"),
        ("lora.target_modules=q_proj", "use all-linear, a list of names"),
        ("lora.target_modules='.*(q_proj'", "is not a regular expression"),
        ("lora={target_modules: .*q_proj, layers_to_transform: [0]}", "name the layers in the expression"),
        ("lora.layers_to_transform=[-1]", "lora.layers_to_transform"),
        ("lora.modules_to_save=[norm]", "lora.modules_to_save"),
        ('documents.path="a\\0b"', "documents.path"),
        ("documents.path=https://me:pw@host/docs", "documents.path: a URL must hold no password and no"),
        ("documents.encoding=klingon", "documents.encoding"),
        ("documents.metadata_columns=['']", "documents.metadata_columns"),
    ],
)
def test_a_bad_setting_is_named(override: str, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        load_spec(None, (override,))


def test_filters_take_numbers_and_booleans_as_the_text_that_metadata_has() -> None:
    spec = load_spec(None, ("retrieval.filters={year: 2024, share: [1.5, x], open: true}",))
    assert spec.retrieval.filters == {"year": "2024", "share": ("1.5", "x"), "open": "true"}
    with pytest.raises(InputError, match=r"retrieval\.filters\.year"):
        load_spec(None, ("retrieval.filters={year: {a: 1}}",))


def test_an_override_is_blamed_for_itself_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora: {r: 4}\nindex: {chunk_overlap: 9}\n")
    with pytest.raises(InputError, match=r"^--set 'lora\.r=0': lora\.r \(got 0\)"):
        load_spec(file, ("name=x", "lora.r=0"))
    with pytest.raises(InputError, match=r"^--set 'index\.chunk_tokens=8': index"):
        load_spec(file, ("index.chunk_tokens=8",))
    file.write_text("lora: {r: 0}\n")
    with pytest.raises(InputError, match=r"^\S*run\.yaml: lora\.r"):
        load_spec(file, ("lora.lora_alpha=8",))


def test_a_file_may_write_powers_of_ten_without_a_dot(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {learning_rate: 1e-4, weight_decay: 0}\n")
    assert load_spec(file).training.learning_rate == 1e-4


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(InputError, match="epochs is given twice"):
        load_spec(file)


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_spec(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="is a directory"):
        load_spec(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1\n")
    with pytest.raises(InputError, match=r"bad\.yaml is not valid YAML"):
        load_spec(bad)
    bad.write_text("- 1\n")
    with pytest.raises(InputError, match="mapping"):
        load_spec(bad)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    assert LoraConfig(r=16, lora_alpha=8).scale == 0.5
    assert LoraConfig(r=16, lora_alpha=8, use_rslora=True).scale == 2.0
