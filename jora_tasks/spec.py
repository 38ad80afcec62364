"""Every setting of a run, once.

YAML files, ``--set key=value``, the Airflow trigger form and the artifacts' keys all derive from
`RunSpec`. The models are frozen and refuse unknown fields; each field has a description and
bounds, since people meet them in a form.
"""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jora_tasks.errors import InputError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_PROJECTIONS = ("qkv_proj", "gate_up_proj")  # of models that keep several of them as one: Phi-3
ALL_LINEAR = "all-linear"
PATTERN_SIGN = r"[.*+?|()\[\]\\^$]"  # what tells a regular expression from a name

DEFAULT_EMBEDDER = "all-minilm-l6-v2"
DEFAULT_BASE_MODEL = "smollm2-135m-instruct"

LOCAL_PATH: dict[str, Any] = {"min_length": 1, "max_length": 4000, "pattern": r"^[^\x00]+$"}
LARGEST_SEED = 2**32 - 1

DEFAULT_INSTRUCTION = (
    "Answer the question from the numbered sources. Reply with the answer alone, as short as possible."
)
DEFAULT_CLOSED_BOOK_INSTRUCTION = "Answer the question. Reply with the answer alone, as short as possible."


class Section(BaseModel):
    """A frozen group of settings that refuses fields it does not know."""

    # Defaults are validated too: 32 and 32.0 would otherwise be two settings to an artifact's key.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


class DocumentsConfig(Section):
    path: Annotated[
        str, Field(description="Folder of .txt, .md, .rst, .html and .jsonl files.", **LOCAL_PATH)
    ] = "documents"


class QuestionsConfig(Section):
    path: Annotated[
        str,
        Field(
            description="JSONL with question, answers and, if known, id, evidence and split; "
            "or Alpaca JSON with instruction, input and output.",
            **LOCAL_PATH,
        ),
    ] = "questions.jsonl"
    dev_fraction: Annotated[
        float, Field(ge=0, le=0.5, description="Share held out for choices; used where no split is given.")
    ] = 0.1
    test_fraction: Annotated[
        float, Field(ge=0, le=0.5, description="Share held out for evaluation; used where no split is given.")
    ] = 0.2


class IndexConfig(Section):
    embedder: Annotated[
        str,
        Field(
            min_length=1,
            description="Name of a fetched embedder, a sentence-transformers folder or a hub id.",
        ),
    ] = DEFAULT_EMBEDDER
    chunk_tokens: Annotated[
        int, Field(ge=16, le=8192, description="Longest chunk, in tokens of the embedder.")
    ] = 200
    chunk_overlap: Annotated[
        int, Field(ge=0, le=4096, description="Tokens that a chunk repeats from the one before.")
    ] = 0
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Chunks embedded at once.")] = 32

    @model_validator(mode="after")
    def _overlap_below_length(self) -> IndexConfig:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) must be smaller "
                f"than chunk_tokens ({self.chunk_tokens})"
            )
        return self


class RetrievalConfig(Section):
    top_k: Annotated[int, Field(ge=1, le=100, description="Chunks retrieved for each question.")] = 4


class PromptsConfig(Section):
    token_budget: Annotated[
        int,
        Field(ge=64, le=131072, description="Longest prompt with its answer, in tokens of the base model."),
    ] = 640
    instruction: Annotated[
        str, Field(min_length=1, description="What the model is told before the sources.")
    ] = DEFAULT_INSTRUCTION
    closed_book_instruction: Annotated[
        str, Field(min_length=1, description="What the model is told where it gets no sources.")
    ] = DEFAULT_CLOSED_BOOK_INSTRUCTION
    add_missing_oracle: Annotated[
        bool,
        Field(
            description="Put the chunk that holds the evidence into a training prompt "
            "whose retrieval missed it."
        ),
    ] = True
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="Seed of the order of sources in training prompts.")
    ] = 0


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

    @field_validator("target_modules", "layers_to_transform", "modules_to_save", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

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
            "the host's memory; auto is attention, or full for rows over 8,192 tokens."
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


class EvaluationConfig(Section):
    max_questions: Annotated[
        int, Field(ge=1, description="Most test questions asked; the first ones by id digest.")
    ] = 1000
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Longest generated answer.")] = 32
    batch_size: Annotated[int, Field(ge=1, le=1024, description="Questions answered at once.")] = 8
    bootstrap_samples: Annotated[
        int, Field(ge=100, le=100000, description="Resamples behind each interval.")
    ] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="Coverage of the intervals.")] = 0.95
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Seed of the resampling.")] = 0


class RegistryConfig(Section):
    promote: Annotated[
        bool,
        Field(description="Make the adapter champion if it beats the base and the current champion."),
    ] = True


class RunSpec(Section):
    """Every setting of a run. ``RunSpec()`` is the embedded default."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
            description="Name of this line of adapters; the registered model has it too.",
        ),
    ] = "documents"
    documents: DocumentsConfig = DocumentsConfig()
    questions: QuestionsConfig = QuestionsConfig()
    index: IndexConfig = IndexConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    prompts: PromptsConfig = PromptsConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig = RegistryConfig()


def parse_spec(data: dict[str, Any], source: str = "spec") -> RunSpec:
    """Validate nested settings.

    Args:
      data: nested mapping, as read from YAML.
      source: what to call the data in an error, usually its file.

    Raises:
      InputError: naming the first bad field, what is wrong and what it must be.
    """
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, source)) from None


def load_spec(path: str | Path | None, overrides: tuple[str, ...] = ()) -> RunSpec:
    """Read a YAML spec and apply ``key.subkey=value`` overrides, values parsed as YAML.

    Relative ``documents.path``, ``questions.path`` and ``lora.init_from`` are taken from the spec file's
    folder, and become absolute.

    Raises:
      InputError: for a missing or malformed file, an unknown field or a value out of bounds.
    """
    data: dict[str, Any] = {}
    folder = Path.cwd()
    if path is not None:
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "not UTF-8 text").lower()
            raise InputError(f"--spec {file}: {reason}; give the path of a YAML spec.") from None
        loaded = _yaml(text, f"--spec {file}")
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError(f"--spec {file} must be a mapping of settings, not a {type(loaded).__name__}.")
        data = loaded or {}
        folder = file.resolve().parent
    for override in overrides:
        _set(data, override)
    spec = parse_spec(data, source=str(path or "spec"))
    return spec.model_copy(
        update={
            "documents": spec.documents.model_copy(update={"path": _absolute(folder, spec.documents.path)}),
            "questions": spec.questions.model_copy(update={"path": _absolute(folder, spec.questions.path)}),
            "lora": spec.lora.model_copy(update={"init_from": _absolute(folder, spec.lora.init_from)}),
        }
    )


def dump_spec(spec: RunSpec) -> str:
    """The spec as YAML that `load_spec` reads back to an equal spec."""
    return yaml.safe_dump(json.loads(spec.model_dump_json()), sort_keys=False)


def _absolute(folder: Path, path: str) -> str:
    return str((folder / path).resolve()) if path else ""


def _set(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r} must look like section.field=value, as in training.epochs=2.")
    *sections, field = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {override!r}: {section} is a value, not a section of settings.")
    data[field] = _yaml(value, f"--set {override!r}")


class _Loader(yaml.SafeLoader):
    """YAML without two surprises: a key given twice, and 1e-4 read as text (YAML 1.1 wants 1.0e-4)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise InputError(f"{source} is nested too deeply to be settings.") from None
    # PyYAML lets Python's own errors through for tagged and odd values, such as the date 2020-13-45.
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}.") from None


def _explain(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the spec"
    if first["type"] == "extra_forbidden":
        return f"{source}: {field} is not a setting; {_siblings(first['loc'])}."
    if first["type"] == "model_type":
        return f"{source}: {field} must be a mapping of settings, as in {field}: {{name: value}}."
    value = first["input"]
    shown = "" if isinstance(value, dict | BaseModel) else f" (got {reprlib.repr(value)})"
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}: {field}{shown}: {message[0].lower()}{message[1:]}."


def _siblings(location: tuple[int | str, ...]) -> str:
    section: Any = RunSpec
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return f"the settings there are {', '.join(section.model_fields)}"
