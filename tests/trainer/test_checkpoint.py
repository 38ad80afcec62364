"""Work folders: what comes back, and what is refused."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.errors import InputError
from jora_tasks.trainer.checkpoint import (
    CHECKPOINTS,
    DAMAGED,
    KEPT,
    RUN,
    SEALS,
    Position,
    WorkFolder,
)
from jora_tasks.trainer.fingerprint import fingerprint
from jora_tasks.trainer.metrics import METRICS, read_metrics

IDENTITY = {"lora.r": 4, "training.seed": 0, "lora.target_modules": ("q_proj",)}


def _state(value=0.0):
    moments = ({"a": jnp.full((2, 3), value / 3)}, jnp.int32(value))
    return {"a": jnp.full((2, 3), value), "b": jnp.full((3,), value, jnp.bfloat16)}, moments


@pytest.fixture
def open_folder(tmp_path):
    opened = []

    def open_one(identity=IDENTITY):
        opened.append(WorkFolder(tmp_path / "work", identity))
        return opened[-1]

    yield open_one
    for work in opened:
        work.close()


def _go(work, steps, first=1):
    for step in range(first, steps + 1):
        work.record({"step": step, "loss": 0.1 * step})


def _save(work, position, state):
    work.save(position, state)
    work.finish()


def test_state_and_position_come_back_bit_for_bit(open_folder):
    work = open_folder()
    assert work.restore(_state()) is None
    _go(work, 3)
    _save(work, Position(3, 1, 2), _state(0.7))
    position, state = open_folder().restore(_state())
    assert position == Position(3, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, state, _state(0.7))
    assert jax.tree.structure(state) == jax.tree.structure(_state())


def test_metrics_are_cut_back_to_the_checkpoint(open_folder):
    work = open_folder()
    _go(work, 2)
    _save(work, Position(2, 0, 2), _state(1.0))
    _go(work, 5, first=3)
    with work.metrics_file.open("a") as file:
        file.write('{"step": 6, "l')
    again = open_folder()
    again.restore(_state())
    assert [line["step"] for line in read_metrics(again.metrics_file)] == [1, 2]


def test_a_checkpoint_without_its_metrics_is_not_used(open_folder):
    work = open_folder()
    _go(work, 1)
    _save(work, Position(2, 0, 2), _state(1.0))
    again = open_folder()
    assert again.restore(_state()) is None
    assert read_metrics(again.metrics_file) == []
    _go(again, 1)
    _save(again, Position(1, 0, 1), _state(2.0))
    assert open_folder().restore(_state())[0] == Position(1, 0, 1)


def test_the_newest_checkpoint_counts_and_few_are_kept(open_folder):
    work = open_folder()
    _go(work, 4)
    for step in range(1, 5):
        _save(work, Position(step, 0, step), _state(float(step)))
    assert len(list((work.path / CHECKPOINTS).iterdir())) == KEPT
    position, state = open_folder().restore(_state())
    assert position.step == 4
    assert float(state[0]["a"][0, 0]) == 4.0


def test_another_run_is_refused_by_what_differs(open_folder):
    open_folder().record({"step": 1})
    with pytest.raises(InputError, match=r"work holds an unfinished run of other lora\.r, training\.epochs;"):
        open_folder({**IDENTITY, "lora.r": 8, "training.epochs": 2})
    assert open_folder().metrics_file.read_text()  # nothing was wiped


def test_a_folder_of_something_else_is_refused(tmp_path, open_folder):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"has files but no run\.json"):
        open_folder()
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["thesis.txt"]


def test_checkpoints_moved_in_from_another_run_are_not_used(tmp_path, open_folder, caplog):
    other = WorkFolder(tmp_path / "other", {**IDENTITY, "training.seed": 1})
    _go(other, 1)
    _save(other, Position(1, 0, 1), _state(1.0))
    other.close()
    work = open_folder()
    shutil.rmtree(work.path / CHECKPOINTS)
    for name in (CHECKPOINTS, METRICS, SEALS):
        (other.path / name).rename(work.path / name)
    assert open_folder().restore(_state()) is None
    assert "checkpoint 1 cannot be used" in caplog.text
    assert (work.path / DAMAGED / "1").is_dir()


def _overwrite(folder):
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


def _flip_a_byte(folder):
    file = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _change_a_loss(folder):
    metrics = folder.parents[1] / METRICS
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:-1], lines[-1].replace("loss", "lost")]))


@pytest.mark.parametrize("damage", [_overwrite, _flip_a_byte, _change_a_loss, shutil.rmtree])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, open_folder, caplog):
    work = open_folder()
    for step in (1, 2):
        _go(work, step, first=step)
        _save(work, Position(step, 0, step), _state(float(step)))
    damage(work.path / CHECKPOINTS / "2")
    again = open_folder()
    position, state = again.restore(_state())
    assert position == Position(1, 0, 1)
    jax.tree.map(np.testing.assert_array_equal, state, _state(1.0))
    assert [line["step"] for line in read_metrics(again.metrics_file)] == [1]
    assert damage is shutil.rmtree or "checkpoint 2 cannot be used" in caplog.text
    _go(again, 2, first=2)
    _save(again, Position(2, 0, 2), _state(2.5))
    assert float(open_folder().restore(_state())[1][0]["a"][0, 0]) == 2.5


@pytest.mark.parametrize("damaged", [CHECKPOINTS, ""])
def test_where_no_checkpoint_is_whole_the_run_starts_afresh(damaged, open_folder):
    work = open_folder()
    run = (work.path / RUN).read_text()
    _go(work, 2)
    for step in (1, 2):
        _save(work, Position(step, 0, step), _state(float(step)))
    _overwrite(work.path / damaged)
    (work.path / RUN).write_text(run)
    again = open_folder()
    assert again.restore(_state()) is None
    assert read_metrics(again.metrics_file) == []


def test_a_state_of_another_shape_is_not_forced_into_this_one(open_folder, caplog):
    work = open_folder()
    _go(work, 1)
    _save(work, Position(1, 0, 1), {"a": jnp.ones((2, 3))})
    assert open_folder().restore({"a": jnp.ones((2, 4))}) is None
    assert "checkpoint 1 cannot be used (Orbax: " in caplog.text


@pytest.mark.parametrize("text", ["[]", "7", "{", ""])
def test_a_run_record_that_is_no_object_is_another_run(text, open_folder):
    work = open_folder()
    (work.path / RUN).write_text(text)
    with pytest.raises(InputError, match=r"holds an unfinished run of other lora\.r, "):
        open_folder()


def test_fingerprints_tell_weights_apart():
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.ones(3, jnp.bfloat16)}
    changed = {**tree, "w": tree["w"].at[1, 1].add(1e-6)}
    others = [changed, {**tree, "w": tree["w"].T}, {"v": tree["w"], "n": tree["n"]}]
    assert fingerprint(tree) == fingerprint(jax.tree.map(jnp.copy, tree))
    assert len({fingerprint(tree), *map(fingerprint, others)}) == 4
