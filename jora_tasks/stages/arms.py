"""The arms of an evaluation: who answers which held-out questions, settled before the first is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.evaluation.generation import check_lengths
from jora_tasks.evaluation.summary import ADAPTER, BASE, CHAMPION, CLOSED_BOOK, GOLD
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.registry import BASE_MODEL, RegisteredAdapter, Registry
from jora_tasks.spec import PromptsConfig, RunSpec
from jora_tasks.stages import held_out
from jora_tasks.stages.answering import Arm
from jora_tasks.stages.canary import CANARY, Canaries, ask_canaries, read_canaries
from jora_tasks.stages.held_out import Asked, HeldOut, contexts_of, prompts_config, read_held_out
from jora_tasks.stages.judging import NliJudge, find_judge
from jora_tasks.trainer.config import read_config


@dataclass(frozen=True)
class Plan:
    """An evaluation before its answers.

    Attributes:
      config: the settings that the prompts were made with.
      rival: the champion of the line; for an adapter that is itself the champion, the one that it was
        registered against.
      obstacle: why the rival cannot answer the same prompts, or None.
      arms: of the held-out questions.
      canary_arms: of the canary questions: the adapter, and whom it may not fall behind.
      judge: of citations; None where these are judged by a proxy, or are not asked for.
    """

    base: Source
    base_folder: Path
    contexts: Artifact | None
    config: PromptsConfig
    questions: HeldOut
    rival: RegisteredAdapter | None
    obstacle: str | None
    arms: Sequence[Arm]
    canaries: Canaries | None
    canary_arms: Sequence[Arm]
    judge: NliJudge | None

    @property
    def every_arm(self) -> list[Arm]:
        return [*self.arms, *self.canary_arms]

    def before_the_first(self) -> None:
        """Refuse what would be found out only after the answers."""
        if self.judge:
            self.judge.model.open()


@contextlib.contextmanager
def planned(spec: RunSpec, adapter: Artifact, prompts: Artifact, store: ArtifactStore) -> Iterator[Plan]:
    """Settle who answers what. What a rival's files are fetched to ends with the block.

    The base answers with and without contexts; the adapter with contexts, and with nothing but the chunks
    that hold the evidence, which shows what retrieval costs; the rival with contexts.

    Raises:
      InputError: without a test question, for slices, canary questions or an NLI model that cannot be used,
        if no registry answers, if the adapter was made for another base model, or if that has too few
        positions for the prompts and answers.
    """
    registry = Registry(store.home)
    rival = registry.rival(spec.name, adapter.digest)
    contexts = contexts_of(prompts, store)
    base_folder = base_model_folder(spec.model.base, store.home)
    questions = read_held_out(prompts, contexts, spec, base_folder, store)
    canaries = read_canaries(spec)
    if canaries and contexts is None:
        raise InputError("gate.canary_path needs the contexts of the prompts; run `jora contexts` again.")
    base = model_source(base_folder, spec.model.base)
    _check_base(adapter, base)
    every = [each for asked in questions.asked.values() for each in asked]
    check_lengths(
        [each.prompt for each in every],
        spec.evaluation.max_new_tokens,
        read_config(base_folder),
        [each.known for each in every],
    )
    config, obstacle = prompts_config(prompts), _obstacle(rival, base)
    judge = find_judge(spec, config.cite, store)

    def arm(name: str, prompt: str, **adapters: Any) -> Arm:
        asked = questions.asked[prompt]
        put = [each.question for each in asked]
        return Arm(name, prompt, put, {"prompts": prompts}, lambda: asked, **adapters)

    trained = {"adapter": adapter, "folder": lambda: adapter.path}
    with tempfile.TemporaryDirectory() as scratch:
        arms = [
            arm(CLOSED_BOOK, held_out.CLOSED),
            arm(BASE, held_out.OPEN),
            arm(ADAPTER, held_out.OPEN, **trained),
        ]
        if questions.asked[held_out.GOLD]:
            arms.append(arm(GOLD, held_out.GOLD, **trained))
        if rival is not None and obstacle is None:
            source = Source("adapter", f"{rival.name} version {rival.version}", rival.digest)
            fetch = functools.partial(_fetch_adapter, rival, store, registry, Path(scratch))
            arms.append(arm(CHAMPION, held_out.OPEN, adapter=source, folder=functools.cache(fetch)))
        canary_arms: list[Arm] = []
        if canaries and contexts:
            ask = functools.partial(ask_canaries, canaries, spec, contexts, config, base_folder, store)
            canary_arms = _canary_arms(arms, canaries, contexts, functools.cache(ask))
        yield Plan(
            base,
            base_folder,
            contexts,
            config,
            questions,
            rival,
            obstacle,
            arms,
            canaries,
            canary_arms,
            judge,
        )


def _canary_arms(
    arms: Sequence[Arm], canaries: Canaries, contexts: Artifact, asked: Callable[[], Sequence[Asked]]
) -> list[Arm]:
    """The adapter, and whom it may not fall behind: the champion, or the base where there is none."""
    by_name = {arm.name: arm for arm in arms}
    searched = contexts.manifest["inputs"]["index"]
    index = Source("index", searched["key"], searched["digest"])
    return [
        dataclasses.replace(
            arm,
            prompt=CANARY,
            questions=canaries.questions,
            inputs={"canary": canaries.source, **arm.inputs, "index": index},
            asked=asked,
        )
        for arm in (by_name[ADAPTER], by_name.get(CHAMPION, by_name[BASE]))
    ]


def _check_base(adapter: Artifact, base: Source) -> None:
    for reference in adapter.manifest["inputs"].values():
        if reference["kind"] == base.kind and reference["digest"] != base.digest:
            raise InputError(
                f"Adapter {adapter.key} was trained over {reference['name']} ({reference['digest'][:19]}), "
                f"not over {base.name} ({base.digest[:19]}); set model.base to the model it was trained over."
            )


def _obstacle(rival: RegisteredAdapter | None, base: Source) -> str | None:
    if rival is None or rival.tags.get(BASE_MODEL, base.digest) == base.digest:
        return None
    return "it was trained over another base model"


def _fetch_adapter(
    registered: RegisteredAdapter, store: ArtifactStore, registry: Registry, scratch: Path
) -> Path:
    """The registered adapter's files: the home's artifact if it is still there, else the registry's."""
    try:
        artifact = store.get("adapter", registered.key)
        if artifact.digest == registered.digest:
            return artifact.path
    except InputError:
        pass
    return registry.download(registered, scratch)
