"""A run folder and its mirror, from the first upload to the next machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import MirrorError, StoreError
from rlaif.core.progress import QuietProgress
from rlaif.core.store import Store
from rlaif.pipeline.experiment import StepProgress
from rlaif.pipeline.mirror import session
from rlaif.pipeline.mirror.lease import Taken, Timing
from rlaif.pipeline.mirror.remote import Remote, open_remote
from rlaif.pipeline.mirror.session import mirrored, pull
from rlaif.pipeline.mirror.snapshot import list_files
from tests.support.s3 import Server, serve_s3

QUICK = Timing(interval=0.02, lease=30, beat=10, grace=0, patience=0.3, retry=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, serve_s3(patch.setenv) as found:
        yield found


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://runs/a b/ü {uuid4().hex}"
    return f"file://{tmp_path}/the store ü"


@pytest.fixture
def memory() -> str:
    return f"memory:///{uuid4().hex}"


def write_run(root: Path, *rows: int) -> None:
    """A run folder with a finished step and a step under way."""
    store = Store(root)
    for row in rows:
        store.step("ab").append("rows ü", [{"row": row}])
    (root / "manifest.json").write_text('{"format": 1}')


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in list_files(root)}


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_machine_goes_on_with_the_same_bytes(url: str, tmp_path: Path) -> None:
    first, second = tmp_path / "one ü", tmp_path / "two"
    with mirrored(url, first, timing=QUICK):
        write_run(first, 1)
        time.sleep(0.1)
        write_run(first, 2)
        Store(first).step("ab").finish({"counts": {}})
    said: list[str] = []
    with mirrored(url, second, said.append, QUICK):
        assert contents(second) == contents(first)
        Store(second).step("cd").append("rows", [{"row": 3}])
    assert any("bringing" in line for line in said) and not any("moved" in line for line in said)
    # The first one is older now, and gets what it lacks.
    with mirrored(url, first, timing=QUICK):
        assert contents(first) == contents(second)
    third = tmp_path / "three"
    pull(url, third)
    assert contents(third) == contents(second)


def test_nothing_is_uploaded_twice(server: Server, tmp_path: Path) -> None:
    url, root = f"s3://runs/{uuid4().hex}", tmp_path / "run"
    server.puts.clear()
    with mirrored(url, root, timing=QUICK):
        for row in range(4):
            write_run(root, row)
            seen = len(server.puts)
            wait_for(lambda seen=seen: len(server.puts) > seen)
        Store(root).step("ab").finish({"counts": {}})
    # The same folder again, and another one.
    for again in (root, tmp_path / "other"):
        with mirrored(url, again, timing=QUICK):
            pass
    objects = {key: count for key, count in server.puts.items() if "/objects/" in key}
    assert set(objects.values()) == {1}
    remote = open_remote(url)
    # Of the trees and small files that were replaced nothing is left.
    _, head = session.read_heads(remote)
    assert head is not None and head.tree is not None
    tree = session.read_tree(remote, head.tree)
    held = set(remote.list_sizes("objects"))
    assert held == {part.digest for part in tree.parts()} | {head.tree}
    rows = tree.files["steps/ab/rows ü.jsonl"].parts
    assert len(rows) > 1


def test_what_the_run_removes_goes_from_the_mirror(url: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    masters = root / "models/ab/masters/weights"
    with mirrored(url, root, timing=QUICK):
        write_run(root, 1)
        masters.parent.mkdir(parents=True)
        masters.write_bytes(b"x" * 5000)
    remote = open_remote(url)
    assert 5000 in remote.list_sizes("objects").values()
    with mirrored(url, root, timing=QUICK):
        masters.unlink()
    assert 5000 not in remote.list_sizes("objects").values()
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(root)


def test_a_mirror_that_cannot_be_reached_is_completed_later(server: Server, tmp_path: Path) -> None:
    url, root, said = f"s3://runs/{uuid4().hex}", tmp_path / "run", list[str]()
    with mirrored(url, root, said.append, QUICK):
        write_run(root, 1)
        server.down = True
        wait_for(lambda: bool(said))
        write_run(root, 2)
        time.sleep(0.1)
        server.down = False
        wait_for(lambda: len(said) == 2)
    assert "cannot be written (PermissionError" in said[0] and "the run goes on" in said[0]
    assert "can be written again" in said[1] and len(said) == 2
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(root)


def test_a_mirror_that_stays_out_of_reach_is_an_error_at_the_end(
    server: Server, tmp_path: Path
) -> None:
    url, root = f"s3://runs/{uuid4().hex}", tmp_path / "run"

    def run() -> None:
        with mirrored(url, root, timing=QUICK):
            write_run(root, 1)
            server.down = True

    try:
        with pytest.raises(MirrorError, match=r"not complete.*run the same command") as caught:
            run()
    finally:
        server.down = False
    assert caught.value.exit_code == 4
    before = contents(root)
    # The folder goes on with its own lease, and with what it has.
    with mirrored(url, root, timing=QUICK):
        assert contents(root) == before
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == before


def test_the_error_of_a_run_stays_and_others_may_go_on_at_once(url: str, tmp_path: Path) -> None:
    def run() -> None:
        with mirrored(url, tmp_path / "one", timing=QUICK):
            write_run(tmp_path / "one", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    with mirrored(url, tmp_path / "two", timing=QUICK):
        assert contents(tmp_path / "two") == contents(tmp_path / "one")


def enter(url: str, root: Path, timing: Timing = QUICK) -> None:
    """Go on with a mirror, which is expected to fail."""
    with mirrored(url, root, timing=timing):
        pytest.fail("it runs")


def test_a_second_machine_is_refused(url: str, tmp_path: Path) -> None:
    timing = replace(QUICK, beat=0.05)
    with (
        mirrored(url, tmp_path / "one", timing=timing),
        pytest.raises(StoreError, match=r"one\) runs this mirror; its lease is valid until .* UTC"),
    ):
        enter(url, tmp_path / "two", timing)
    assert contents(tmp_path / "two") == {}


def lose(url: str, folder: Path, timing: Timing, work: Callable[[StepProgress], None]) -> None:
    """Work in `folder / "one"`, whose lease is too short, after `folder / "two"` took it over."""
    with mirrored(url, folder / "one", timing=timing) as guard:
        time.sleep(2 * timing.lease)
        with mirrored(url, folder / "two", timing=QUICK):
            write_run(folder / "two", 2)
            work(guard(QuietProgress()))


def test_a_run_ends_when_its_mirror_was_taken_over(memory: str, tmp_path: Path) -> None:
    """It wakes up at its end only; what it made is not uploaded."""
    slow = replace(QUICK, lease=0.1, interval=100, beat=100)
    with pytest.raises(Taken, match=r"two\).*This run stops"):
        lose(memory, tmp_path, slow, lambda progress: write_run(tmp_path / "one", 1))
    pull(memory, tmp_path / "three")
    assert contents(tmp_path / "three") == contents(tmp_path / "two")


def test_progress_stops_the_run(memory: str, tmp_path: Path) -> None:
    steps = 0

    def work(progress: StepProgress) -> None:
        nonlocal steps
        write_run(tmp_path / "one", 1)
        while steps < 1000:
            progress.advance(1)
            progress.beside().begin_step("a step")
            steps += 1
            time.sleep(0.01)

    with pytest.raises(Taken):
        lose(memory, tmp_path, replace(QUICK, lease=0.1, beat=100, interval=0.4), work)
    assert 0 < steps < 1000


def test_an_object_that_vanished_is_uploaded_again(memory: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with mirrored(memory, root, timing=QUICK):
        write_run(root, 1)
        remote = open_remote(memory)
        wait_for(lambda: bool(remote.list_sizes("objects")))
        for name in remote.list_sizes("objects"):
            remote.remove(f"objects/{name}")
    pull(memory, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(root)


def test_an_emptied_folder_is_filled_and_not_followed(memory: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with mirrored(memory, root, timing=QUICK):
        write_run(root, 1)
    before = contents(root)
    for name in before:
        (root / name).unlink()
    with mirrored(memory, root, timing=QUICK):
        assert contents(root) == before


def test_a_kill_between_head_and_note_is_no_reason_to_pull(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = tmp_path / "run", list[str]()
    remember = session.Mirror._remember

    def killed(self: Any, trees: tuple[str, ...], last: bytes | None = None) -> None:
        if last is not None and self._thread.is_alive():
            raise RuntimeError("killed")
        remember(self, trees, last)

    with mirrored(memory, root, timing=QUICK):
        write_run(root, 0)
    monkeypatch.setattr(session.Mirror, "_remember", killed)
    once = replace(QUICK, patience=0, interval=100, beat=100)
    # Nor does a failure to write notes end the run.
    with pytest.raises(MirrorError, match="killed"), mirrored(memory, root, timing=once):
        write_run(root, 1)
    monkeypatch.undo()
    write_run(root, 2)
    before = contents(root)
    with mirrored(memory, root, said.append, QUICK):
        assert contents(root) == before
    assert said == []


def test_a_killed_pull_is_not_taken_for_the_run(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start has its own lease and half a folder: it must not upload the half."""
    with mirrored(memory, tmp_path / "one", timing=QUICK):
        write_run(tmp_path / "one", 1)

    def killed(*given: Any) -> Any:
        (tmp_path / "two" / "manifest.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "pull_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        enter(memory, tmp_path / "two")
    monkeypatch.undo()
    with mirrored(memory, tmp_path / "two", timing=QUICK):
        assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_mirror_of_nothing_or_that_cannot_be_read_is_said(
    server: Server, memory: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=f"{memory}: there is no run"):
        pull(memory, tmp_path / "run")
    with pytest.raises(StoreError, match="s3://nobucket/run: The specified bucket does not exist"):
        enter("s3://nobucket/run", tmp_path / "run")


def test_pull_goes_on_where_the_run_has_removed_what_it_fetches(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    with mirrored(memory, root, timing=QUICK):
        write_run(root, 1)
    read = Remote.read
    moved = False

    def go_on(self: Remote, name: str) -> bytes:
        nonlocal moved
        if name.startswith("objects/") and not moved:
            moved = True
            with mirrored(memory, root, timing=QUICK):
                (root / "manifest.json").write_text("{}")
        return read(self, name)

    monkeypatch.setattr(Remote, "read", go_on)
    pull(memory, tmp_path / "other")
    assert moved and contents(tmp_path / "other") == contents(root)


def test_the_command_mirrors_the_report_too(
    memory: str,
    tmp_path: Path,
    write_experiment: Callable[..., Path],
) -> None:
    path = str(write_experiment(tmp_path / "experiment", None, rounds=1))
    words = ["run", path, "--mirror", memory, "-q", "--out"]
    done = CliRunner().invoke(cli, [*words, str(tmp_path / "one")])
    assert done.exit_code == 0, done.output
    pulled = CliRunner().invoke(cli, ["pull", memory, str(tmp_path / "two")])
    assert pulled.exit_code == 0 and "MB fetched" in pulled.stdout
    assert "report.html" in contents(tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    again = CliRunner().invoke(cli, [*words, str(tmp_path / "three")])
    assert "Nothing to do" in again.stdout
    refused = CliRunner().invoke(cli, [*words, str(tmp_path / "three"), "--dry-run"])
    assert refused.exit_code == 2 and "--mirror is not for --dry-run" in refused.output
