"""The model card of an adapter: what it is, how to load it, what it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.data import Dataset
from jora_tasks.trainer.targets import in_words, lora_targets

SKIPPED = "skipped.jsonl"
LAST_SHARE = 10  # the final loss is over the last tenth of the updates: one alone is noise


def summarise(
    metrics: Sequence[Mapping[str, Any]], dataset: Dataset, training: TrainConfig
) -> dict[str, Any]:
    """A run in figures, from its ``metrics.jsonl``.

    Returns:
      steps, epochs, examples, skipped (examples left out for their length), tokens (seen, padding not
      counted), scored_tokens, padding (its share of the tokens computed), final_loss (mean over the scored
      tokens of the last tenth of the updates), seconds and tokens_per_second; where there were
      evaluations, kept_step and eval_loss: the update whose adapter is published, and its evaluation loss.
    """
    last = metrics[-max(1, len(metrics) // LAST_SHARE) :]
    scored = sum(line["scored_tokens"] for line in last)
    tokens = sum(line["tokens"] for line in metrics)
    seconds = sum(line["seconds"] for line in metrics)
    return {
        "steps": len(metrics),
        "epochs": metrics[-1]["epoch"] + 1,
        "examples": len(dataset.examples),
        "skipped": len(dataset.skipped),
        "tokens": tokens,
        "scored_tokens": sum(line["scored_tokens"] for line in metrics),
        "padding": round(1 - tokens / sum(line["computed_tokens"] for line in metrics), 4),
        "final_loss": sum(line["loss"] * line["scored_tokens"] for line in last) / scored,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        **_kept([line for line in metrics if "eval_loss" in line], training),
    }


def _kept(evaluations: Sequence[Mapping[str, Any]], training: TrainConfig) -> dict[str, Any]:
    if not evaluations:
        return {}
    best = min(evaluations, key=lambda line: line["eval_loss"])  # the first of equals
    kept = best if training.keep == "best" else evaluations[-1]
    return {"kept_step": kept["step"], "eval_loss": kept["eval_loss"]}


def model_card(
    base_name: str,
    base_weights: str,
    config: DecoderConfig,
    lora: LoraConfig,
    training: TrainConfig,
    summary: Mapping[str, Any],
) -> str:
    """The card as Markdown with the Hub's front matter. It holds no local path and no date.

    ``base_weights`` says how the frozen base was kept in training: see `quantize.base_in_words`.
    """
    method = "DoRA" if lora.use_dora else "LoRA"
    faster = f", of B {training.loraplus_lr_ratio:g} times that" if training.loraplus_lr_ratio != 1 else ""
    counted = ", ".join(f"{summary[name]:,}" for name in ("examples", "epochs", "steps"))
    rate = f"{training.learning_rate:g}{faster}"
    whole = f"| Trained whole | {', '.join(lora.modules_to_save)} |\n" if lora.modules_to_save else ""
    scale = "lora_alpha / sqrt(r)" if lora.use_rslora else "lora_alpha / r"
    batch = training.batch_size * training.gradient_accumulation
    evaluation = (
        f"\n| Evaluation loss, after update | {summary['eval_loss']:.4f}, {summary['kept_step']:,} |"
        if "eval_loss" in summary
        else ""
    )
    skipped = (
        f"\n| Examples left out for their length | {summary['skipped']:,}, listed in `{SKIPPED}` |"
        if summary["skipped"]
        else ""
    )
    packing = ", several examples a row" if training.packing else ""
    clipping = f"{training.max_grad_norm:g}" if training.max_grad_norm else "none"
    return f"""---
base_model: {base_name}
library_name: peft
pipeline_tag: text-generation
tags:
- {method.lower()}
---

# {method} adapter for {base_name}

| | |
|---|---|
| Base in training | {base_weights} |
| Rank, alpha, scale | {lora.r}, {lora.lora_alpha:g}, {scale} = {lora.scale:g} |
| Dropout | {lora.lora_dropout:g} |
| Adapted projections | {in_words(config, lora_targets(config, lora))} |
{whole}| Examples, epochs, updates | {counted} |{skipped}
| Tokens seen, of them scored | {summary["tokens"]:,}, {summary["scored_tokens"]:,} |
| Rows in an update | {batch:,}{packing} |
| Optimizer | AdamW |
| Learning rate | {rate}, warm-up {training.warmup_ratio:.0%}, then {training.schedule} |
| Weight decay, gradient norm limit | {training.weight_decay:g}, {clipping} |
| Seed | {training.seed} |
| Final training loss | {summary["final_loss"]:.4f} |{evaluation}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("<folder or hub id of {base_name}>")
model = PeftModel.from_pretrained(base, "<this folder>")
```

`metrics.jsonl` has one line for each update.
"""
