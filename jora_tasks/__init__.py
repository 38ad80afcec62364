"""Keep a LoRA adapter tuned to answer from documents that change."""

__version__ = "0.1.0"
