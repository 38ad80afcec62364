import numpy as np
import pytest

from jora_tasks.evaluation.intervals import paired_difference
from jora_tasks.evaluation.retriever_choice import DENSE, RIVALS, choose_weight
from jora_tasks.evaluation.summary import Resampling

RESAMPLING = Resampling(500, 0.95, 0)


def drawn(rate, count=60, seed=0):
    return (np.random.default_rng(seed).random(count) < rate).astype(float).tolist()


def groups(count=60):
    return [f"g{i}" for i in range(count)]


def test_a_rival_is_taken_if_its_interval_lies_above_0_and_its_recall_is_highest():
    ndcg = {DENSE: drawn(0.4), 0.75: drawn(0.7), 0.5: drawn(0.9), 0.25: drawn(0.42), 0.0: drawn(0.1)}
    weight, why = choose_weight(ndcg, ndcg, groups(), RESAMPLING)
    assert weight == 0.5
    assert "surely higher" in why["reason"]
    assert why["ndcg"] == {str(each): pytest.approx(np.mean(values)) for each, values in ndcg.items()}
    assert why["confidence"] == 0.9875
    expected = paired_difference(
        ndcg[0.5], ndcg[DENSE], clusters=groups(), samples=500, confidence=0.9875, seed=0
    )
    assert why["minus_dense"]["0.5"] == {"difference": expected.mean, "interval": expected.interval}
    assert why["minus_dense"]["0.5"]["interval"][0] > 0 > why["minus_dense"]["0.0"]["interval"][1]


def test_dense_stays_where_another_is_better_by_what_may_be_luck():
    dense = drawn(0.7)
    better = dense.copy()
    better[dense.index(0.0)] = 1.0
    ndcg = {DENSE: dense, **dict.fromkeys(RIVALS, better)}
    weight, why = choose_weight(ndcg, ndcg, groups(), RESAMPLING)
    assert weight == DENSE
    assert why["minus_dense"]["0.5"]["difference"] > 0
    assert why["minus_dense"]["0.5"]["interval"][0] <= 0


def test_a_better_order_of_less_evidence_is_not_taken():
    ndcg = {DENSE: drawn(0.4), 0.5: drawn(0.9), 0.0: drawn(0.8)}
    recall = {DENSE: drawn(0.95), 0.5: drawn(0.93), 0.0: drawn(0.95)}
    weight, why = choose_weight(ndcg, recall, groups(), RESAMPLING)
    assert why["minus_dense"]["0.5"]["interval"][0] > 0
    assert why["recall"]["0.5"] < why["recall"]["1.0"]
    assert weight == 0.0


def test_questions_of_one_group_count_as_one():
    ndcg = {DENSE: [0.0] * 60, **dict.fromkeys(RIVALS, [1.0] * 60)}
    assert choose_weight(ndcg, ndcg, groups(), RESAMPLING)[0] == 0.75
    weight, why = choose_weight(ndcg, ndcg, [f"g{i % 5}" for i in range(60)], RESAMPLING)
    assert weight == DENSE
    assert "at least 8 groups" in why["reason"]
    assert (why["dev_questions"], why["groups"]) == (60, 5)


def test_dense_without_dev_evidence_and_said_so():
    none: dict[float, list[float]] = {weight: [] for weight in (DENSE, *RIVALS)}
    weight, why = choose_weight(none, none, [], RESAMPLING)
    assert weight == DENSE
    assert "no dev question has evidence" in why["reason"]
