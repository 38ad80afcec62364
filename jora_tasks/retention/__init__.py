"""What of a home, and of what machines share, nothing needs any more, and its removal."""

from jora_tasks.retention.prune import Pruned, prune

__all__ = ["Pruned", "prune"]
