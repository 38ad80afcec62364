"""The devices that a program is compiled for, whether they are here or not.

TPUs by their compiler (the ``libtpu`` package), NVIDIA GPUs by JAX's packages for them and cuDNN, CPUs as
virtual devices; only ``local`` needs the devices themselves.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.trainer.chips import GPUS, TPUS, Chip

TARGET = re.compile(
    r"local|cpu:[1-9]\d{0,3}|gpu:(" + "|".join(GPUS) + r")(:[1-9]\d?)?"
    r"|tpu:(" + "|".join(TPUS) + r"):\d+x\d+(x\d+)?"
)
TPU_COMPILER = "pip install -c constraints.txt -e '.[tpu]'"
# Apart from the other packages: among them, JAX would look for a GPU at every start.
GPU_COMPILER = Path(sys.prefix) / "gpu-compiler"


def check_target(target: str) -> None:
    """Refuse what is no target.

    Args:
      target: ``tpu:<version>:<topology>`` as tpu:v5e:2x2, ``gpu:<kind>`` with as many as a host has, as in
        gpu:h100 and gpu:h100:8, ``cpu:<devices>`` or ``local``.
    """
    if not TARGET.fullmatch(target):
        raise InputError(
            f"--target {target!r} is not known; use local, cpu:<devices> as in cpu:4, gpu:<kind>:<devices> "
            f"as in gpu:h100:8, kind one of {', '.join(GPUS)}, or tpu:<version>:<topology> as in "
            f"tpu:v5e:2x2, version one of {', '.join(TPUS)}."
        )


def environment_for(target: str) -> dict[str, str]:
    """The environment of a process whose JAX compiles for a target."""
    environment = dict(os.environ)
    if target == "local":
        return environment
    environment["JAX_PLATFORMS"] = "cpu"
    if target.startswith("cpu:"):
        flags = environment.get("XLA_FLAGS", "")
        count = target.removeprefix("cpu:")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    elif target.startswith("tpu:"):  # no chip is looked for, and several may compile at once
        environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        environment.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    else:
        path = (str(GPU_COMPILER), environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return environment


def devices_for(target: str) -> tuple[list[Any], int | None]:
    """The devices, and the bytes that a program may take of each; None where that is not known.

    Raises:
      InputError: if the compiler is not installed, or the topology is none of the version's.
    """
    import jax

    from jora_tasks.trainer.memory import GPU_SHARE, memory_of

    kind, *details = target.split(":")
    if kind == "gpu":
        name, count = (*details, "1")[:2]
        return _gpus(target, GPUS[name], int(count)), int(GPUS[name].memory * GPU_SHARE)
    if kind == "tpu":
        version, topology = details
        return _tpus(target, version, topology), TPUS[version].memory
    devices = jax.devices()
    return devices, memory_of(devices[0]) if kind == "local" else None


def _tpus(target: str, version: str, topology: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=f"{version}:{topology}")
    except Exception as error:  # the compiler's own kinds differ between its releases
        if "libtpu" in str(error) and "install" in str(error):
            raise InputError(
                f"--target {target} needs the TPU compiler; run `{TPU_COMPILER}` in the project's folder."
            ) from None
        first = str(error).splitlines()[0]
        raise InputError(f"--target {target} is not a topology of {version}: {first[:200]}") from None
    return list(described.devices)


def _gpus(target: str, chip: Chip, count: int) -> list[Any]:
    """GPUs of one host."""
    from jax.experimental import topologies

    try:
        if importlib.util.find_spec("nvidia.cudnn") is None:
            raise ModuleNotFoundError("nvidia.cudnn")
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=target, target_config=_described(chip), topology=f"1x1x{count}"
        )
    except (ModuleNotFoundError, NotImplementedError):
        raise InputError(
            f"--target {target} needs the GPU compiler (no GPU); run `make gpu-compiler` in the project's "
            "folder, which takes 1.3 GB."
        ) from None
    return list(described.devices)


def _described(chip: Chip) -> str:
    """The GPU as XLA's ``GpuTargetConfigProto``, in text."""
    cuda = chip.cuda
    assert cuda is not None  # noqa: S101 every one of `GPUS` has it
    major, minor = cuda.compute_capability
    return f"""
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {cuda.multiprocessors} fpus_per_core: {cuda.lanes} clock_rate_ghz: {cuda.clock_ghz}
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {cuda.threads}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      shared_memory_per_core: {cuda.shared_memory} shared_memory_per_block: 49152
      shared_memory_per_block_optin: {cuda.shared_memory - 1024}
      l2_cache_size: {cuda.cache} device_memory_size: {chip.memory}
      memory_bandwidth: {chip.memory_bandwidth:.0f}
    }}
    platform_name: "CUDA" device_description_str: "{chip.kind}"
    runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}
    """
