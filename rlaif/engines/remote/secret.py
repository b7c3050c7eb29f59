"""A server's key, kept out of every error and log. What a model wrote is never changed."""

from __future__ import annotations

import json
import logging

HIDDEN = "[key]"
SHORTEST = 8
"""Shorter keys may be a part of any text: nothing is taken out for them."""
CLIENT_LOG = "openai._base_client"
"""Where the client logs what a server says in its headers, when its log is on (OPENAI_LOG)."""


def without_key(text: str, key: str | None) -> str:
    """`text` without the key, as it is or as JSON escapes it."""
    if key is None or len(key) < SHORTEST:
        return text
    return text.replace(key, HIDDEN).replace(json.dumps(key)[1:-1], HIDDEN)


class _Without(logging.Filter):
    """Passes every record on, without one key."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the key out of the message."""
        record.msg, record.args = without_key(record.getMessage(), self.key), None
        return True


def keep_out_of_logs(key: str | None) -> None:
    """Take the key out of all that the client logs from here on."""
    log = logging.getLogger(CLIENT_LOG)
    known = {f.key for f in log.filters if isinstance(f, _Without)}
    if key is not None and key not in known:
        log.addFilter(_Without(key))
