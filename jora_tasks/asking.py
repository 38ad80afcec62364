"""A question answered from the documents as they are now: searched and put to the model as in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jora_tasks.adapters import Adapter, found
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.evaluation.answerer import Answerer
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.prompting.conversation import served_instruction
from jora_tasks.prompting.packing import Packer
from jora_tasks.prompting.passages import Passage, found_passage
from jora_tasks.spec import ModelConfig, PromptsConfig, RunSpec
from jora_tasks.stages.searching import check_question, latest_contexts, open_again

# Takes the answer's place while a prompt is packed; the prompt ends where it begins.
_STAND_IN = "0"


@dataclass(frozen=True)
class Served:
    """What answers, and the settings that it was trained with.

    Attributes:
      adapter: None is the base alone.
      model: how the base's weights are kept.
      contexts: that the prompts were made of; None if they are gone, or nothing was trained.
    """

    adapter: Adapter | None
    prompts: PromptsConfig
    model: ModelConfig
    contexts: Artifact | None


def ask(question: str, spec: RunSpec, store: ArtifactStore, adapter: str | None) -> dict[str, Any]:
    """Answer a question from the latest index of the spec's name.

    The search, the instruction and the budget are those of the prompts that the adapter was trained on; of
    the spec where it says nothing of them, or the base is asked.

    Args:
      question: one, in words.
      spec: names the line of adapters, the embedder, the base model and the reranker.
      adapter: ``champion``, ``candidate``, the start of a key or a PEFT folder; None asks the base.

    Returns:
      A JSON object: question, answer, ``cut`` (``evaluation.max_new_tokens`` allowed no more), ``sources``
      (number, document_id, start, end, heading, text and
      score, as they stood in the prompt), ``left_out`` for lack of room, adapter, base_model, index,
      ``retriever`` and ``contexts``, the key of those whose settings were taken.

    Raises:
      InputError: without an index or such an adapter, or with other models than those of training.
    """
    check_question(question)
    index = store.latest(spec.name, "index")
    with _served(adapter, spec, store) as served:
        base_folder = base_model_folder(spec.model.base, store.home)
        base = model_source(base_folder, spec.model.base)
        _check_base(served.adapter, base.name, base.digest)
        searcher, weight, why = open_again(spec, index, served.contexts, store)
        (pool,) = searcher.pools([question], [weight])
        ranking = searcher.rank(pool, weight)
        passages = [found_passage(each) for each in ranking.found[: searcher.config.top_k]]
        from jora_tasks.trainer.tokenizer import load_tokenizer
        from retrieval.search import mode_of

        packer = Packer(load_tokenizer(base_folder), served.prompts.token_budget)
        prompt = packer.pack(question, served_instruction(served.prompts), passages, lambda placed: _STAND_IN)
        answerer = Answerer(base_folder, served.model, spec.training.mesh, spec.evaluation, store.home)
        (answer,) = answerer.answer(
            [prompt.input_ids[: prompt.prompt_length]], served.adapter.folder if served.adapter else None
        )
        return {
            "question": question,
            "answer": answer.text,
            "cut": answer.tokens >= spec.evaluation.max_new_tokens,
            "sources": [_source(number, each) for number, each in enumerate(prompt.passages, start=1)],
            "left_out": len(prompt.dropped),
            "adapter": {"name": served.adapter.name, "digest": served.adapter.digest}
            if served.adapter
            else None,
            "base_model": base.reference(),
            "index": index.key,
            "retriever": {"mode": mode_of(weight), "dense_weight": weight, "reason": why},
            "contexts": served.contexts.key if served.contexts else None,
        }


@contextlib.contextmanager
def _served(given: str | None, spec: RunSpec, store: ArtifactStore) -> Iterator[Served]:
    """Who answers; an adapter from a registry may be gone when the block ends."""
    if given is None:
        yield Served(None, spec.prompts, spec.model, latest_contexts(spec, store))
        return
    with found(given, store, spec.name, ", or ask the base model with --base") as adapter:
        manifest = adapter.manifest or {}
        prompts = _input("prompts", manifest, store)
        contexts = _input("contexts", prompts.manifest, store) if prompts else None
        weights = {
            name: value
            for name, value in manifest.get("settings", {}).items()
            if name in spec.model.weights()
        }
        yield Served(
            adapter,
            spec.prompts.model_copy(update=dict(prompts.manifest["settings"])) if prompts else spec.prompts,
            spec.model.model_copy(update=weights),
            contexts or latest_contexts(spec, store),
        )


def _input(kind: str, manifest: Mapping[str, Any], store: ArtifactStore) -> Artifact | None:
    """The artifact of this kind that another was made from, if this home still has it."""
    for reference in manifest.get("inputs", {}).values():
        if reference["kind"] == kind:
            with contextlib.suppress(InputError):
                return store.get(kind, reference["key"])
    return None


def _check_base(adapter: Adapter | None, name: str, digest: str) -> None:
    inputs = adapter.manifest["inputs"].values() if adapter and adapter.manifest else ()
    for reference in inputs:
        if reference["kind"] == "model" and reference["digest"] != digest:
            raise InputError(
                f"The adapter was trained over {reference['name']} ({reference['digest'][:19]}), not over "
                f"{name} ({digest[:19]}); set model.base to the model it was trained over."
            )


def _source(number: int, passage: Passage) -> dict[str, Any]:
    return {
        "number": number,
        "document_id": passage.document_id,
        "start": passage.start,
        "end": passage.end,
        "heading": passage.heading,
        "text": passage.text,
        "score": passage.score,
    }
