"""Every setting of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _gate_can_open(self) -> RunSpec:
        if self.gate.min_questions > self.evaluation.max_questions:
            raise ValueError(
                f"gate.min_questions {self.gate.min_questions} is more than evaluation.max_questions "
                f"{self.evaluation.max_questions}, so that no adapter could pass; lower it or ask more"
            )
        for measure in (*self.gate.must_rise, *self.gate.must_not_fall):
            if measure.startswith("citation") and not self.prompts.cite:
                raise ValueError(
                    f"gate asks for {measure}, but answers do not cite; set prompts.cite or drop it"
                )
        return self
