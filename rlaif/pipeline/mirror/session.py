"""One run with a mirror: pulled first, kept up to date beside the run, completed at the end."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from rlaif.core.errors import MirrorError, StoreError, explain_library
from rlaif.core.integrity import digest
from rlaif.core.store import Store, write_atomic
from rlaif.pipeline.experiment import StepProgress
from rlaif.pipeline.manifest import MANIFEST
from rlaif.pipeline.mirror.lease import Lease, Taken, Timing, describe_owner, read_heads
from rlaif.pipeline.mirror.pull import ASIDE, OBJECTS, Pulled, name_object, pull_tree, read_tree
from rlaif.pipeline.mirror.remote import Remote, open_remote
from rlaif.pipeline.mirror.snapshot import (
    OWN,
    Piece,
    Seen,
    Snapshot,
    Tree,
    decode_tree,
    drop_pins,
    encode_tree,
    read_piece,
    take_snapshot,
)
from rlaif.pipeline.steps.context import CheckedProgress

STATE, LAST = "state.json", "tree.json"
TRANSFERS = 4
"""Parts that are moved at the same time; each is in memory."""
TRIES = 5
"""How often a folder that changes is listed before the next interval is waited for."""


class State(msgspec.Struct, frozen=True):
    """What a run folder knows of its mirror: its own id, and the digests of the trees of which one
    is what the folder was last in step with."""

    id: str
    url: str = ""
    trees: tuple[str, ...] = ()


def read_state(root: Path) -> State:
    """The state in a run folder, a new one where there is none or it is damaged."""
    try:
        return msgspec.json.decode((root / OWN / STATE).read_bytes(), type=State)
    except (FileNotFoundError, msgspec.MsgspecError):
        return State(uuid.uuid4().hex)


def write_state(root: Path, state: State) -> None:
    """Write the state into a run folder."""
    write_atomic(root / OWN / STATE, msgspec.json.encode(state).decode())


def read_last(root: Path) -> Tree:
    """The tree that a run folder was in step with last; an empty one where there is none or it is
    damaged."""
    try:
        return decode_tree((root / OWN / LAST).read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return Tree({})


def move_parts(jobs: Iterable[Callable[[], None]], tick: Callable[[], None], every: float) -> None:
    """Do jobs, a few at the same time, calling `tick` in this thread every so many seconds. The
    first error of either ends it."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        running: set[Future[None]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(job))
                while len(running) >= 2 * TRANSFERS:
                    running = _await_some(running, tick, every)
            while running:
                running = _await_some(running, tick, every)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _await_some(
    running: set[Future[None]], tick: Callable[[], None], every: float
) -> set[Future[None]]:
    done, left = wait(running, timeout=every, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    tick()
    return left


class Mirror:
    """Keeps the mirror of one run folder, in a thread of its own between `begin` and `end`."""

    def __init__(self, remote: Remote, root: Path, say: Callable[[str], None], timing: Timing):
        self.remote, self.root, self.say, self.timing = remote, root, say, timing
        self.state = read_state(root)
        self.lease = Lease(remote, describe_owner(root, self.state.id), timing)
        self.tree = Tree({})
        self.trouble: str | None = None
        self.lost: str | None = None
        self._seen: dict[str, Seen] = {}
        self._objects: dict[str, int] = {}
        self._ending = threading.Event()
        self._hurry = threading.Event()
        self._patience = 0.0
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def begin(self) -> None:
        """Take the lease, bring the folder up to date, and start to mirror. Raises StoreError."""
        # The folder's id is on disk before a head has it, so that the folder knows its own lease.
        write_state(self.root, self.state)
        head = self.lease.acquire(self.say)
        try:
            self._objects = self.remote.list_sizes(OBJECTS)
            if head is not None and head.tree is not None:
                self._catch_up(head.tree)
        except BaseException:
            with suppress(Exception):
                self.lease.release()
            raise
        self._thread.start()

    def end(self, patience: float) -> None:
        """Complete the mirror and release the lease, trying for `patience` seconds."""
        self._patience = patience
        self._ending.set()
        try:
            self._thread.join()
        except BaseException:
            self._hurry.set()
            raise

    def check(self) -> None:
        """Raise Taken once another machine has taken the mirror over."""
        if self.lost is not None:
            raise Taken(
                f"{self.lost} This run stops, since the other machine goes on with it; what it "
                f"computed since its last upload is in {self.root}."
            )

    def _catch_up(self, key: str) -> None:
        tree = read_tree(self.remote, key)
        same = self.state.url == self.remote.url and key in self.state.trees
        if same and (self.root / MANIFEST).exists():
            # What is here is that, or newer.
            self.tree = tree
        else:
            self.say(f"{self.remote.url}: bringing {self.root} up to date")
            tick = self.lease.renew_if_due
            pulled = pull_tree(
                self.remote, tree, self.root, read_last(self.root), self._transfer, tick
            )
            self.tree = tree
            for line in describe_pulled(pulled, self.root):
                self.say(line)
        self._remember((key,), encode_tree(tree))

    def _remember(self, trees: tuple[str, ...], last: bytes | None = None) -> None:
        self.state = State(self.state.id, self.remote.url, trees)
        write_state(self.root, self.state)
        if last is not None:
            write_atomic(self.root / OWN / LAST, last.decode())

    def _work(self) -> None:
        while not self._ending.wait(min(self.timing.interval, self.timing.beat)):
            self._try_upload()
            if self.lost is not None:
                return
        deadline = time.monotonic() + self._patience
        while not (self._try_upload(last=True) or self.lost is not None):
            if time.monotonic() >= deadline or self._hurry.wait(self.timing.retry):
                break
        drop_pins(self.root)

    def _try_upload(self, last: bool = False) -> bool:
        """Whether the mirror was brought up to date; what went wrong is said."""
        try:
            complete = self._upload()
            if last and complete:
                complete = self._is_complete()
                if complete:
                    self.lease.release()
        except Taken as error:
            self.lost = str(error)
            self.say(self.lost)
            return False
        except Exception as error:
            # A store's library raises errors of any class.
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if self.trouble is None:
                self.say(
                    f"{self.remote.url}: cannot be written ({words}); the run goes on in "
                    f"{self.root} and is uploaded as soon as that works"
                )
            self.trouble = words
            return False
        if self.trouble is not None:
            self.say(f"{self.remote.url}: can be written again")
        self.trouble = None if complete or not last else "the run folder changed meanwhile"
        return complete

    def _upload(self) -> bool:
        """Bring the mirror up to date, or renew the lease where nothing changed. Whether the run
        folder was still enough to be listed."""
        snapshot = self._snapshot()
        if snapshot is None:
            self.lease.renew_if_due()
            return False
        wanted = [piece for piece in snapshot.new if not self._has(piece)]
        self._transfer(partial(self._put, piece) for piece in wanted)
        drop_pins(self.root)
        data = encode_tree(snapshot.tree)
        key = digest(data)
        if self._objects.get(key) != len(data):
            self.remote.write(name_object(key), data)
            self._objects[key] = len(data)
        if self.lease.head is None or self.lease.head.tree != key:
            before = self.state.trees[-1:]
            self._remember((*before, key))
            self.lease.renew(key)
            self._remember((key,), data)
            self._remove_unused(snapshot.tree, key)
        else:
            self.lease.renew_if_due()
        self.tree, self._seen = snapshot.tree, dict(snapshot.seen)
        return True

    def _snapshot(self) -> Snapshot | None:
        for _ in range(TRIES):
            taken = take_snapshot(self.root, self.tree, self._seen, self.lease.renew_if_due)
            if taken is not None:
                return taken
        return None

    def _has(self, piece: Piece) -> bool:
        return self._objects.get(piece.part.digest) == piece.part.size

    def _put(self, piece: Piece) -> None:
        data = read_piece(piece)
        if data is None:
            raise StoreError(f"{piece.path}: changed while it was uploaded")
        self.remote.write(name_object(piece.part.digest), data)
        self._objects[piece.part.digest] = piece.part.size

    def _remove_unused(self, tree: Tree, key: str) -> None:
        """Remove what no tree needs any more. Only while nobody can have taken the lease over: the
        next owner may need again what this one does not."""
        used = {part.digest for part in tree.parts()} | {key}
        for name in sorted(self._objects.keys() - used):
            if not self.lease.is_valid:
                return
            self.remote.remove(name_object(name))
            del self._objects[name]

    def _is_complete(self) -> bool:
        """Whether the store has all that the tree names; what is missing is uploaded next time."""
        self._objects = self.remote.list_sizes(OBJECTS)
        missing = [p for p in self.tree.parts() if self._objects.get(p.digest) != p.size]
        if missing:
            gone = set(missing)
            files = self.tree.files.items()
            self.tree = Tree({n: e for n, e in files if not gone & set(e.parts)})
            self._seen = {}
        # The tree itself is an object too, which is written where it is missing.
        head = self.lease.head
        return not missing and head is not None and head.tree in self._objects

    def _transfer(self, jobs: Iterable[Callable[[], None]]) -> None:
        move_parts(jobs, self.lease.renew_if_due, self.timing.beat / 4)


def describe_pulled(pulled: Pulled, root: Path) -> list[str]:
    """What a pull did, in sentences."""
    lines = [f"{pulled.bytes / 1e6:.1f} MB fetched into {root}"]
    if pulled.aside:
        lines.append(
            f"{len(pulled.aside)} files of {root} that the mirror has never had were moved to "
            f"{root / OWN / ASIDE}, such as {pulled.aside[0]}"
        )
    return lines


@dataclass(frozen=True)
class GuardedProgress(CheckedProgress):
    """Progress that stops the run once another machine has taken the mirror over."""

    progress: StepProgress

    def begin_step(self, title: str) -> None:
        """See `StepProgress`."""
        self.check()
        self.progress.begin_step(title)

    def beside(self) -> StepProgress:
        """See `StepProgress`."""
        return GuardedProgress(self.progress.beside(), self.check)


@contextmanager
def mirrored(
    url: str,
    out: Path,
    say: Callable[[str], None] = lambda text: None,
    timing: Timing | None = None,
) -> Iterator[Callable[[StepProgress], StepProgress]]:
    """Inside, the run folder `out` is mirrored to a URL of fsspec; first, it is brought up to date
    from there. Gives a function that makes a run's progress stop it once the mirror is lost.

    What is computed is never lost to a mirror that cannot be reached: MirrorError is raised at the
    end. Raises StoreError where another machine runs this mirror.
    """
    timing = timing or Timing()
    remote = open_remote(url)
    store = Store(out)
    store.prepare()
    mirror = Mirror(remote, out, say, timing)
    with store.locked(), explain_library(url, StoreError):
        mirror.begin()
    try:
        yield lambda progress: GuardedProgress(progress, mirror.check)
    except BaseException:
        mirror.end(patience=0.0)
        if mirror.trouble is not None:
            say(_explain_incomplete(mirror))
        raise
    mirror.end(timing.patience)
    mirror.check()
    if mirror.trouble is not None:
        raise MirrorError(_explain_incomplete(mirror))


def _explain_incomplete(mirror: Mirror) -> str:
    return (
        f"{mirror.remote.url}: the mirror is not complete ({mirror.trouble}). Everything is in "
        f"{mirror.root}; run the same command again to upload what is missing."
    )


def pull(url: str, out: Path) -> Pulled:
    """Make the run folder `out` what the mirror at a URL has; a run that goes on there is not
    disturbed. Raises StoreError."""
    remote = open_remote(url)
    store = Store(out)
    store.prepare()
    with store.locked(), explain_library(url, StoreError):
        for _ in range(TRIES):
            # Where the run goes on, what it no longer needs is removed before it is fetched.
            with suppress(FileNotFoundError):
                return _pull_once(remote, out)
        raise StoreError("the run went on faster than it could be fetched; run this again")


def _pull_once(remote: Remote, out: Path) -> Pulled:
    _, head = read_heads(remote)
    if head is None or head.tree is None:
        raise StoreError(f"{remote.url}: there is no run. Give the URL of `rlaif run --mirror`.")
    tree = read_tree(remote, head.tree)

    def transfer(jobs: Iterable[Callable[[], None]]) -> None:
        move_parts(jobs, lambda: None, 1.0)

    pulled = pull_tree(remote, tree, out, read_last(out), transfer, lambda: None)
    write_state(out, State(read_state(out).id, remote.url, (head.tree,)))
    write_atomic(out / OWN / LAST, encode_tree(tree).decode())
    return pulled
