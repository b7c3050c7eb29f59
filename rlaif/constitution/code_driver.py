"""Runs an answer's code and then its tests. A program of its own: it is run by name of its file,
with nothing but the standard library, by `code_rule`.

Standard input has one JSON object; the token in it goes to standard output once the tests have
passed, and nothing else does.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import types

NOBODY = 65534
KEEP_CAPABILITIES = 8
CAPABILITIES_VERSION = 0x20080522
READ_ALL = 1 << 2


def _drop_root() -> None:
    """Become a user who owns nothing: the kernel bounds no process count of root's.

    What root can read stays readable, as Python's library may be in root's home. Raises OSError or
    AttributeError where the system has no such calls.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.chown(".", NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    # Effective and permitted, and nothing to inherit; see capset(2).
    libc.capset(header, (ctypes.c_uint32 * 6)(READ_ALL, READ_ALL, 0, 0, 0, 0))


def _set_limits(most: dict[str, int]) -> None:
    if os.getuid() == 0:
        # In a namespace without that user the time and the memory are bounded all the same.
        with contextlib.suppress(OSError, AttributeError):
            _drop_root()
    # For a process whose parent was killed, and ends it no more.
    signal.alarm(most["wall"])
    limits = {
        "RLIMIT_CPU": most["cpu"],
        "RLIMIT_AS": most["memory"],
        "RLIMIT_FSIZE": most["file"],
        "RLIMIT_NOFILE": most["files"],
        # Of all processes of the user, so none more can be started.
        "RLIMIT_NPROC": 1,
        "RLIMIT_CORE": 0,
    }
    for name, limit in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            # Some systems have the name and not the limit.
            continue


def _run(code: str, tests: str) -> None:
    # A module of its own: not `__main__`, whose guarded part would run and wait for input.
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    random.seed(0)
    exec(compile(code, "answer.py", "exec"), module.__dict__)
    exec(compile(tests, "tests.py", "exec"), module.__dict__)


def main() -> None:
    """Run what standard input says."""
    task = json.loads(sys.stdin.buffer.read())
    said = os.dup(1)
    os.set_inheritable(said, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    os.environ.clear()
    _set_limits(task["limits"])
    _run(task["code"], task["tests"])
    os.write(said, task["token"].encode())
    # What the answer has left to do at exit is not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
