"""Adapters as PEFT folders: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jora_tasks.errors import InputError
from jora_tasks.spec import PROJECTIONS, LoraConfig
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.lora import LoraTree, lora_axes, lora_shapes
from jora_tasks.trainer.mesh import sharding
from jora_tasks.trainer.model import LanguageModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LETTERS = (("A", "a"), ("B", "b"))
PREFIX = "base_model.model.model.layers."
PARENTS = {
    name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn" for name in PROJECTIONS
}
KEY = re.compile(
    rf"{re.escape(PREFIX)}(\d+)\.(?:self_attn|mlp)\.({'|'.join(PROJECTIONS)})\.lora_([AB])\.weight"
)

# Settings of other methods: whatever their value in an adapter, it must be this or absent.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    **dict.fromkeys(
        ("use_dora", "lora_bias", "use_qalora", "use_bdlora", "modules_to_save", "layers_to_transform"),
        (False, None, []),
    ),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (None, {})),
    **dict.fromkeys(
        ("trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens"),
        (None, [], {}),
    ),
    **dict.fromkeys(("megatron_config", "kasa_config", "arrow_config", "velora_config"), (None, {})),
    # Other initialisations (pissa, olora, loftq, …) also change the base weights.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def save_adapter(model: LanguageModel, folder: str | Path, base_name: str) -> Path:
    """Write the model's adapter so that PEFT loads it. The same arrays and settings give the same bytes.

    Each file appears whole or not at all, ``adapter_config.json`` last.

    Args:
      model: has ``lora`` and ``lora_config``.
      folder: made if absent; files of an adapter in it are replaced.
      base_name: how others know the base model; a name or hub id, never a local path.

    Returns:
      The folder.

    Raises:
      InputError: if the base's name is a path.
    """
    if model.lora is None or model.lora_config is None:
        raise ValueError("the model has no adapter to save; load it with lora= or adapter=")
    check_base_name(base_name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name in model.lora_config.targets:
        for letter, part in LETTERS:
            for layer, value in enumerate(np.asarray(jax.device_get(model.lora[name][part]), np.float32)):
                tensors[_key(layer, name, letter)] = np.ascontiguousarray(_turned(value, part))
    settings = json.dumps(_settings(model.lora_config, base_name), indent=2, sort_keys=True)
    _replace(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    _replace(folder / CONFIG, f"{settings}\n".encode())
    return folder


def check_base_name(base_name: str) -> None:
    """Refuse a path of this machine: an adapter's files name its base for others.

    Raises:
      InputError: if it is a path, or empty.
    """
    if (
        not base_name
        or base_name.startswith((".", "~"))
        or Path(base_name).is_absolute()
        or "\\" in base_name
    ):
        raise InputError(
            f"base_name {base_name!r} must be a name or hub id of the base model, not a path of this machine."
        )


def _settings(lora: LoraConfig, base_name: str) -> dict[str, Any]:
    alpha = float(lora.lora_alpha)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.r,
        "target_modules": list(lora.targets),  # explicit: PEFT guesses q and v only where it is null
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": lora.use_rslora,
    }


def _key(layer: int, name: str, letter: str) -> str:
    return f"{PREFIX}{layer}.{PARENTS[name]}.{name}.lora_{letter}.weight"


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_adapter(
    folder: str | Path, config: DecoderConfig, *, mesh: Mesh | None = None
) -> tuple[LoraConfig, LoraTree]:
    """Read a PEFT LoRA adapter for this decoder.

    Returns:
      Its settings, and {projection: {"a": f32 [L, r, in], "b": f32 [L, r, out]}}.

    Raises:
      InputError: if a file is missing or damaged, if the adapter uses what cannot be applied here (DoRA,
        biases, saved modules, unequal ranks, …), or if it does not fit the decoder.
    """
    folder = Path(folder)
    settings = _read_settings(folder / CONFIG)
    tensors = _read_tensors(folder / WEIGHTS)
    found: set[str] = set()
    for key in tensors:
        match = KEY.fullmatch(key)
        if match is None or int(match[1]) >= config.num_hidden_layers:
            raise InputError(
                f"{folder / WEIGHTS}: tensor {key} has no place in the base model; use the base that the "
                f"adapter was made for, and LoRA on no more than {', '.join(PROJECTIONS)}."
            )
        found.add(match[2])
    lora = _lora_config(settings, tuple(name for name in PROJECTIONS if name in found), folder / CONFIG)

    tree: LoraTree = {}
    for name, shapes in lora_shapes(config, lora).items():
        axes = lora_axes(config.projections[name])
        tree[name] = {}
        for letter, part in LETTERS:
            stack = np.empty(shapes[part], np.float32)
            for layer in range(config.num_hidden_layers):
                expected = shapes[part][1:] if part == "a" else shapes[part][:0:-1]
                value = _checked(tensors, _key(layer, name, letter), expected, folder / WEIGHTS)
                stack[layer] = _turned(value, part)
            tree[name][part] = jax.device_put(stack, sharding(mesh, axes[part]))
    return lora, tree


def _turned(value: np.ndarray, part: str) -> np.ndarray:
    """B between PEFT's [out, r] and [r, out]; A as it is."""
    return value.T if part == "b" else value


def _checked(tensors: dict[str, np.ndarray], key: str, shape: tuple[int, ...], file: Path) -> np.ndarray:
    if key not in tensors:
        raise InputError(f"{file} has no tensor {key}; every layer must have the same adapted projections.")
    value = tensors[key]
    if value.shape != shape:
        raise InputError(
            f"{file}: tensor {key} has shape {list(value.shape)}, r and the base need {list(shape)}; "
            "use the base that the adapter was made for."
        )
    if not np.isfinite(value).all():
        raise InputError(f"{file}: tensor {key} holds NaN or infinity; train the adapter again.")
    return value


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} is missing; give the folder of a PEFT adapter.")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); export the adapter again.") from None
    if not isinstance(settings, dict):
        raise InputError(f"{file} must be a JSON object; export the adapter again.")
    for field, allowed in PLAIN.items():
        if field in settings and settings[field] not in allowed:
            raise InputError(
                f"{file}: {field} {settings[field]!r} is not supported; use a plain LoRA adapter."
            )
    return settings


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError(f"{file} is missing; save the adapter as safetensors.")
    try:
        with safe_open(file, framework="numpy") as handle:
            return {key: np.asarray(handle.get_tensor(key), np.float32) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is truncated or damaged ({error}); export the adapter again.") from None


def _lora_config(settings: dict[str, Any], targets: tuple[str, ...], file: Path) -> LoraConfig:
    try:
        return LoraConfig(
            r=settings.get("r", 8),
            lora_alpha=settings.get("lora_alpha", 8),
            lora_dropout=settings.get("lora_dropout", 0.0),
            use_rslora=settings.get("use_rslora", False),
            target_modules=targets,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "target_modules"
        raise InputError(f"{file}: {field}: {first['msg']} (got {first['input']!r}).") from None
