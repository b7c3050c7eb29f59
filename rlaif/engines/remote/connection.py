"""One kept-alive connection to a server, for one caller: by the `openai` client over aiohttp.

HTTP/1.1 knows answers by their order alone. A server or a proxy that sends one twice shifts every
later answer on that connection to a call that it is not for. So callers share no connection,
and one that repeats its last answer is closed.

A server's key is kept out of every error and log; what a model wrote is never changed.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import httpx2
import openai
from aiohttp.http_exceptions import HttpProcessingError

from rlaif.config.models import ModelSpec
from rlaif.engines.remote.decode import Malformed

GZIP = 16 + zlib.MAX_WBITS
UNREADABLE = (
    *(aiohttp.ClientError, HttpProcessingError, httpx2.HTTPError, httpx2.InvalidURL),
    # Of bytes that are no text, in a reason or an address say.
    ValueError,
)
"""What the libraries raise for a reply that is not HTTP, besides what the client makes its own."""


class Repeated(Exception):
    """The last answer came again: it is not the answer to this call."""


def opener(spec: ModelSpec, key: str | None) -> Callable[[Limit], openai.AsyncOpenAI]:
    """A function that makes clients of one connection each to the server of `spec`, whose answers
    are held to a limit."""
    keep_out_of_logs(key)
    limits = spec.limits
    timeout = httpx2.Timeout(limits.read_seconds, connect=limits.connect_seconds, pool=None)
    url = spec.base_url or ""
    # Reading the system's certificates takes longer than many calls: once, and only for TLS.
    verify: Any = httpx2.create_ssl_context() if url.startswith("https:") else False

    def open_client(limit: Limit) -> openai.AsyncOpenAI:
        # The aiohttp back end makes twice as many calls per second of CPU as the default one.
        http = openai.DefaultAioHttpClient(
            timeout=timeout,
            limits=httpx2.Limits(max_connections=1),
            verify=verify,
            event_hooks={"response": [limit.watch]},
        )
        return openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            max_retries=0,  # The session counts and paces attempts itself.
            timeout=timeout,
            http_client=http,
            # Others could turn a few bytes into gigabytes at once.
            default_headers={"Accept-Encoding": "gzip"},
        )

    return open_client


class Limit:
    """Holds the answers on one connection to `most` bytes each, decompressed."""

    most = 0

    async def watch(self, response: httpx2.Response) -> None:
        """Have the body of `response` read within the limit, and decompressed as it is read."""
        coding = response.headers.pop("content-encoding", "").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise Malformed(f"the answer is encoded as {coding[:40]!r}, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        packed = coding in ("gzip", "x-gzip")
        # The client decodes by the name that the server gives, which may be no text's encoding.
        if not _is_of_texts(response.charset_encoding):
            response.encoding = "utf-8"
        response.stream = _Limited(response.stream, packed, self.most)


def _is_of_texts(charset: str | None) -> bool:
    """Whether the client can read a body by this name: Python has codecs from bytes to bytes too,
    and some that know no replacement."""
    try:
        return charset is None or bool(b"{}".decode(charset, "replace"))
    except (LookupError, ValueError):
        return False


class _Limited(httpx2.AsyncByteStream):
    """The parts of `stream`, unpacked where they are packed; Malformed beyond `most` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, packed: bool, most: int):
        self._stream = stream
        self._packed = packed
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        unpacker = zlib.decompressobj(GZIP)
        async for part in self._stream:
            if self._packed:
                try:
                    # One byte more than allowed shows that there are more, without unpacking them.
                    part = unpacker.decompress(part, left + 1)
                except zlib.error as error:
                    raise Malformed(f"the answer cannot be unpacked: {error}") from None
            left -= len(part)
            if left < 0:
                raise Malformed(
                    f"the answer is longer than {self._most / 1e6:.0f} MB, which is more than was "
                    "asked for"
                )
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class Connection:
    """Opened with the first call, and again after it was closed."""

    def __init__(self, open_client: Callable[[Limit], openai.AsyncOpenAI]):
        self._open = open_client
        self._limit = Limit()
        self._client: openai.AsyncOpenAI | None = None
        self._last: bytes | None = None
        self._distrusted: bytes | None = None
        self._repeats = False

    async def post(self, path: str, body: dict[str, Any], most: int) -> httpx2.Response:
        """The answer to `body`, of at most `most` bytes. Raises Repeated, Malformed, and what the
        `openai` client raises."""
        self._limit.most = most
        if self._client is None:
            self._client = self._open(self._limit)
        try:
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            # The error may be the last answer once more: a fresh connection tells.
            if error.response.content == self._last:
                await self.close()
            else:
                self._last = error.response.content
            raise
        except UNREADABLE as error:
            await self.close()
            said = " ".join(str(getattr(error, "message", error)).split())[:200]
            raise Malformed(f"the reply is not HTTP: {said or type(error).__name__}") from None
        except BaseException:
            await self.close()
            raise
        content = response.content
        if content == self._distrusted:
            # The same bytes on a fresh connection: this server gives equal answers equal ids.
            self._repeats = True
        # Without an id two equal answers may both be meant.
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
