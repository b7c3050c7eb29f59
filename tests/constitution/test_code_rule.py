"""Answers' code in a process of its own: what passes, and what the limits and the refusal do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.constitution import code_rule
from rlaif.constitution.code_rule import code_allowed, read_code
from rlaif.constitution.rules import apply_check, reads_reference
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, make_prompt

TESTS = "assert up(1) == 2\nassert up(-1) == 0"
GOOD = "def up(x):\n    return x + 1\n"


def prompt_with(reference: str | None) -> Prompt:
    return make_prompt([{"role": "user", "content": "Write up(x)."}], reference=reference)


def score(answer: str, reference: str | None = TESTS, **params: Any) -> float | None:
    with code_allowed():
        given = {"seconds": 1.0, **params}
        return apply_check("code_tests", given, prompt_with(reference), answer)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the answers' folders are made; none is left at the end."""
    made = tmp_path / "made"
    made.mkdir(mode=0o755)
    # The user that root's answers run as has to be let through.
    for parent in [made, *made.parents]:
        if parent != parent.parent and parent.owner() == made.owner() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    monkeypatch.setattr("tempfile.tempdir", str(made))
    yield made
    assert list(made.iterdir()) == []


PASSING = {
    "plain": GOOD,
    "a fence": f"Here you are:\n\n```python\n{GOOD}```\n\nIt adds one.",
    "a fence without a language": f"```\n{GOOD}```",
    "an open fence": f"```python\n{GOOD}",
    "the last of two fences": f"```python\ndef up(x): return x\n```\nBetter:\n```python\n{GOOD}```",
    "a fence of something else": f"```python\n{GOOD}```\nRun it:\n```bash\npip install up\n```",
    "tildes": f"~~~py\n{GOOD}~~~",
    "a longer fence": f"````python\nS = '''\n```\n'''\n{GOOD}````",
    "a guarded main": f"{GOOD}\nif __name__ == '__main__':\n    input()\n    1 / 0",
    "much output": f"{GOOD}\nimport sys\nfor _ in range(300):\n    print('y' * 10_000)\n"
    "    print('z' * 10_000, file=sys.stderr)",
    "a class": f"from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n{GOOD}",
    "a file of its own": f"open('x', 'w').write('x' * 1000)\nassert open('x').read()\n{GOOD}",
    "a folder that cannot be read": f"import os\nos.mkdir('d')\nos.mkdir('d/e')\nos.chmod('d', 0)\n"
    f"{GOOD}",
    "an empty environment": f"import os\nassert not os.environ\n{GOOD}",
    "an empty folder": f"import os\nassert os.listdir('.') == []\n{GOOD}",
}
FAILING = {
    "wrong": "def up(x): return x",
    "right for one test only": "def up(x): return 2",
    "no such function": "def down(x): return x",
    "no code": "I would add one.",
    "no Python": f"```javascript\n{GOOD}```",
    "the first of two fences": f"```python\n{GOOD}```\n```python\ndef up(x): return x\n```",
    "bad syntax": "def up(x: return",
    "an exit": "raise SystemExit(0)",
    "an exit that nothing hears": "import os\nos._exit(0)",
    "an exit in the function": "import sys\ndef up(x): sys.exit(0)",
    "a kill": "import os\nos.kill(os.getpid(), 9)",
    "endless recursion": "def up(x): return up(x)",
    "an endless loop": "while True: pass",
    "an endless loop that catches": "while True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "1 GiB of memory": f"x = bytearray(1 << 30)\n{GOOD}",
    "all memory": f"x = []\nwhile True: x.append(bytearray(1 << 20))\n{GOOD}",
    "a large file": f"f = open('x', 'wb')\nf.write(bytes(1 << 22))\nf.flush()\n{GOOD}",
    "many open files": f"fs = [open(str(i), 'w') for i in range(100)]\n{GOOD}",
    "a process": f"import os\nif os.fork() == 0: os._exit(0)\n{GOOD}",
    "a command": f"import subprocess\nsubprocess.run(['true'], check=True)\n{GOOD}",
    "a thread": f"import threading\nthreading.Thread(target=print).start()\n{GOOD}",
    # Bounded, should a machine's kernel not bound them.
    "many processes": f"import os, time\nfor _ in range(100):\n"
    f"    if os.fork() == 0: time.sleep(20); os._exit(0)\n{GOOD}",
    "many processes, caught": "import os, time\nstarted = 0\nfor _ in range(100):\n    try:\n"
    "        if os.fork() == 0: time.sleep(20); os._exit(0)\n        started += 1\n"
    "    except OSError: pass\ndef up(x): return x + 1 if started else None",
    "what it is asked": f"input()\n{GOOD}",
    "a package": f"import numpy\n{GOOD}",
    "a null byte": f"{GOOD}\0",
    "a lone surrogate": f"{GOOD}# \ud800",
}


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
def test_code_that_passes(answer: str) -> None:
    assert score(answer) == 1.0


@pytest.mark.parametrize("answer", FAILING.values(), ids=FAILING)
def test_code_that_fails(answer: str) -> None:
    assert score(answer) == 0.0


def test_a_sleeping_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_rule, "WAITING", 0.0)
    began = time.monotonic()
    assert score("import time\ntime.sleep(60)", seconds=0.5) == 0.0
    # By the clock of the answer, far below what it wanted to sleep.
    assert time.monotonic() - began < 30


def test_an_answer_that_outlives_this_process_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process has a clock of its own, for the case that ours was killed."""
    monkeypatch.setattr(code_rule, "WAITING", 0.0)
    monkeypatch.setattr("threading.Timer.start", lambda timer: None)
    monkeypatch.setattr("threading.Timer.join", lambda timer: None)
    assert score("import time\ntime.sleep(60)", seconds=0.5) == 0.0


def test_output_is_bounded_wherever_it_goes() -> None:
    flood = (
        "import os\nfor fd in range(64):\n    try:\n        while True: os.write(fd, b'1' * 65536)"
    )
    assert score(f"{flood}\n    except OSError: pass\n{GOOD}") == 0.0


def test_no_descriptor_of_ours_is_inherited() -> None:
    # Open and inheritable here: a file, a socket.
    with socket.socket() as one, open(os.devnull) as other:
        for handle in (one.fileno(), other.fileno()):
            os.set_inheritable(handle, True)
        check = (
            "import os\ndef open_ones():\n    found = []\n    for fd in range(64):\n"
            "        try: found.append((fd, os.fstat(fd).st_ino))\n        except OSError: pass\n"
            "    return found\n"
        )
        # Its standard streams, which lead nowhere, and the pipe that takes the token.
        assert score(check, "assert len(open_ones()) == 4 and open_ones()[3][0] == 3") == 1.0
        assert score(check, "assert len({inode for _, inode in open_ones()[:3]}) == 1") == 1.0


def test_writing_elsewhere_is_not_prevented_and_the_page_says_so(tmp_path: Path) -> None:
    open_to_all = tmp_path / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert score(f"open({str(open_to_all / 'x')!r}, 'w').write('x')\n{GOOD}") == 1.0
    assert (open_to_all / "x").read_text() == "x"
    page = Path(__file__).parents[2] / "docs" / "rules.md"
    assert "This is no security boundary" in page.read_text("utf-8")


def test_a_token_cannot_be_guessed_from_the_last_run() -> None:
    told = "import os\nos.write(3, b'0' * 32)\nos._exit(0)"
    assert score(told) == 0.0


def test_sets_and_random_numbers_are_the_same_each_time() -> None:
    draw = "import random\ndef draw(): return list({'a', 'b', 'c', 'd', 'e'}), random.random()"
    found = subprocess.run(
        [sys.executable, "-c", "import random; random.seed(0); print(random.random())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert score(draw, f"assert draw()[1] == {found}") == 1.0
    ordered = subprocess.run(
        [sys.executable, "-c", "print(list({'a', 'b', 'c', 'd', 'e'}))"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "0"},
    ).stdout
    assert score(draw, f"assert draw()[0] == {ordered}") == 1.0


def test_tests_come_from_the_parameters_or_the_reference() -> None:
    assert score(GOOD, None) is None
    assert score(GOOD, "  ") is None
    assert score(GOOD, None, tests=TESTS) == 1.0
    assert score(GOOD, "assert False", tests=TESTS) == 1.0
    assert score(GOOD, f"```python\n{TESTS}\n```") == 1.0
    assert score(GOOD, "```python\nassert up(1) == 3\n```") == 0.0


def test_tests_can_be_read_from_the_parameters_or_the_reference() -> None:
    for reference, params, readable in (
        (None, {}, False),
        (TESTS, {}, True),
        (None, {"tests": TESTS}, True),
        ("```python\n \n```", {}, False),
    ):
        assert reads_reference("code_tests", params, prompt_with(reference)) is readable


def test_all_fences_are_joined_if_asked() -> None:
    answer = "```python\nY = 1\n```\nand\n```python\ndef up(x): return x + Y\n```"
    assert score(answer) == 0.0
    assert score(answer, code="all") == 1.0
    assert read_code("a\n```sh\nls\n```", "all") == ""
    assert read_code("x = 1", "last") == "x = 1"
    for mark in ("", "py", "Python", "python3"):
        assert read_code(f"Here:\n```{mark}\nx = 1\n```", "last") == "x = 1\n"


def test_more_memory_is_had_for_the_asking() -> None:
    answer = f"x = bytearray(600 << 20)\n{GOOD}"
    # To get so much may take over a second of CPU.
    assert score(answer, seconds=30) == 0.0
    assert score(answer, seconds=30, memory_mb=1024) == 1.0


def test_nothing_runs_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(code_rule, "_run_driver", fail)
    with pytest.raises(ConfigError, match="allow_code: true"):
        apply_check("code_tests", {}, prompt_with(TESTS), GOOD)
    with code_allowed(), code_allowed(False), pytest.raises(ConfigError, match="allow_code"):
        apply_check("code_tests", {}, prompt_with(TESTS), GOOD)
    with code_allowed(), pytest.raises(AssertionError, match="something ran"):
        apply_check("code_tests", {}, prompt_with(TESTS), GOOD)
    with pytest.raises(ConfigError, match="allow_code"):
        apply_check("code_tests", {}, prompt_with(TESTS), GOOD)
