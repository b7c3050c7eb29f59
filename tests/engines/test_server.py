"""Servers of our own: started, asked, and gone with all their processes however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rlaif.core.errors import EngineError
from rlaif.engines.vllm import keeper
from rlaif.engines.vllm.server import Server
from tests.servers import standin
from tests.support.processes import alive, children, gone

STANDIN = Path(standin.__file__)


def start(folder: Path, log: Path) -> Server:
    command = [sys.executable, str(STANDIN), "--model", str(folder)]
    return Server(
        "m",
        lambda port: [*command, "--port", str(port)],
        lambda key: {"VLLM_API_KEY": key},
        log,
    )


def processes(log: Path) -> list[int]:
    """The server and its child, as it wrote them down."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        lines = log.read_text().splitlines() if log.exists() else []
        found = [line.split()[1:] for line in lines if line.startswith("pids ")]
        if found:
            return [int(pid) for pid in found[-1]]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {lines}")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "servers/m.log"
    yield path
    for pid in filter(alive, processes(path)):
        os.kill(pid, signal.SIGKILL)


def test_a_server_answers_with_its_key_and_ends_with_its_children(
    tmp_path: Path, log: Path
) -> None:
    first, second = start(tmp_path, log), start(tmp_path, tmp_path / "other.log")
    try:
        first.wait(30)
        second.wait(30)
        assert first.healthy()
        assert first.url.startswith("http://127.0.0.1:")
        # Another server on the port does not know the key.
        second.key = first.key
        assert not second.healthy()
        running = processes(log)
        assert all(map(alive, running))
        # Not where everybody on the machine can read it.
        assert len(children("rlaif.engines.vllm.keeper")) == 2
        assert not children(first.key)
    finally:
        first.stop()
        second.stop()
    assert gone(running, 2)
    assert not first.alive()


def test_a_server_that_wants_no_key_is_not_ours(tmp_path: Path, log: Path) -> None:
    """As where another program took the port first."""
    open_to_all = tmp_path / "open"
    (open_to_all / "v1").mkdir(parents=True)
    for name in ("health", "v1/models"):
        (open_to_all / name).touch()
    serve = partial(SimpleHTTPRequestHandler, directory=str(open_to_all))
    other = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=other.serve_forever).start()
    server = start(tmp_path, log)
    try:
        server.wait(30)
        assert server.healthy()
        server.root = f"http://127.0.0.1:{other.server_port}"
        server.url = f"{server.root}/v1"
        assert not server.healthy()
    finally:
        server.stop()
        other.shutdown()
        other.server_close()


def test_a_server_that_dies_at_its_start_says_its_last_lines(tmp_path: Path, log: Path) -> None:
    (tmp_path / "dies").write_text("ValueError: no memory for the cache")
    server = start(tmp_path, log)
    with pytest.raises(EngineError, match="no memory for the cache") as caught:
        server.wait(30)
    assert str(log) in str(caught.value)
    assert gone(processes(log), 2)


def test_a_server_that_is_not_healthy_in_time_is_ended(tmp_path: Path, log: Path) -> None:
    (tmp_path / "hangs").touch()
    server = start(tmp_path, log)
    running = processes(log)
    with pytest.raises(EngineError, match="after 1 s"):
        server.wait(1)
    assert gone(running, 2)


def test_a_server_that_ignores_the_signal_is_killed(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn").touch()
    server = start(tmp_path, log)
    server.wait(30)
    running = processes(log)
    began = time.monotonic()
    server.stop()
    assert gone(running, 2)
    assert time.monotonic() - began < keeper.GRACE_SECONDS + 5


OWNER = """
import signal, sys, time
from pathlib import Path
from tests.engines.test_server import start

# A shell's background job, such as a test run may be, hands down that this signal is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
server = start(Path(sys.argv[1]), Path(sys.argv[2]))
server.wait(30)
print("ready", flush=True)
if sys.argv[3] == "raises":
    raise SystemError("a fault of ours")
if sys.argv[3] == "waits":
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "how", ["ends", "raises", signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str
)
def test_no_process_outlives_the_one_that_started_it(
    tmp_path: Path, log: Path, how: str | signal.Signals
) -> None:
    mode = how if isinstance(how, str) else "waits"
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), str(log), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline().strip() == "ready"
    running = processes(log)
    if isinstance(how, signal.Signals):
        assert all(map(alive, running))
        owner.send_signal(how)
    owner.wait(20)
    assert gone(running)
    [left] = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("left ")]
    until = time.monotonic() + 20
    # The server's keeper is the last to go.
    while Path(left).parent.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(left).parent.exists()


def test_a_keeper_that_is_told_to_end_twice_kills_at_once(tmp_path: Path, log: Path) -> None:
    (tmp_path / "stubborn").touch()
    server = start(tmp_path, log)
    server.wait(30)
    running = processes(log)
    [kept] = children("rlaif.engines.vllm.keeper")
    kept.terminate()
    # It waits for a server that ignores the signal.
    assert not gone(running, 0.5)
    kept.terminate()
    assert gone(running, keeper.GRACE_SECONDS / 2)
    server.stop()


def test_the_keeper_that_is_told_to_end_takes_the_server_with_it(tmp_path: Path, log: Path) -> None:
    server = start(tmp_path, log)
    server.wait(30)
    running = processes(log)
    [kept] = children("rlaif.engines.vllm.keeper")
    kept.terminate()
    assert gone(running)
    server.stop()
