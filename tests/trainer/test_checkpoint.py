"""Work folders: what comes back, and what is refused."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.errors import InputError
from jora_tasks.trainer.checkpoint import CHECKPOINTS, KEPT, Position, WorkFolder, fingerprint, read_metrics

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


def test_state_and_position_come_back_bit_for_bit(open_folder):
    work = open_folder()
    assert work.restore(_state()) is None
    _go(work, 3)
    work.save(Position(3, 1, 2), _state(0.7))
    position, state = open_folder().restore(_state())
    assert position == Position(3, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, state, _state(0.7))
    assert jax.tree.structure(state) == jax.tree.structure(_state())


def test_metrics_are_cut_back_to_the_checkpoint(open_folder):
    work = open_folder()
    _go(work, 2)
    work.save(Position(2, 0, 2), _state(1.0))
    _go(work, 5, first=3)
    with work.metrics_file.open("a") as file:
        file.write('{"step": 6, "l')
    again = open_folder()
    again.restore(_state())
    assert [line["step"] for line in read_metrics(again.metrics_file)] == [1, 2]


def test_a_checkpoint_without_its_metrics_is_not_used(open_folder):
    work = open_folder()
    _go(work, 1)
    work.save(Position(2, 0, 2), _state(1.0))
    again = open_folder()
    assert again.restore(_state()) is None
    assert read_metrics(again.metrics_file) == []
    _go(again, 1)
    again.save(Position(1, 0, 1), _state(2.0))
    assert open_folder().restore(_state())[0] == Position(1, 0, 1)


def test_the_newest_checkpoint_counts_and_few_are_kept(open_folder):
    work = open_folder()
    _go(work, 4)
    for step in range(1, 5):
        work.save(Position(step, 0, step), _state(float(step)))
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


def test_checkpoints_moved_in_from_another_run_are_refused(tmp_path, open_folder):
    other = WorkFolder(tmp_path / "other", {**IDENTITY, "training.seed": 1})
    _go(other, 1)
    other.save(Position(1, 0, 1), _state(1.0))
    other.close()
    work = open_folder()
    shutil.rmtree(work.path / CHECKPOINTS)
    shutil.copytree(other.path / CHECKPOINTS, work.path / CHECKPOINTS)
    shutil.copy(other.metrics_file, work.metrics_file)
    with pytest.raises(InputError, match="checkpoint 1 is of another run"):
        open_folder().restore(_state())


def test_fingerprints_tell_weights_apart():
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.ones(3, jnp.bfloat16)}
    changed = {**tree, "w": tree["w"].at[1, 1].add(1e-6)}
    others = [changed, {**tree, "w": tree["w"].T}, {"v": tree["w"], "n": tree["n"]}]
    assert fingerprint(tree) == fingerprint(jax.tree.map(jnp.copy, tree))
    assert len({fingerprint(tree), *map(fingerprint, others)}) == 4
