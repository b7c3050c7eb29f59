"""Asking a served reward model, in the form that TRL's trainers call reward functions."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from rlaif.core.errors import RlaifError


class RewardClient:
    """`RewardClient(url)(prompts=..., completions=...)` gives a list of rewards: a reward function
    for TRL's online trainers. `url` is that of `rlaif serve reward`; `timeout` is in seconds."""

    def __init__(self, url: str, timeout: float = 600.0):
        self.url = url.rstrip("/")
        self.timeout = timeout
        # TRL names its metrics by this.
        self.__name__ = "rlaif_reward"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **more: Any
    ) -> list[float]:
        """The reward of each completion. Prompts and completions are texts or lists of turns, as
        in TRL; what else a trainer passes is not looked at. Raises RlaifError."""
        rows = [
            [*_turns(p, "user"), *_turns(c, "assistant")]
            for p, c in zip(prompts, completions, strict=True)
        ]
        body = json.dumps({"messages": rows}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/get_reward", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                rewards: list[float] = json.load(answer)["rewards"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise RlaifError(f"{self.url} refused the answers ({error.code}): {said}") from None
        except OSError as error:
            raise RlaifError(f"{self.url} cannot be reached: {error}") from None
        return rewards


def _turns(value: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
