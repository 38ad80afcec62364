"""train_lora: it learns, publishes a whole PEFT folder, and refuses what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.train import train_lora

LORA = LoraConfig(r=4)


@pytest.fixture(scope="module")
def folder(tiny_model):
    return tiny_model()


def _dataset(count=8, seed=0):
    random = np.random.default_rng(seed)
    return Dataset(
        tuple(Example.make(f"e{i}", random.integers(0, 96, 24), prompt_length=20) for i in range(count))
    )


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """One run: its folder and what on_step was told."""
    told = []
    output = tmp_path_factory.mktemp("run") / "adapter"
    training = TrainConfig(epochs=15, batch_size=4, learning_rate=0.02, checkpoint_every=7)
    train_lora(folder, _dataset(), LORA, training, output=output, base_name="tiny", on_step=told.append)
    return output, told


def test_a_few_examples_are_learned_by_heart(run, folder):
    output, told = run
    assert told[-1]["loss"] < 0.1 * told[0]["loss"]
    model = load_model(folder, adapter=output)
    example = _dataset().examples[0]
    predicted = np.asarray(model.logits(example.input_ids[None])[0]).argmax(-1)
    assert list(predicted[19:23]) == list(example.input_ids[20:])


def test_the_published_folder_is_whole_and_nothing_else_is_left(run):
    output, _ = run
    assert sorted(file.name for file in output.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "summary.json",
    ]
    assert [file.name for file in output.parent.iterdir()] == ["adapter"]


def test_the_card_says_what_it_is_without_local_paths(run, folder):
    card = (run[0] / "README.md").read_text()
    assert "base_model: tiny\n" in card
    assert "| Examples, epochs, updates | 8, 15, 30 |" in card
    assert "| Tokens seen, of them scored | 2,880, 480 |" in card
    for path in (run[0], folder):
        assert str(path) not in card + (run[0] / "adapter_config.json").read_text()


def test_metrics_and_on_step_say_the_same(run):
    output, told = run
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert list(lines[0]) == [
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "scored_tokens",
        "computed_tokens", "tokens_per_second", "mfu_4n", "seconds",
    ]  # fmt: skip
    for line, report in zip(lines, told, strict=True):
        assert report == {**line, "total_steps": 30, "eta_seconds": report["eta_seconds"]}
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert [line["epoch"] for line in lines] == [step // 2 for step in range(30)]
    assert {(line["tokens"], line["scored_tokens"]) for line in lines} == {(96, 16)}
    assert all(0 < line["mfu_4n"] < 1 for line in lines)
    assert told[-1]["eta_seconds"] == 0


def test_a_loaded_model_trains_to_the_same_and_is_left_as_it_was(folder, tmp_path):
    training = TrainConfig(batch_size=4, seed=3)
    model = load_model(folder, lora=LORA, seed=3)
    before = jax.device_get(model.lora)
    first = train_lora(model, _dataset(), LORA, training, output=tmp_path / "loaded", base_name="tiny")
    second = train_lora(folder, _dataset(), LORA, training, output=tmp_path / "read", base_name="tiny")
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(model.lora))


def test_nan_stops_with_the_update_and_its_examples(folder, tmp_path):
    model = load_model(folder, lora=LORA)
    norm = {"weight": jnp.full_like(model.base["norm"]["weight"], jnp.nan)}
    broken = replace(model, base={**model.base, "norm": norm})
    with pytest.raises(FloatingPointError, match=r"update 1 has loss nan .* examples are (e[01](, )?){2};"):
        train_lora(broken, _dataset(2), LORA, TrainConfig(batch_size=2), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["folder in use", "file"])
def test_an_output_in_use_is_refused(kind, folder, tmp_path):
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="out is in use; give a folder that is absent or empty"):
        train_lora(folder, _dataset(), LORA, output=output)


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("model", None, "model is of type NoneType; give the path of a model's folder"),
        ("dataset", [{"question": "?"}], "dataset is of type list; give what load_dataset"),
        ("lora", {"r": 4}, "lora is of type dict; give a LoraConfig"),
        ("training", {"epochs": 1}, "training is of type dict; give a TrainConfig"),
        ("output", None, "output is of type NoneType; give the path of a folder"),
        ("output", "file/deep/out", "output .*out is below the file .*file; give a folder"),
        ("work", "file/work", "work .*work is below the file .*file; give a folder"),
        ("on_step", "print", "on_step is of type str; give a function"),
    ],
)
def test_arguments_of_another_kind_are_named(argument, value, words, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    arguments = {"model": folder, "dataset": _dataset(), "output": "out", argument: value}
    with pytest.raises(InputError, match=words):
        train_lora(**arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_batch_that_does_not_split_over_the_mesh_is_refused(folder, tmp_path):
    training = TrainConfig(batch_size=3, mesh=MeshConfig(data=2))
    with pytest.raises(InputError, match=r"training\.batch_size 3 does not split over data x fsdp = 2"):
        train_lora(folder, _dataset(), LORA, training, output=tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([1, 96], "example x has token 96, but the model knows 96"), ([1] * 257, "example x has 257 tokens")],
)
def test_examples_that_the_model_cannot_read_are_named(ids, expected, folder, tmp_path):
    dataset = Dataset((Example.make("x", ids, prompt_length=1),))
    with pytest.raises(InputError, match=expected):
        train_lora(folder, dataset, LORA, output=tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"max_length": 24}, "training.max_length"),
        ({"packing": True, "row_length": 24}, "training.row_length"),
    ],
)
def test_examples_longer_than_a_limit_stop_the_run_or_are_listed(settings, limit, folder, tmp_path):
    random = np.random.default_rng(0)
    long = tuple(
        Example.make(f"long{n}", random.integers(0, 96, n), prompt_length=n - 4) for n in (25, 40, 31)
    )
    dataset = Dataset((*long[:2], *_dataset().examples, long[2]))
    words = rf"example long40 has 40 tokens, but {limit} is 24 and 2 more are too long; .*long_examples: skip"
    with pytest.raises(InputError, match=words):
        train_lora(folder, dataset, LORA, TrainConfig(**settings), output=tmp_path / "out")
    assert not any(tmp_path.iterdir())
    training = TrainConfig(**settings, batch_size=4, long_examples="skip")
    with_long = train_lora(folder, dataset, LORA, training, output=tmp_path / "skipped")
    listed = [json.loads(line) for line in (with_long / "skipped.jsonl").read_text().splitlines()]
    assert listed == [{"id": f"long{n}", "tokens": n} for n in (25, 40, 31)]
    summary = json.loads((with_long / "summary.json").read_text())
    assert (summary["skipped"], summary["examples"], summary["tokens"]) == (3, 8, 8 * 24)
    assert "| Examples left out for their length | 3, listed in" in (with_long / "README.md").read_text()
    without = train_lora(folder, _dataset(), LORA, training, output=tmp_path / "without")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (with_long / name).read_bytes() == (without / name).read_bytes()


def test_packed_rows_train_on_every_token_with_less_padding(folder, tmp_path):
    summaries = {}
    for packing in (False, True):
        training = TrainConfig(batch_size=1, packing=packing, row_length=120 if packing else 0)
        output = train_lora(folder, _dataset(), LORA, training, output=tmp_path / str(packing))
        summaries[packing] = json.loads((output / "summary.json").read_text())
    assert [summaries[packing]["steps"] for packing in (False, True)] == [8, 2]
    assert {summary["tokens"] for summary in summaries.values()} == {192}
    assert [summaries[packing]["padding"] for packing in (False, True)] == [0.625, 0.25]


def test_a_path_as_the_base_name_is_refused_before_training(folder, tmp_path):
    with pytest.raises(InputError, match="base_name"):
        train_lora(folder, _dataset(), LORA, output=tmp_path / "out", base_name=str(folder))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["no adapter", "another"])
def test_a_loaded_model_must_have_the_adapter_asked_for(lora, folder, tmp_path):
    model = load_model(folder, lora=lora)
    with pytest.raises(InputError, match=r"load it with load_model\(folder, lora=lora\)"):
        train_lora(model, _dataset(), LORA, output=tmp_path / "out")


def test_an_interrupted_run_of_other_settings_is_refused(folder, tmp_path):
    def stop(metrics):
        raise KeyboardInterrupt

    work, output = tmp_path / "work", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_lora(folder, _dataset(), LORA, TrainConfig(), output=output, work=work, on_step=stop)
    with pytest.raises(InputError, match=r"unfinished run of other training\.learning_rate;"):
        train_lora(folder, _dataset(), LORA, TrainConfig(learning_rate=0.1), output=output, work=work)
    with pytest.raises(InputError, match="unfinished run of other dataset;"):
        train_lora(folder, _dataset(seed=1), LORA, TrainConfig(), output=output, work=work)
    assert not output.exists()
