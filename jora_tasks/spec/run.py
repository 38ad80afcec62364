"""Every setting of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jora_tasks.spec.documents import DocumentsConfig, IndexConfig
from jora_tasks.spec.evaluation import EvaluationConfig, RegistryConfig
from jora_tasks.spec.gate import GateConfig
from jora_tasks.spec.prompts import PromptsConfig, QuestionsConfig
from jora_tasks.spec.retrieval import RetrievalConfig
from jora_tasks.spec.section import Section
from jora_tasks.spec.training import LoraConfig, ModelConfig, TrainConfig


class RunSpec(Section):
    """Every setting of a run. ``RunSpec()`` is the embedded default."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
            description="Name of this line of adapters, which the registered model has too: at most 63 small "
            "letters, digits, - and _, the first a letter or a digit.",
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
    gate: GateConfig = GateConfig()
    registry: RegistryConfig = RegistryConfig()
