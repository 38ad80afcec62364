"""Settings of the base model, the adapter and its training."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jora_tasks.spec.section import LARGEST_SEED, Section, as_tuple

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_PROJECTIONS = ("qkv_proj", "gate_up_proj")  # of models that keep several of them as one: Phi-3
ALL_LINEAR = "all-linear"
PATTERN_SIGN = r"[.*+?|()\[\]\\^$]"  # what tells a regular expression from a name

DEFAULT_BASE_MODEL = "smollm2-135m-instruct"


class ModelConfig(Section):
    base: Annotated[
        str,
        Field(min_length=1, description="Name of a fetched base model, a Hugging Face folder or a hub id."),
    ] = DEFAULT_BASE_MODEL
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Field(description="Type of the frozen base weights, and of the computation."),
    ] = "float32"
    quantization: Annotated[
        Literal["none", "int8", "nf4"],
        Field(
            description="Keep the layers' frozen projections in 8 bits (int8) or in 4 (nf4, as QLoRA does); "
            "the adapter stays in float32."
        ),
    ] = "none"

    def weights(self) -> dict[str, str]:
        """How the frozen weights are kept, which decides what is learnt and answered over them."""
        return {"dtype": self.dtype, "quantization": self.quantization}


class LoraConfig(Section):
    """Low-rank adaptation (arXiv 2106.09685): W x + scale * B A x, with A [r, in] and B [out, r].

    Names and meanings are PEFT's. Which modules of a model ``target_modules`` means, only the model can
    say: see `jora_tasks.trainer.targets`.
    """

    r: Annotated[int, Field(ge=1, le=1024, description="Rank of the adapter.")] = 16
    lora_alpha: Annotated[
        float, Field(gt=0, le=4096, description="Scale is lora_alpha / r, or / sqrt(r) with use_rslora.")
    ] = 32
    lora_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of the adapter's inputs dropped in training.")
    ] = 0.0
    use_rslora: Annotated[
        bool, Field(description="Rank-stabilised scale, lora_alpha / sqrt(r) (arXiv 2312.03732).")
    ] = False
    use_dora: Annotated[
        bool,
        Field(description="Train the length of each adapted weight's rows apart (DoRA, arXiv 2402.09353)."),
    ] = False
    target_modules: Annotated[
        str | tuple[str, ...],
        Field(
            description=f"Projections to adapt: {ALL_LINEAR}, names out of {', '.join(PROJECTIONS)}, or a "
            r"regular expression of whole module names, as in model\.layers\.[0-3]\.self_attn\..*_proj."
        ),
    ] = ALL_LINEAR
    layers_to_transform: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="Layers to adapt, counted from 0; all if none is named."),
    ] = ()
    modules_to_save: Annotated[
        tuple[Literal["embed_tokens", "lm_head"], ...],
        Field(description="Embedding and head, if they are to be trained whole, beside the adapter."),
    ] = ()
    init_from: Annotated[
        str,
        Field(
            max_length=4000,
            pattern=r"^[^\x00]*$",
            description="Folder of a PEFT adapter of the same settings to train further; "
            "if empty, training starts from a fresh one.",
        ),
    ] = ""

    _listed = field_validator("target_modules", "layers_to_transform", "modules_to_save", mode="before")(
        as_tuple
    )

    @field_validator("layers_to_transform", "modules_to_save")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(sorted(set(value)))

    @field_validator("target_modules")
    @classmethod
    def _known_targets(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = ", ".join(PROJECTIONS)
        if isinstance(value, tuple):
            unknown = [name for name in value if name not in PROJECTIONS + FUSED_PROJECTIONS]
            if unknown or not value:
                raise ValueError(
                    f"target_modules has {unknown or 'no module'}; use {ALL_LINEAR} or names out of {names}"
                )
        elif value != ALL_LINEAR and not re.search(PATTERN_SIGN, value):
            raise ValueError(
                f"use {ALL_LINEAR}, a list of names out of {names}, or a regular expression of whole names "
                r"such as model\.layers\.[0-3]\.self_attn\..*_proj"
            )
        elif value != ALL_LINEAR:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is not a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _layers_once(self) -> LoraConfig:
        if self.layers_to_transform and self.is_pattern:
            raise ValueError(
                "layers_to_transform does not go with a regular expression in target_modules; "
                "name the layers in the expression"
            )
        return self

    @property
    def is_pattern(self) -> bool:
        """Whether ``target_modules`` is a regular expression."""
        return isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR

    def making(self) -> dict[str, Any]:
        """The settings that decide what is made, as JSON: the start counts by its content, not its place."""
        return self.model_dump(mode="json", exclude={"init_from"})

    @property
    def scale(self) -> float:
        """The factor on B A x."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


class MeshConfig(Section):
    """How many devices each mesh axis has; their product is the number of devices used."""

    data: Annotated[int, Field(ge=1, description="Copies that each take a part of the batch.")] = 1
    fsdp: Annotated[int, Field(ge=1, description="Like data, with the base weights split as well.")] = 1
    tensor: Annotated[int, Field(ge=1, description="Parts that each projection is split into.")] = 1
    sequence: Annotated[int, Field(ge=1, description="Parts that each row of tokens is split into.")] = 1


class TrainConfig(Section):
    epochs: Annotated[int, Field(ge=1, le=1000, description="Passes over the training prompts.")] = 1
    batch_size: Annotated[
        int,
        Field(ge=1, le=4096, description="Rows in one forward pass; a row is an example, or several packed."),
    ] = 4
    packing: Annotated[
        bool, Field(description="Fill rows with several whole examples; none sees another.")
    ] = False
    row_length: Annotated[
        int, Field(ge=0, le=2**21, description="Tokens in a packed row; 0 for those of the longest example.")
    ] = 0
    max_length: Annotated[
        int, Field(ge=0, le=2**21, description="Longest example, in tokens; 0 for the most the model reads.")
    ] = 0
    long_examples: Annotated[
        Literal["error", "skip"],
        Field(description="An example that is longer: stop before training, or leave it out and list it."),
    ] = "error"
    gradient_accumulation: Annotated[
        int, Field(ge=1, le=4096, description="Forward passes summed into one update.")
    ] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak of the schedule.")] = 1e-3
    schedule: Annotated[
        Literal["cosine", "linear", "constant"],
        Field(description="How the learning rate goes on from its peak after the warm-up."),
    ] = "cosine"
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="Share of the updates with rising learning rate.")
    ] = 0.05
    min_learning_rate_ratio: Annotated[
        float, Field(ge=0, le=1, description="Share of the peak that cosine and linear schedules end at.")
    ] = 0.0
    loraplus_lr_ratio: Annotated[
        float,
        Field(ge=1, le=1000, description="Learning rate of B over that of A (LoRA+, arXiv 2402.12354)."),
    ] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW's decay.")] = 0.0
    max_grad_norm: Annotated[
        float, Field(ge=0, description="Gradients are clipped to this global norm; 0 clips none.")
    ] = 1.0
    remat: Annotated[
        Literal["auto", "full", "attention", "none", "offload"],
        Field(
            description="What the backward pass finds of a layer besides its input: nothing (full), "
            "attention's output, or every product (none: fastest, most memory); offload keeps the input in "
            "the host's memory; auto is on GPUs the first of none, attention, full, offload that fits, else "
            "full for rows over 8,192 tokens, none on CPUs and attention on TPUs."
        ),
    ] = "auto"
    checkpoint_every: Annotated[
        int, Field(ge=1, description="Updates between checkpoints; a killed run goes on from the last.")
    ] = 10
    eval_every: Annotated[
        int, Field(ge=0, description="Updates between evaluations on the dev questions; 0 makes none.")
    ] = 0
    keep: Annotated[
        Literal["last", "best"],
        Field(description="Which adapter is published: the last, or the one with the best evaluation."),
    ] = "last"
    early_stopping_patience: Annotated[
        int,
        Field(
            ge=0, description="Evaluations without a better one after which training stops; 0 never stops."
        ),
    ] = 0
    tracker: Annotated[
        Literal["none", "tensorboard", "mlflow"],
        Field(description="Where the curves are shown while training; metrics.jsonl is always written."),
    ] = "none"
    profile_updates: Annotated[
        int, Field(ge=0, le=100, description="Updates traced with JAX's profiler after the first two.")
    ] = 0
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="Seed of initialisation, order and dropout.")
    ] = 0
    mesh: MeshConfig = MeshConfig()

    @model_validator(mode="after")
    def _rows_only_where_packed(self) -> TrainConfig:
        if self.row_length and not self.packing:
            raise ValueError("row_length is the length of packed rows; set packing to true as well")
        return self

    @model_validator(mode="after")
    def _evaluated_where_asked(self) -> TrainConfig:
        if not self.eval_every and (self.keep == "best" or self.early_stopping_patience):
            raise ValueError(
                "keep: best and early_stopping_patience need evaluations; set eval_every above 0"
            )
        return self

    def making(self) -> dict[str, Any]:
        """The settings that decide what is made, as JSON: without those of how it is carried out."""
        return self.model_dump(
            mode="json", exclude={"checkpoint_every", "mesh", "tracker", "profile_updates"}
        )
