"""Which linear maps of which layers an adapter adapts, read as PEFT reads the same settings."""

from __future__ import annotations

import re

from jora_tasks.errors import InputError
from jora_tasks.spec import ALL_LINEAR, LoraConfig
from jora_tasks.trainer.config import DecoderConfig

EMBEDDING, HEAD = "embed_tokens", "lm_head"
SAVED = (EMBEDDING, HEAD)  # modules that may be trained whole

Targets = dict[str, tuple[int, ...]]


def lora_targets(config: DecoderConfig, lora: LoraConfig) -> Targets:
    """The layers in which each projection is adapted: {projection: layers}, in the model's order.

    A list of names means these projections of every layer, or of ``layers_to_transform``; ``all-linear``
    is every projection, without the head; an expression must match a module's whole name.

    Raises:
      InputError: for a layer or a name that the model does not have, an expression that matches no
        projection, or one that matches a module that is none.
    """
    everywhere = tuple(range(config.num_hidden_layers))
    if isinstance(lora.target_modules, str) and lora.is_pattern:
        return _matched(config, lora.target_modules, lora.modules_to_save)
    if lora.layers_to_transform and lora.layers_to_transform[-1] not in everywhere:
        raise InputError(
            f"lora.layers_to_transform has {lora.layers_to_transform[-1]}, but the model has layers "
            f"0 to {everywhere[-1]}."
        )
    names = tuple(config.projections) if lora.target_modules == ALL_LINEAR else lora.target_modules
    if unknown := [name for name in names if name not in config.projections]:
        raise InputError(
            f"lora.target_modules has {', '.join(unknown)}, but the layers of this model have "
            f"{', '.join(config.projections)}."
        )
    return {name: lora.layers_to_transform or everywhere for name in config.projections if name in names}


def module_name(config: DecoderConfig, layer: int, name: str) -> str:
    """``model.layers.3.self_attn.q_proj``: what transformers calls a projection of a layer."""
    return f"{config.layers_name}.{layer}.{config.projections[name].parent}.{name}"


def saved_name(config: DecoderConfig, name: str) -> str:
    """``model.embed_tokens``: what transformers calls the embedding or the head."""
    return name if name == HEAD else f"{config.layers_name.removesuffix('layers')}{name}"


def as_settings(config: DecoderConfig, targets: Targets) -> tuple[str | tuple[str, ...], tuple[int, ...]]:
    """The ``target_modules`` and ``layers_to_transform`` that mean these targets."""
    layers = set(targets.values())
    if len(layers) == 1:
        (chosen,) = layers
        return tuple(targets), () if len(chosen) == config.num_hidden_layers else chosen
    names = (module_name(config, layer, name) for name, layers in targets.items() for layer in layers)
    return "|".join(map(re.escape, names)), ()


def disagreement(config: DecoderConfig, one: LoraConfig, other: LoraConfig) -> str | None:
    """The first setting by which two adapters of this model differ, or None: ``r 8, not 16``.

    Dropout is how an adapter is trained rather than what it is.
    """
    for field in ("r", "lora_alpha", "use_rslora", "use_dora", "modules_to_save"):
        first, second = getattr(one, field), getattr(other, field)
        if first != second:
            return f"{field} {first}, not {second}"
    first, second = lora_targets(config, one), lora_targets(config, other)
    return None if first == second else f"targets {in_words(config, first)}, not {in_words(config, second)}"


def in_words(config: DecoderConfig, targets: Targets) -> str:
    """``q_proj, v_proj (layers 0, 1)``; nothing is said of layers where it is all of them."""
    by_layers: dict[tuple[int, ...], list[str]] = {}
    for name, layers in targets.items():
        by_layers.setdefault(layers, []).append(name)
    return "; ".join(
        ", ".join(names)
        + ("" if len(layers) == config.num_hidden_layers else f" (layers {', '.join(map(str, layers))})")
        for layers, names in by_layers.items()
    )


def _matched(config: DecoderConfig, pattern: str, saved: tuple[str, ...]) -> Targets:
    found = {
        name: tuple(
            layer
            for layer in range(config.num_hidden_layers)
            if re.fullmatch(pattern, module_name(config, layer, name))
        )
        for name in config.projections
    }
    targets = {name: layers for name, layers in found.items() if layers}
    if not targets:
        raise InputError(
            f"lora.target_modules {pattern!r} matches no projection of the model; its projections are "
            f"{', '.join(module_name(config, 0, name) for name in config.projections)} and the same in "
            f"{config.num_hidden_layers} layers."
        )
    trained_whole = {saved_name(config, name) for name in saved}  # PEFT never adapts these
    others = [name for name in _other_modules(config) if re.fullmatch(pattern, name)]
    if others := [name for name in others if name not in trained_whole]:
        raise InputError(
            f"lora.target_modules {pattern!r} also matches {others[0]}, which is no projection of a layer; "
            f"narrow it, as in {re.escape(config.layers_name)}\\..*\\.({'|'.join(targets)})."
        )
    return targets


def _other_modules(config: DecoderConfig) -> list[str]:
    parents = dict.fromkeys(projection.parent for projection in config.projections.values())
    return [
        *(saved_name(config, name) for name in SAVED),
        *("model", config.layers_name, f"{config.layers_name.removesuffix('layers')}norm"),
        *(
            f"{config.layers_name}.{layer}{inner}"
            for layer in range(config.num_hidden_layers)
            for inner in ("", ".input_layernorm", *(f".{parent}" for parent in parents))
        ),
    ]
