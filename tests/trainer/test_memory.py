"""The memory that a compiled program takes, by its compiler's report."""

from __future__ import annotations

from jora_tasks.trainer.memory import main_memory_bytes

REPORT = """Memory Space: default (color=0)
Total bytes: 4945330688 (4.61GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
  688.00MiB(100%);  688.00MiB;            0;                1; u8[32,5504,4096]

Memory Space: (color=1)
Total bytes: 117440512 (112.00MiB)
"""


def test_main_memory_is_read_from_the_report(tmp_path):
    (tmp_path / "module_0000.jit_step.memory-usage-report.txt").write_text(REPORT)
    assert main_memory_bytes(tmp_path) == 4945330688


def test_without_a_report_nothing_is_said(tmp_path):
    (tmp_path / "module_0000.jit_step.txt").write_text("HloModule jit_step")
    assert main_memory_bytes(tmp_path) is None
