"""Who may write to a mirror, and which tree counts: a chain of numbered heads.

A head is created under the next number on the condition that nobody has created it before (S3's
If-None-Match, and what corresponds to it elsewhere). It holds the tree that counts, its owner and
until when the owner may write. The owner renews its lease, and publishes another tree, by the next
head; another machine takes an expired lease over by the same act, and the owner that was only slow
finds its next number taken. After creating a head its owner lists the heads: whoever sees a higher
number than its own has lost, so that removing old heads is safe.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from rlaif.core.errors import StoreError
from rlaif.pipeline.mirror.remote import Remote

FOLDER = "heads"
KEPT = 2
"""Heads that stay: who lists them while one is added still finds one that can be read."""


@dataclass(frozen=True)
class Timing:
    """Seconds. A lease lasts `lease` and is renewed every `beat`; clocks of two machines may differ
    by `grace`. A run is looked at every `interval`; at its end the mirror is tried for `patience`,
    every `retry`."""

    interval: float = 30.0
    lease: float = 180.0
    beat: float = 45.0
    grace: float = 60.0
    patience: float = 600.0
    retry: float = 10.0


class Owner(msgspec.Struct, frozen=True):
    """A run folder on a machine. `id` is drawn once for the folder."""

    id: str
    host: str
    folder: str


class Head(msgspec.Struct, frozen=True):
    """`until` is in seconds since 1970; `tree` the digest of the tree, None before the first."""

    number: int
    owner: Owner
    until: float
    tree: str | None
    released: bool = False


class Taken(StoreError):
    """Another machine has the mirror."""


def describe_owner(folder: Path, identity: str) -> Owner:
    """The owner that a run folder on this machine is."""
    return Owner(identity, socket.gethostname(), str(folder.resolve()))


@dataclass
class Lease:
    """The right of `owner` to write; `head` is its latest one."""

    remote: Remote
    owner: Owner
    timing: Timing
    head: Head | None = None
    _renewed: float = field(default=0.0)

    def acquire(self, say: Callable[[str], None]) -> Head | None:
        """Take the lease; the head before it, whose tree counts. Waits while a lease that may have
        been left behind has not expired. Raises Taken where its owner is alive."""
        newest, before = read_heads(self.remote)
        wait = 0.0 if before is None else self._remaining(before)
        if before is not None and wait > 0:
            say(
                f"{self.remote.url}: the lease of {_name_owner(before)} is valid until "
                f"{_clock(before.until)}; waiting for at most {wait:.0f} s, whether it is renewed"
            )
        end = time.monotonic() + wait
        while before is not None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.timing.beat / 4))
            newest, seen = read_heads(self.remote)
            if seen is not None and seen.number != before.number:
                if not seen.released:
                    raise Taken(self._explain_taken(seen))
                before = seen
                break
        self._create(newest + 1, None if before is None else before.tree)
        self._refuse_plain_store()
        return before

    def renew(self, tree: str | None, released: bool = False) -> None:
        """Publish a tree and renew the lease by it. Raises Taken where another machine has it."""
        assert self.head is not None
        self._create(self.head.number + 1, tree, released)

    def renew_if_due(self) -> None:
        """Renew the lease with the same tree, if it is time for that. Raises Taken."""
        if self.head is not None and time.monotonic() - self._renewed >= self.timing.beat:
            self.renew(self.head.tree)

    def release(self) -> None:
        """Let others have the mirror at once."""
        if self.head is not None:
            self.renew(self.head.tree, released=True)
            self.head = None

    @property
    def is_valid(self) -> bool:
        """Whether nobody can have taken the lease over yet."""
        return time.monotonic() - self._renewed < self.timing.lease

    def _create(self, number: int, tree: str | None, released: bool = False) -> None:
        """Create our head of this number, or of the next one that is free. Raises Taken."""
        began = time.monotonic()
        while True:
            until = time.time() + self.timing.lease
            head = Head(number, self.owner, until, tree, released)
            if self.remote.create(_name_head(number), msgspec.json.encode(head)):
                break
            seen = _read_head(self.remote, number)
            if seen is not None and seen.owner != self.owner:
                raise Taken(self._explain_taken(seen))
            # Our own, whose answer was lost; or its writer was killed before it was written.
            number += 1
        numbers = list_numbers(self.remote)
        if max(numbers, default=number) > number:
            self.remote.remove(_name_head(number))
            raise Taken(self._explain_taken(read_heads(self.remote)[1]))
        self.head, self._renewed = head, began
        for old in sorted(numbers):
            if old <= number - KEPT:
                self.remote.remove(_name_head(old))

    def _refuse_plain_store(self) -> None:
        """Raise StoreError where the store overwrites what must be created by one alone."""
        assert self.head is not None
        again = msgspec.structs.replace(self.head, until=self.head.until + 1)
        if self.remote.create(_name_head(self.head.number), msgspec.json.encode(again)):
            raise StoreError(
                f"{self.remote.url}: this store overwrites an object that was to be created only "
                "if absent, so it cannot keep two machines apart. Choose another store: S3, "
                "Google Cloud Storage, Azure and folders of this machine can."
            )

    def _remaining(self, head: Head) -> float:
        """Seconds until a lease that another owner left is certainly over."""
        # A folder is locked by the kernel while its run lives: what it left itself is over.
        if head.released or head.owner == self.owner:
            return 0.0
        longest = self.timing.lease + self.timing.grace
        return min(max(head.until + self.timing.grace - time.time(), 0.0), longest)

    def _explain_taken(self, head: Head | None) -> str:
        if head is None:
            return f"{self.remote.url}: another machine has begun to use this mirror."
        return (
            f"{self.remote.url}: {_name_owner(head)} runs this mirror; its lease is valid until "
            f"{_clock(head.until)} and is renewed while it lives. Stop that run or wait for its "
            "end, then run the same command again; or choose another --mirror."
        )


def read_heads(remote: Remote) -> tuple[int, Head | None]:
    """The highest number of a head, 0 without any, and the latest head that can be read: a local
    store may hold one whose writer was killed as it began."""
    numbers = sorted(list_numbers(remote), reverse=True)
    heads = (_read_head(remote, number) for number in numbers)
    return max(numbers, default=0), next((head for head in heads if head is not None), None)


def _read_head(remote: Remote, number: int) -> Head | None:
    data = remote.read_if_there(_name_head(number))
    try:
        return None if data is None else msgspec.json.decode(data, type=Head)
    except msgspec.MsgspecError:
        return None


def list_numbers(remote: Remote) -> list[int]:
    """The numbers of the heads in the store."""
    names = remote.list_sizes(FOLDER)
    return [int(name) for name in names if name.isdecimal()]


def _name_head(number: int) -> str:
    return f"{FOLDER}/{number:012d}"


def _name_owner(head: Head) -> str:
    return f"{head.owner.host} (run folder {head.owner.folder})"


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S} UTC"
