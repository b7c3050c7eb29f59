"""One kept-alive connection to a server, for one caller: by the `openai` client over aiohttp.

HTTP/1.1 knows answers by their order alone. A server or a proxy that sends one twice shifts every
later answer on that connection to a call that it is not for. So callers share no connection,
and one that repeats its last answer is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import openai

from rlaif.config import ModelSpec
from rlaif.engines.secret import keep_out_of_logs


class Repeated(Exception):
    """The last answer came again: it is not the answer to this call."""


def opener(spec: ModelSpec, key: str | None) -> Callable[[], openai.AsyncOpenAI]:
    """A function that makes clients of one connection each to the server of `spec`."""
    keep_out_of_logs(key)
    limits = spec.limits
    timeout = httpx2.Timeout(limits.read_seconds, connect=limits.connect_seconds, pool=None)
    url = spec.base_url or ""
    # Reading the system's certificates takes longer than many calls: once, and only for TLS.
    verify: Any = httpx2.create_ssl_context() if url.startswith("https:") else False

    def open_client() -> openai.AsyncOpenAI:
        # The aiohttp back end makes twice as many calls per second of CPU as the default one.
        http = openai.DefaultAioHttpClient(
            timeout=timeout, limits=httpx2.Limits(max_connections=1), verify=verify
        )
        return openai.AsyncOpenAI(
            base_url=url, api_key=key or "none", max_retries=0, timeout=timeout, http_client=http
        )

    return open_client


class Connection:
    """Opened with the first call, and again after it was closed."""

    def __init__(self, open_client: Callable[[], openai.AsyncOpenAI]):
        self._open = open_client
        self._client: openai.AsyncOpenAI | None = None
        self._last: bytes | None = None
        self._distrusted: bytes | None = None
        self._repeats = False

    async def post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """The answer to `body`. Raises Repeated, and what the `openai` client raises."""
        if self._client is None:
            self._client = self._open()
        try:
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            if error.response.content == self._last:
                await self.close()
            else:
                self._last = error.response.content
            raise
        except BaseException:
            await self.close()
            raise
        content = response.content
        if content == self._distrusted:
            # The same bytes on a fresh connection: this server gives equal answers equal ids.
            self._repeats = True
        if content == self._last and b'"id"' in content and not self._repeats:
            await self.close()
            self._distrusted = content
            raise Repeated("the connection repeated its last answer")
        self._last, self._distrusted = content, None
        return response

    async def close(self) -> None:
        """Close it; what it may still bring is nobody's."""
        client, self._client, self._last = self._client, None, None
        if client is not None:
            await client.close()
