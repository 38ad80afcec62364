"""Training steps compiled for NVIDIA GPUs, none of which is here: what they call and what they take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig, ModelConfig, TrainConfig
from jora_tasks.trainer import compilers
from jora_tasks.trainer.compilers import environment_for
from jora_tasks.trainer.plan import Request, plan

needs_compiler = pytest.mark.skipif(
    not compilers.GPU_COMPILER.is_dir(), reason="needs the compiler for GPUs (make gpu-compiler)"
)


def request(target, length, model="llama-3.1-8b", rows=1, mesh=MeshConfig(), **changes):  # noqa: B008
    return Request(
        model=str(model),
        target=target,
        sequence_length=length,
        lora=LoraConfig(r=16),
        training=TrainConfig(batch_size=rows, mesh=mesh, remat=changes.pop("remat", "auto")),
        weights=ModelConfig(dtype="bfloat16", **changes),
    )


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("length", "rows", "changes", "remat"),
    [
        (4096, 2, {}, "none"),
        (116_736, 1, {"remat": "full"}, "full"),
        (344_064, 1, {"remat": "offload", "quantization": "nf4"}, "offload"),
    ],
)
def test_an_h100_holds_llama_8b_at(length, rows, changes, remat):
    found = plan(request("gpu:h100", length, rows=rows, **changes))
    assert found["fits"] is True and found["remat"] == remat
    assert found["bytes_per_device"]["total"] <= 0.92 * 80e9
    assert found["device_kind"] == "NVIDIA H100"
    assert (found["host_bytes_per_device"] > 0) == (remat == "offload")


@pytest.mark.slow
@needs_compiler
def test_a_smaller_gpu_keeps_less():
    found = plan(request("gpu:l4", 4096))
    assert found["fits"] is True and found["remat"] == "attention"


@pytest.mark.slow
@needs_compiler
def test_gpus_of_a_host_share_a_step():
    found = plan(request("gpu:h100:4", 1024, "smollm2-135m", rows=4, mesh=MeshConfig(data=2, fsdp=2)))
    assert found["devices"] == 4 and found["collectives"]["all-gather"]["count"] > 0
    alone = plan(request("gpu:h100", 1024, "smollm2-135m", rows=4))
    assert found["arguments_per_device"]["base"] < 0.6 * alone["arguments_per_device"]["base"]


@pytest.mark.slow
@needs_compiler
def test_no_stream_of_all_tokens_is_summed_on_every_device_that_shares_their_heads():
    """Between tensor-parallel devices tokens are gathered and their sums scattered, forward and backward."""
    found = plan(request("gpu:h100:4", 2048, "llama-2-7b", mesh=MeshConfig(tensor=4)))
    collectives, layers, stream = found["collectives"], 32, 2048 * 4096 * 2
    assert collectives["all-reduce"]["bytes"] < layers * stream
    assert collectives["reduce-scatter"]["bytes"] * 4 >= 6 * layers * stream  # bytes of the parts


COUNT = """
import json, sys
from jora_tasks.trainer import plan, step
from jora_tasks.trainer.compilers import devices_for
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.shapes import shape_of

request = plan._from_json(sys.stdin.read())
config, mesh = shape_of(request.model), make_mesh(request.training.mesh, devices_for(request.target)[0])
update = step.make_step(config, request.lora, request.training, 10, mesh)
text = step.lower_step(update, *plan.abstract_arguments(request, config, mesh)).compile().as_text()
calls = ('"__cudnn$fmhaSoftmax"', '"__cudnn$fmhaSoftmaxBackward"')
print(json.dumps([text.count(f"custom_call_target={call}") for call in calls]))
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("remat", "forward"), [("none", 1), ("attention", 1), ("full", 2)])
def test_attention_is_cudnns_and_made_again_only_where_it_is_not_kept(remat, forward):
    """One call in the loop over layers of each pass."""
    from jora_tasks.trainer.plan import _to_json

    asked = request("gpu:h100", 512, "smollm2-135m", remat=remat)
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        input=_to_json(asked),
        env=environment_for(asked.target),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [forward, 1]


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "GPU_COMPILER", tmp_path)
    with pytest.raises(
        InputError, match=r"gpu:h100 needs the GPU compiler .no GPU.; run `make gpu-compiler`"
    ):
        plan(request("gpu:h100", 512, "smollm2-135m"))
