"""The plan of a large build against real builds of small ones, and its sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from typer.testing import CliRunner

from jora_tasks.cli import app
from jora_tasks.errors import InputError
from retrieval.build_plan import Rates, index_bytes, plan_build, planned_type
from retrieval.tuning import K
from retrieval.vectors import InMemory, build

RATES = Rates(
    cut=100,
    embedded=10,
    listed=500,
    words=200,
    read=1000,
    multiplied=1e6,
    compared=1e6,
    scanned=1e5,
    written=1e6,
    cached_bytes=1600,
    words_bytes=90,
)


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_sq8"])
def test_an_index_takes_the_bytes_that_were_planned(kind: str, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((20_000, 32), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    built = build(InMemory(vectors), 32, kind, 0.5, name="drawn")
    faiss.write_index(built.index, str(tmp_path / "index.faiss"))
    planned = index_bytes(len(vectors), 32, built.factory)
    assert built.factory == planned_type(kind, len(vectors))
    assert planned == pytest.approx((tmp_path / "index.faiss").stat().st_size, rel=0.01)


def test_the_steps_of_an_exact_index_by_hand() -> None:
    steps = {step.name: step for step in plan_build(10_000, 8, "flat", 4, RATES)}
    assert list(steps) == ["cut", "embed", "list", "add", "write", "words"]
    assert (steps["cut"].seconds, steps["embed"].tasks, steps["embed"].seconds) == (25, 4, 250)
    assert (steps["list"].seconds, steps["words"].seconds, steps["words"].disk) == (20, 50, 900_000)
    assert steps["embed"].disk == 16e6
    assert steps["add"].seconds == 10
    assert steps["write"].disk == 10_000 * 32 and steps["write"].seconds == 0.32


def test_an_approximate_index_is_trained_and_tuned_on_what_build_takes() -> None:
    steps = {step.name: step for step in plan_build(100_000_000, 384, "auto", 64, RATES)}
    lists = 16_384  # two roots of the count, as a power of two
    assert planned_type("auto", 100_000_000) == f"IVF{lists},Flat"
    assert steps["train"].seconds == pytest.approx(64 * lists / 1000 + 10 * 64 * lists * lists / 1e6)
    each = 1 / 1000 + lists / 1e6 + 512 / 1e6
    assert steps["add"].seconds == pytest.approx(1e8 * each)
    assert steps["add"].memory > steps["write"].disk == 1e8 * (4 * 384 + 8) + lists * 4 * 384
    faster = plan_build(100_000_000, 384, "auto", 64, replace(RATES, scanned=2e5))
    assert {step.name: step for step in faster}["tune"].seconds == steps["tune"].seconds / 2
    assert K == 10


@pytest.mark.slow
def test_the_plan_as_a_command(tiny_project: Path, home: Path) -> None:
    def printed(*more: str) -> str:
        arguments = ["index", "--spec", str(tiny_project), "--plan", "1000000", "--set", "index.shards=4"]
        result = CliRunner().invoke(app, [*arguments, "--price-per-hour", "2", *more], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    told = json.loads(printed("--json"))
    assert all(rate > 0 for rate in told["rates"].values())
    hours = {step["name"]: step["tasks"] * step["seconds"] / 3600 for step in told["steps"]}
    assert told["cost"] == pytest.approx(2 * sum(hours.values()))
    assert told["type"] == "IVF2048,Flat" and told["steps"][1]["tasks"] == 4
    assert "predicted" in printed()
    assert not (home / "artifacts").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plan", "0"), "--plan 0: plan for 1 to"),
        (("--plan", "9", "--price-per-hour", "nan"), "--price-per-hour nan: give a price from 0 up"),
        (("--plan", "9", "--set", "index.type=HNSW32"), "index.type HNSW32 cannot be planned for"),
    ],
)
def test_what_cannot_be_planned_is_said(options: tuple[str, ...], words: str, home: Path) -> None:
    with pytest.raises(InputError, match=words):
        CliRunner().invoke(app, ["index", *options], catch_exceptions=False)


def test_what_is_not_known_is_not_planned_for() -> None:
    with pytest.raises(InputError, match=r"index.type HNSW32 cannot be planned for; set flat"):
        plan_build(1000, 8, "HNSW32", 1, RATES)
