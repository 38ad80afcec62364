"""Parts of a stage's work that are made ahead of it, by number."""

from jora_tasks.errors import InputError


def check_shard(section: str, shard: int, shards: int) -> None:
    """Refuse a part that is not there.

    Args:
      section: of the spec, whose ``shards`` says how many there are.

    Raises:
      InputError: if the number is none of them.
    """
    if not 0 <= shard < shards:
        raise InputError(
            f"shard {shard} is none of {section}.shards {shards}; give one from 0 to {shards - 1}."
        )
