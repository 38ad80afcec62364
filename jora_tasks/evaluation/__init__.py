"""Is the adapter better: generation, answer measures, intervals, the promotion gate, the report."""
