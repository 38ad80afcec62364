"""What each stage of each run took: one record an execution, in the home that it ran in.

costs/<year>-<month>.jsonl    records, appended as stages end; months in UTC
costs/running/<id>.json       what a running stage has taken so far
costs/shared-<store>/         how much of them a store has that machines share; see `sharing`
"""

from jora_tasks.costs.recorder import Recorder, recording, settle
from jora_tasks.costs.records import FIGURES, KILLED, Cost, month_file, months, of_run, parse
from jora_tasks.costs.sharing import copied_months, copies, fetch, share, shared_months

__all__ = [
    "FIGURES",
    "KILLED",
    "Cost",
    "Recorder",
    "copied_months",
    "copies",
    "fetch",
    "month_file",
    "months",
    "of_run",
    "parse",
    "recording",
    "settle",
    "share",
    "shared_months",
]
