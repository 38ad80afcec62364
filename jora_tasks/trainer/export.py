"""Adapters as PEFT folders: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jora_tasks.errors import InputError
from jora_tasks.spec import FUSED_PROJECTIONS, PROJECTIONS, LoraConfig
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.lora import LoraTree, lora_axes, lora_shapes
from jora_tasks.trainer.mesh import sharding
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.targets import as_settings, lora_targets, module_name, saved_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SUFFIXES = {"a": ".lora_A.weight", "b": ".lora_B.weight", "m": ".lora_magnitude_vector"}

# Settings of other methods: whatever their value in an adapter, it must be this or absent.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    **dict.fromkeys(
        ("lora_bias", "use_qalora", "use_bdlora", "exclude_modules", "ensure_weight_tying"), (False, None, [])
    ),
    "layers_pattern": (None, [], "layers", ["layers"]),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (None, {})),
    **dict.fromkeys(
        ("trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens"),
        (None, [], {}),
    ),
    **dict.fromkeys(
        ("megatron_config", "kasa_config", "arrow_config", "velora_config", "monteclora_config"), (None, {})
    ),
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
    tree = jax.device_get(model.lora)
    tensors = {
        key: np.ascontiguousarray(_turned(place.of(tree), place.part), np.float32)
        for key, place in _places(model.config, model.lora_config).items()
    }
    settings = json.dumps(_settings(model.config, model.lora_config, base_name), indent=2, sort_keys=True)
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


def _settings(config: DecoderConfig, lora: LoraConfig, base_name: str) -> dict[str, Any]:
    alpha = float(lora.lora_alpha)
    targets, layers = _targets(config, lora)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": layers or None,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.lora_dropout,
        "modules_to_save": list(lora.modules_to_save) or None,
        "peft_type": "LORA",
        "r": lora.r,
        "target_modules": targets,  # explicit: PEFT guesses q and v only where it is null
        "task_type": "CAUSAL_LM",
        "use_dora": lora.use_dora,
        "use_rslora": lora.use_rslora,
    }


def _targets(config: DecoderConfig, lora: LoraConfig) -> tuple[str | list[str], list[int]]:
    """``target_modules`` and ``layers_to_transform`` as PEFT shall read them."""
    if isinstance(lora.target_modules, str) and lora.is_pattern:
        return lora.target_modules, []
    names, layers = list(lora_targets(config, lora)), list(lora.layers_to_transform)
    if not config.nested:
        return names, layers
    # Names alone would adapt the projections of the part that reads images too.
    which = "|".join(map(str, layers)) or r"\d+"
    return rf"{re.escape(config.layers_name)}\.({which})\.\w+\.({'|'.join(names)})", []


@dataclass(frozen=True)
class _Place:
    """Where a tensor of a PEFT file is in the adapter's tree, and its shape in the file."""

    name: str
    part: str
    layer: int | None
    shape: tuple[int, ...]

    def of(self, tree: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
        array = tree[self.name][self.part]
        return array if self.layer is None else array[self.layer]


def _places(config: DecoderConfig, lora: LoraConfig) -> dict[str, _Place]:
    """Every tensor of the adapter's file by its name."""
    shapes, places = lora_shapes(config, lora), {}
    for name, layers in lora_targets(config, lora).items():
        for part, shape in shapes[name].items():
            turned = shape[:0:-1] if part == "b" else shape[1:]
            for layer in layers:
                key = f"{PREFIX}{module_name(config, layer, name)}{SUFFIXES[part]}"
                places[key] = _Place(name, part, layer, turned)
    for name in lora.modules_to_save:
        places[f"{PREFIX}{saved_name(config, name)}.weight"] = _Place(
            name, "weight", None, shapes[name]["weight"]
        )
    return places


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
    """Read a PEFT LoRA adapter for this decoder onto its devices; as `read_adapter`."""
    lora, tree = read_adapter(folder, config)
    axes = lora_axes(config, lora)
    return lora, {
        name: {
            part: jax.device_put(array, sharding(mesh, axes[name][part], array.shape))
            for part, array in parts.items()
        }
        for name, parts in tree.items()
    }


def read_adapter(
    folder: str | Path, config: DecoderConfig
) -> tuple[LoraConfig, dict[str, dict[str, np.ndarray]]]:
    """Read a PEFT LoRA adapter for this decoder.

    Returns:
      Its settings, and the f32 tree of `lora_shapes`; layers that it does not adapt are zero in it.

    Raises:
      InputError: if a file is missing or damaged, if the adapter uses what cannot be applied here
        (biases, unequal ranks, …), or if it does not fit the decoder.
    """
    folder = Path(folder)
    lora = _lora_config(_read_settings(folder / CONFIG), config, folder / CONFIG)
    file = folder / WEIGHTS
    tensors = _read_tensors(file)
    places = _places(config, lora)
    if strange := [key for key in tensors if key not in places]:
        raise InputError(
            f"{file}: tensor {strange[0]} has no place in the base model adapted as {CONFIG} says; use the "
            f"base that the adapter was made for, and LoRA on no more than {', '.join(config.projections)}."
        )
    tree = {
        name: {part: np.zeros(shape, np.float32) for part, shape in parts.items()}
        for name, parts in lora_shapes(config, lora).items()
    }
    for key, place in places.items():
        place.of(tree)[...] = _turned(_checked(tensors, key, place.shape, file), place.part)
    return lora, tree


def _turned(value: np.ndarray, part: str) -> np.ndarray:
    """B between PEFT's [out, r] and [r, out]; A as it is."""
    return value.T if part == "b" else value


def _checked(tensors: dict[str, np.ndarray], key: str, shape: tuple[int, ...], file: Path) -> np.ndarray:
    if key not in tensors:
        raise InputError(f"{file} has no tensor {key}, which {CONFIG} asks for; export the adapter again.")
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


def _lora_config(settings: dict[str, Any], config: DecoderConfig, file: Path) -> LoraConfig:
    layers = settings.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    targets = settings.get("target_modules")
    try:
        if isinstance(targets, list) and not set(map(str, targets)) <= set(PROJECTIONS + FUSED_PROJECTIONS):
            targets, layers = _of_longer_names(config, [str(name) for name in targets], layers)
        lora = LoraConfig(
            r=settings.get("r", 8),
            lora_alpha=settings.get("lora_alpha", 8),
            lora_dropout=settings.get("lora_dropout", 0.0),
            use_rslora=settings.get("use_rslora", False),
            use_dora=settings.get("use_dora", False),
            target_modules=targets,  # type: ignore[arg-type]
            layers_to_transform=layers,  # type: ignore[arg-type]
            modules_to_save=settings.get("modules_to_save") or [],  # type: ignore[arg-type]
        )
        lora_targets(config, lora)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "target_modules"
        raise InputError(f"{file}: {field}: {first['msg']} (got {first['input']!r}).") from None
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix('lora.')}") from None
    return lora


def _of_longer_names(config: DecoderConfig, names: list[str], layers: list[int]) -> tuple[Any, Any]:
    """PEFT matches the ends of modules' names: ``self_attn.q_proj`` and whole names are targets too."""
    everywhere = range(config.num_hidden_layers)
    found: dict[str, set[tuple[str, int]]] = {
        wanted: {
            (name, layer)
            for name in config.projections
            for layer in everywhere
            if f".{module_name(config, layer, name)}".endswith(f".{wanted}")
        }
        for wanted in names
    }
    if unknown := [wanted for wanted, matches in found.items() if not matches]:
        raise InputError(
            f"target_modules has {unknown[0]}, but only projections of layers can be adapted here: "
            f"{', '.join(config.projections)}."
        )
    every = set.union(*found.values())
    targets = {
        name: tuple(layer for layer in layers or everywhere if (name, layer) in every)
        for name in config.projections
    }
    return as_settings(config, {name: chosen for name, chosen in targets.items() if chosen})
