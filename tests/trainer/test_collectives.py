"""What devices tell each other, read from programs whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jora_tasks.spec import MeshConfig
from jora_tasks.trainer.collectives import collectives
from jora_tasks.trainer.mesh import make_mesh

BYTES = 16 * 4  # of a device's quarter of a row


def hlo(function: Callable[[Any], Any], rows: int, mesh: MeshConfig, out: PartitionSpec) -> str:
    """The program of a function of each device's part, whose rows are split over four devices."""
    made = make_mesh(mesh)
    split = PartitionSpec(None, ("fsdp", "tensor"))
    mapped = jax.shard_map(function, mesh=made, in_specs=split, out_specs=out, check_vma=False)
    x = jax.ShapeDtypeStruct((rows, 64), jnp.float32, sharding=NamedSharding(made, split))
    return jax.jit(mapped).lower(x).compile().as_text() or ""


def summed(x: Any) -> Any:
    def body(total: Any, row: Any) -> tuple[Any, None]:
        return total + jax.lax.psum(row, "tensor"), None

    return jax.lax.scan(body, jnp.zeros(x.shape[1], jnp.float32), x)[0]


def test_collectives_in_a_loop_count_every_round():
    program = hlo(summed, 7, MeshConfig(tensor=4), PartitionSpec())
    assert collectives(program) == {
        "all-reduce": {"count": 7, "bytes": 7 * BYTES, "sent": 7 * BYTES * 2 * 3 // 4}
    }


@pytest.mark.parametrize(
    ("function", "kind", "size", "sent"),
    [
        (lambda x: jax.lax.psum(x, "tensor"), "all-reduce", BYTES, BYTES),  # 2 (n - 1) / n of it
        (lambda x: jax.lax.all_gather(x, "tensor"), "all-gather", 2 * BYTES, BYTES),
        (
            lambda x: jax.lax.psum_scatter(x, "tensor", scatter_dimension=1, tiled=True),
            "reduce-scatter",
            BYTES // 2,
            BYTES // 2,
        ),
        (lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]), "collective-permute", BYTES, BYTES),
    ],
)
def test_what_a_device_of_a_pair_sends(function, kind, size, sent):
    program = hlo(function, 1, MeshConfig(fsdp=2, tensor=2), PartitionSpec())
    assert collectives(program) == {kind: {"count": 1, "bytes": size, "sent": sent}}


# As the TPU compiler writes them: rounds in the condition alone, groups as axes of a mesh, an asynchronous
# one again in what it goes on beside, a reduce-scatter as a computation of that name.
OF_A_TPU = """HloModule jit_step, num_partitions=8

%below (p: (s32[], bf16[4,8])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(80)
  %p = (s32[], bf16[4,8]) parameter(0)
  %round = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%round, %limit.1), direction=LT
}

%all-reduce-scatter.8.clone (input: bf16[4,8]) -> bf16[1,8] {
  %all-reduce.1 = bf16[4,8]{1,0} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}
}

%started (a: bf16[1,8]) -> bf16[4,8] {
  %all-gather.1 = bf16[4,8]{1,0} all-gather(%a), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'}
}

%going_on (a: bf16[1,8]) -> bf16[4,8] {
  %all-gather.2 = bf16[4,8]{1,0} all-gather(%a), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'}
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s = bf16[4,8] fusion(%a), kind=kCustom, calls=%started
  %g = bf16[4,8] fusion(%a), kind=kCustom, calls=%going_on
  %r = bf16[1,8] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.8.clone
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %all-reduce.2 = bf16[4,8]{1,0} all-reduce(%x), channel_id=7, replica_groups=[4,2]<=[8], to_apply=%add
  %all-reduce.3 = bf16[4,8]{1,0} all-reduce(%x), channel_id=8, replica_groups={}, to_apply=%add
  %w = (s32[], bf16[4,8]) while(%t), condition=%below, body=%body
}
"""


def test_a_tpu_s_program_is_read_as_its_compiler_writes_it():
    whole = 4 * 8 * 2
    assert collectives(OF_A_TPU) == {
        "all-gather": {"count": 80, "bytes": 80 * whole, "sent": 80 * whole * 3 // 4},
        "all-reduce": {"count": 2, "bytes": 2 * whole, "sent": whole + 2 * whole * 7 // 8},
        "reduce-scatter": {"count": 80, "bytes": 80 * whole // 4, "sent": 80 * whole * 3 // 4},
    }
