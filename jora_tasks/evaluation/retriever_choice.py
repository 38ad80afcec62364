"""Which retriever a run searches with: dense, unless the dev questions say that another is surely better.

Fusion by equal weights often hurts, so nothing else is taken on faith. Retrievers are told apart by the
weight that dense search has in them: 1 is dense alone, 0 lexical alone, anything between both, fused.

They are compared by nDCG at the number of chunks that go on to the prompt (or to the reranker). A chunk
further down is not read at all and counts nothing, as with recall; but where the evidence is among those
read, its rank counts too, so that few questions tell more, and those where recall is full tell anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jora_tasks.evaluation.gate import fewest_clusters
from jora_tasks.evaluation.intervals import paired_difference
from jora_tasks.evaluation.summary import Resampling

DENSE = 1.0
RIVALS = (0.75, 0.5, 0.25, 0.0)


def choose_weight(
    ndcg: Mapping[float, Sequence[float]],
    recall: Mapping[float, Sequence[float]],
    groups: Sequence[str],
    resampling: Resampling,
) -> tuple[float, dict[str, Any]]:
    """The weight of dense search to use, and why.

    A rival is taken if the paired interval of its nDCG minus that of dense search lies above 0 and its mean
    recall is no lower; of several, the one with the highest nDCG. Since each of the rivals gets a chance to
    win by luck, each interval has its share of the error allowed (Bonferroni): four at 0.95 are of 0.9875.

    Args:
      ndcg: weight of dense search, 1 among them → nDCG@k of each dev question with evidence.
      recall: the same of recall@k.
      groups: of each of these questions; a group is drawn as one.
      resampling: of the intervals.

    Returns:
      The weight, and a JSON object: ``reason``, ``dev_questions``, ``groups`` and, where there were
      enough to compare, ``confidence`` of the intervals, mean ``ndcg`` and ``recall`` by weight and
      ``minus_dense``, the difference of nDCG and its interval by weight.
    """
    rivals = [weight for weight in ndcg if weight != DENSE]
    confidence = 1 - (1 - resampling.confidence) / max(1, len(rivals))
    counted: dict[str, Any] = {"dev_questions": len(groups), "groups": len(set(groups))}
    if not groups:
        return DENSE, {"reason": "dense, since no dev question has evidence to compare by", **counted}
    fewest = fewest_clusters(confidence)
    if counted["groups"] < fewest:
        reason = f"dense, since comparing takes at least {fewest} groups of dev questions with evidence"
        return DENSE, {"reason": reason, **counted}
    differences = {
        weight: paired_difference(
            ndcg[weight],
            ndcg[DENSE],
            clusters=groups,
            samples=resampling.samples,
            confidence=confidence,
            seed=resampling.seed,
        )
        for weight in rivals
    }
    means = {weight: sum(each) / len(each) for weight, each in recall.items()}
    better = [
        weight for weight in rivals if differences[weight].low > 0 and means[weight] >= means[DENSE] - 1e-9
    ]
    best = max(better, key=lambda weight: (differences[weight].mean, weight), default=DENSE)
    return best, {
        "reason": "its nDCG is surely higher than that of dense search on the dev questions"
        if better
        else "dense, since no other has surely higher nDCG on the dev questions",
        **counted,
        "confidence": round(confidence, 6),
        "ndcg": {str(weight): sum(each) / len(each) for weight, each in ndcg.items()},
        "recall": {str(weight): mean for weight, mean in means.items()},
        "minus_dense": {
            str(weight): {"difference": each.mean, "interval": each.interval}
            for weight, each in differences.items()
        },
    }
