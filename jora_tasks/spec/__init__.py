"""Every setting of a run, once.

YAML files, ``--set key=value``, the Airflow trigger form and the artifacts' keys all derive from
`RunSpec`. The models are frozen and refuse unknown fields; each field has a description and
bounds, since people meet them in a form.
"""

from jora_tasks.spec.documents import DEFAULT_EMBEDDER, DocumentsConfig, Encoding, IndexConfig
from jora_tasks.spec.evaluation import EvaluationConfig, RegistryConfig
from jora_tasks.spec.files import dump_spec, load_spec, parse_spec
from jora_tasks.spec.gate import LOWER_IS_BETTER, GateConfig
from jora_tasks.spec.prompts import PromptsConfig, QuestionsConfig
from jora_tasks.spec.retrieval import AUTO_MODE, RetrievalConfig
from jora_tasks.spec.run import RunSpec
from jora_tasks.spec.section import absolute, is_url
from jora_tasks.spec.training import (
    ALL_LINEAR,
    DEFAULT_BASE_MODEL,
    FUSED_PROJECTIONS,
    PATTERN_SIGN,
    PROJECTIONS,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
)

__all__ = [
    "ALL_LINEAR",
    "AUTO_MODE",
    "DEFAULT_BASE_MODEL",
    "DEFAULT_EMBEDDER",
    "FUSED_PROJECTIONS",
    "LOWER_IS_BETTER",
    "PATTERN_SIGN",
    "PROJECTIONS",
    "DocumentsConfig",
    "Encoding",
    "EvaluationConfig",
    "GateConfig",
    "IndexConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "PromptsConfig",
    "QuestionsConfig",
    "RegistryConfig",
    "RetrievalConfig",
    "RunSpec",
    "TrainConfig",
    "absolute",
    "dump_spec",
    "is_url",
    "load_spec",
    "parse_spec",
]
