"""`rlaif ui` as a process: it says where it is, ends by Ctrl-C, and names a port that is taken."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rlaif.core.errors import ConfigError
from rlaif.web.ui.app import open_server


def test_ctrl_c_ends_it_cleanly(runs: Path) -> None:
    command = [sys.executable, "-m", "rlaif", "ui", str(runs), "--port", "0", "--no-open"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    url = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
    with urllib.request.urlopen(url) as answer:
        assert answer.status == 200 and b"<h1>Runs</h1>" in answer.read()
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (0, "Stopped.\n", "")


def test_a_port_that_is_taken_is_named(runs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"127\.0\.0\.1:{port} cannot be listened on: .*--port"
        ):
            open_server([runs], port)
