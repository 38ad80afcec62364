"""Commands of `jora_tasks.cli` that print more than a line or two, a module each."""
