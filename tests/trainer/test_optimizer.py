"""Learning rates to transformers' schedules; clipping that can be off."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jora_tasks.spec import TrainConfig
from jora_tasks.trainer.optimizer import make_optimizer, make_schedule


def _rates(training, total):
    schedule = make_schedule(training, total)
    return np.asarray([schedule(step) for step in range(total)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")],
)
def test_schedules_are_those_of_transformers(ours, theirs):
    import torch
    from transformers import get_scheduler

    total, warmup = 40, 8
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    # Theirs begin at rate zero, an update that moves nothing; ours begin one update later on their ramp.
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup + 1, num_training_steps=total + 1)
    expected = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    found = _rates(TrainConfig(schedule=ours, learning_rate=0.5, warmup_ratio=warmup / total), total)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_falls_to_the_share_asked_for(schedule):
    training = TrainConfig(
        schedule=schedule, learning_rate=0.5, warmup_ratio=0.0, min_learning_rate_ratio=0.2
    )
    rates = make_schedule(training, 10)
    assert float(rates(0)) == pytest.approx(0.5)
    assert float(rates(10)) == pytest.approx(0.1)
    assert all(np.diff(_rates(training, 10)) < 0)


def test_a_limit_of_zero_clips_nothing():
    lora, gradient = {"w": jnp.zeros(4)}, {"w": jnp.full(4, 100.0)}

    def moment(limit):
        optimizer = make_optimizer(TrainConfig(max_grad_norm=limit), 10)
        _, state = optimizer.update(gradient, optimizer.init(lora), lora)
        return float(optax.tree.norm(optax.tree.get(state, "mu")))

    assert moment(0.0) == pytest.approx(0.1 * 200)  # Adam's first moment is a tenth of the gradient
    assert moment(1.0) == pytest.approx(0.1)
