"""How long loading takes, and how much host memory beyond the model's own.

``python -m tests.benchmarks.load [--json] [--layers N]``. A random Llama of about 2 GB in bf16, in shards of
about 500 MB, is written to the temporary folder and loaded once for each way of keeping it, each in a child
process of its own. On a CPU the arrays themselves lie in host memory: ``beyond`` is the peak less what the
process held before and less the arrays.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.turns import in_child

CASES = (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "nf4"))
SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
SHARD_BYTES = 500_000_000


def write_model(folder: Path, layers: int) -> int:
    """A random model in shards; returns the bytes of the largest."""
    import jax.numpy as jnp
    import numpy as np
    from safetensors.numpy import save_file

    from jora_tasks.trainer.config import read_config
    from jora_tasks.trainer.parameters import describe

    settings = {"model_type": "llama", "vocab_size": 32000, "num_hidden_layers": layers, **SIZES}
    (folder / "config.json").write_text(json.dumps(settings))
    random, where, shard, sizes = np.random.default_rng(0), {}, {}, []

    def flush() -> None:
        name = f"model-{len(sizes):05}.safetensors"
        save_file(shard, folder / name)
        where.update(dict.fromkeys(shard, name))
        sizes.append((folder / name).stat().st_size)
        shard.clear()

    for parameter in describe(read_config(folder), "bfloat16").values():
        stacked = parameter.axes[0] == "layers"
        shape = parameter.shape[1:] if stacked else parameter.shape
        for layer in range(layers if stacked else 1):
            values = random.standard_normal(shape, np.float32) * np.float32(0.02)
            shard[parameter.checkpoint_name.format(layer)] = values.astype(jnp.bfloat16)
            if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
                flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return max(sizes)


def measure(folder: str, dtype: str, quantization: str) -> dict[str, Any]:
    """Load once in this process."""
    import jax

    from jora_tasks.trainer.load import load_model

    jax.block_until_ready(jax.numpy.zeros(()))
    before, started = _memory("VmRSS"), time.perf_counter()
    base = jax.block_until_ready(load_model(folder, dtype, quantization=quantization).base)
    seconds = time.perf_counter() - started
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    return {"seconds": seconds, "own": own, "beyond": _memory("VmHWM") - before - own}


def _memory(line: str) -> int:
    """Bytes of a line of the process's status: VmRSS is resident now, VmHWM was at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(each.split()[1]) * 1024 for each in status if each.startswith(f"{line}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--layers", type=int, default=22, help="of the model (default 22, about 2 GB)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        shard = write_model(Path(folder), arguments.layers)
        files = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        for dtype, quantization in CASES:
            figures = in_child("tests.benchmarks.load", [folder, dtype, quantization])
            results.append({"dtype": dtype, "quantization": quantization, **figures})
            if not arguments.json:
                print(_line(results[-1]), flush=True)
    about = {"files": files, "largest_shard": shard, "largest_shard_and_a_gib": shard + 2**30}
    print(json.dumps({"results": results, **about}) if arguments.json else _about(about))


def _line(result: dict[str, Any]) -> str:
    return (
        f"{result['dtype']}, {result['quantization']}: {result['seconds']:.1f} s, arrays of "
        f"{result['own'] / 1e6:,.0f} MB, peak {result['beyond'] / 1e6:,.0f} MB beyond them"
    )


def _about(about: dict[str, int]) -> str:
    return f"files of {about['files'] / 1e6:,.0f} MB, the largest of {about['largest_shard'] / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
