"""The rule `code_tests`: runs an answer's Python code, and then tests, in a process of its own.

**This is no security boundary.** The process has limits, an empty environment and a folder of its
own, which keep a careless answer from doing harm: an endless loop, a flood of output, all memory.
They do not keep a malicious one from it: the process may read and write what its user may, and use
the network. Run models that you do not trust on a machine, or in a container, that you can lose.

Nothing runs unless `code_allowed` says so.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Literal

from pydantic import Field

from rlaif.constitution.final_answers import code_blocks
from rlaif.constitution.params import Params
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Prompt

RULE = "code_tests"
LANGUAGES = ("", "python", "python3", "py")
"""What a fence of Python code may be marked with."""
FILE_BYTES = 1 << 20
OPEN_FILES = 64
WAITING = 5.0
"""Seconds beyond twice the CPU time after which a process is ended that computes nothing."""


class CodeParams(Params):
    """`tests`: Python code that runs after the answer's and fails by an exception [the prompt's
    reference]. `code`: the answer's `last` fenced block, or `all` of them joined. `seconds` of CPU
    time, `memory_mb` of memory."""

    tests: str | None = Field(default=None, min_length=1)
    code: Literal["last", "all"] = "last"
    seconds: float = Field(default=5.0, gt=0, le=600)
    memory_mb: int = Field(default=512, ge=64, le=65536)


class _Permission:
    given = False


@contextmanager
def code_allowed(allowed: bool = True) -> Iterator[None]:
    """Within, answers' code may be run in this process and its threads, or may not."""
    before = _Permission.given
    _Permission.given = allowed
    try:
        yield
    finally:
        _Permission.given = before


def refusal(where: str) -> str:
    """What is said where code would run and is not allowed."""
    return (
        f"{where} runs the code of answers, on this machine and as this user. If you want that, "
        "say `allow_code: true` at the top of the experiment's file (--allow-code for a single "
        "command)"
    )


def code_tests(prompt: Prompt, text: str, p: CodeParams) -> float | None:
    """1 where the answer's code and then the tests run to their end, else 0; 0 for no code.

    The code is that of the last fence marked as Python or not at all (`code: all`: of all such);
    an answer without any fence is code as a whole. Raises ConfigError where it is not allowed.
    """
    tests = _tests(prompt.reference or "", p)
    if not tests.strip():
        return None
    if not _Permission.given:
        raise ConfigError(refusal(f"rule {RULE!r}"))
    code = read_code(text, p.code)
    return 0.0 if not code.strip() else float(run_tests(code, tests, p))


def code_reference(reference: str, p: CodeParams) -> bool:
    """Whether there are tests, in the parameters or in the reference."""
    return bool(_tests(reference, p).strip())


def _tests(reference: str, p: CodeParams) -> str:
    """The tests, out of their fence if they are in one."""
    if p.tests is not None:
        return p.tests
    return "\n".join(code for _, code in code_blocks(reference)) or reference


def read_code(text: str, which: str) -> str:
    """The Python code of an answer: its last fence or all, or the text where there is no fence."""
    blocks = code_blocks(text)
    if not blocks:
        return text
    code = [inside for language, inside in blocks if language in LANGUAGES]
    return "\n".join(code if which == "all" else code[-1:])


def run_tests(code: str, tests: str, p: CodeParams) -> bool:
    """Whether `code` and then `tests` run to their end within the limits of `p`.

    Raises RlaifError where no process can be started.
    """
    token = secrets.token_hex(16)
    wall = math.ceil(2 * p.seconds + WAITING)
    limits = {
        "cpu": math.ceil(p.seconds),
        "wall": wall,
        "memory": p.memory_mb << 20,
        "file": FILE_BYTES,
        "files": OPEN_FILES,
    }
    task = {"code": code, "tests": tests, "token": token, "limits": limits}
    folder = tempfile.mkdtemp(prefix="rlaif-code-")
    try:
        said = _run_driver(json.dumps(task).encode(), folder, wall, len(token))
    finally:
        _remove(folder)
    return said == token.encode()


def _run_driver(task: bytes, folder: str, seconds: int, most: int) -> bytes:
    """What the driver says, of which `most` bytes and one more are read; its group is ended."""
    driver = resources.files("rlaif.constitution").joinpath("code_driver.py").read_text("utf-8")
    # Not isolated (-I), which would leave the order of sets to chance; the folder is empty.
    command = [sys.executable, "-S", "-s", "-B", "-c", driver]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},
            close_fds=True,
            start_new_session=True,
        )
    except OSError as error:
        raise RlaifError(f"rule {RULE!r} cannot start {sys.executable}: {error}") from None
    assert process.stdin is not None, "a pipe"
    assert process.stdout is not None, "a pipe"
    timer = threading.Timer(seconds, _end_group, (process.pid,))
    timer.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(task)
            process.stdin.close()
        return process.stdout.read(most + 1)
    finally:
        timer.cancel()
        timer.join()
        # Before it is waited for: until then its id is no other process's.
        _end_group(process.pid)
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _remove(folder: str) -> None:
    """Remove a folder, whatever an answer has made of it."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # Thousands of folders within one another, or some that cannot be read.
        for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            if os.path.exists(folder):
                subprocess.run([*command, "--", folder], stderr=subprocess.DEVNULL)
