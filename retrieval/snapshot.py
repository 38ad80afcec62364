"""Whether documents changed, told without reading them: a digest of their names, sizes and versions.

A file's version is its time of change, or what its object store tells of it, such as an etag. The same digest
means that nothing changed; another one that something may have, which the content then confirms.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from jora_tasks.spec import is_url
from retrieval.files import local_files
from retrieval.remote import remote_listing


def snapshot(path: str) -> str:
    """Digest of the documents below a folder or URL, as they are now: ``sha256:<hex>``.

    Raises:
      InputError: if there is none, or it cannot be read.
      RunStopped: if a URL's file system fails.
    """
    if is_url(path):
        listed = remote_listing(path)
    else:
        listed = {file.name: file.problem or str(file.state()) for file in local_files(Path(path))}
    told = json.dumps(sorted(listed.items())).encode()
    return f"sha256:{hashlib.sha256(told).hexdigest()}"
