"""Questions and what was retrieved for them → prompts: RAFT's assembly (arXiv 2403.10131)."""
