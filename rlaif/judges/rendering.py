"""Renders Jinja2 templates within limits of time, memory and output.

A template whose cost is plainly bounded by its inputs (see `bounded`) is rendered here, at no price
beyond its own. Any other one can run for ever or fill the memory, in C code that no count inside
the sandbox reaches: a process of its own renders it, with limits that the system keeps.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import pickle
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from types import GeneratorType, TracebackType
from typing import Any, cast

import jinja2
from jinja2 import meta, nodes, pass_context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
"""How long one rendering may take, by the clock."""
MEMORY = 256 << 20
"""Bytes that a rendering may take beside its inputs."""
OUTPUT = 16_000_000
"""Characters that a template may come to."""

LISTS = frozenset({"principles", "examples", "scale", "levels", "responses", "items", "classes"})
"""Variables that are short lists: a loop over anything else may be as long as a text."""
_FILTERS = frozenset({
    "abs", "capitalize", "count", "d", "default", "e", "escape", "first", "float", "indent", "int",
    "join", "last", "length", "list", "lower", "replace", "reverse", "round", "sort", "string",
    "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount",
})  # fmt: skip
_METHODS = frozenset({
    "capitalize", "endswith", "items", "keys", "lower", "lstrip", "replace", "rstrip", "split",
    "startswith", "strip", "title", "upper", "values",
})  # fmt: skip
_GROWING = frozenset({"e", "escape", "indent", "join", "replace", "tojson"})
"""Filters and methods that write a text several times as long: one upon another multiplies."""
_PLAIN = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or,
    nodes.Not, nodes.Neg, nodes.Pos, nodes.Test, nodes.Sub, nodes.Div, nodes.FloorDiv,
)  # fmt: skip
_LONGEST_CONSTANT = 1000
"""A number above it, or a text that is longer, is no width or separator that can be trusted."""
_LONGEST_PART = 40
"""The same of what stands for each character or line of a text."""
_FILE = "<template>"
_SIZE = 8


class RenderingError(Exception):
    """A template that could not be rendered, why, and the line of its source."""

    def __init__(self, reason: str, line: int | None):
        super().__init__(reason)
        self.line = line


def render(source: str, values: Mapping[str, Any]) -> str:
    """`source` with `values` filled in. Raises RenderingError, for what an expression raises and
    for each of the limits."""
    if is_bounded(source):
        return _render_source(source, values)
    return _start_worker().render(source, values)


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """Jinja2 for templates of users: nothing is evaluated before it is rendered."""
    found = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=False,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        # Neither the optimiser nor the compiler may compute a constant such as "x" * 10**9: the
        # one is off, and the other leaves what has to be finished with the context.
        optimized=False,
        finalize=_as_it_is,
    )
    # Both draw random numbers without a seed: the same call would not be the same text twice.
    found.globals.pop("lipsum")
    found.filters.pop("random")
    return found


@pass_context
def _as_it_is(context: Any, value: Any) -> Any:
    return value


@lru_cache(maxsize=256)
def compiled(source: str) -> jinja2.Template:
    """The template of a source. Raises jinja2's errors of syntax."""
    return environment().from_string(source)


def undeclared(tree: nodes.Template) -> set[str]:
    """The variables that a template uses and does not set itself."""
    seen = meta.TrackingCodeGenerator(environment())
    # It brings an optimiser of its own.
    seen.optimizer = None
    seen.visit(tree)
    return seen.undeclared_identifiers


@lru_cache(maxsize=256)
def is_bounded(source: str) -> bool:
    """`bounded` of a source."""
    return bounded(environment().parse(source))


def bounded(node: nodes.Node, looped: bool = False) -> bool:
    """Whether rendering takes no more than a small multiple of its inputs: loops over short lists
    and none within another, no text multiplied, nothing defined in terms of itself, and only
    filters and methods of cost that is linear, with constants as arguments, of which no two make
    one text longer."""
    if isinstance(node, nodes.For):
        short = isinstance(node.iter, nodes.Name) and node.iter.name in LISTS
        if looped or node.recursive or not short:
            # Loops within one another multiply, and one over a text has a turn for each character.
            return False
        # A loop over a name that the loop itself hides is over something else.
        targets = [node.target, *node.target.find_all(nodes.Name)]
        if {n.name for n in targets if isinstance(n, nodes.Name)} & LISTS:
            return False
        bodies = [*node.body, *node.else_, *([node.test] if node.test is not None else [])]
        return all(bounded(child, True) for child in bodies)
    if isinstance(node, nodes.Const):
        return True
    if isinstance(node, nodes.Tuple | nodes.List):
        return all(isinstance(item, nodes.Const) for item in node.items)
    # A product of a text and a number is as long as the number says.
    if isinstance(node, nodes.Mul):
        return _is_small(node.left) and _is_small(node.right)
    if isinstance(node, nodes.Filter):
        if node.name not in _FILTERS or node.node is None or not _has_small_constants(node):
            return False
        return bounded(node.node, looped) and not _multiplies_text(node, node.name, node.node)
    if isinstance(node, nodes.Call):
        called = node.node
        if not isinstance(called, nodes.Getattr) or called.attr not in _METHODS:
            return False
        known = _has_small_constants(node) and bounded(called.node, looped)
        return known and not _multiplies_text(node, called.attr, called.node)
    if isinstance(node, (*_PLAIN, nodes.Add, nodes.Concat)):
        return all(bounded(child, looped) for child in node.iter_child_nodes())
    return False


def _has_small_constants(node: nodes.Filter | nodes.Call) -> bool:
    return not node.dyn_args and not node.dyn_kwargs and all(map(_is_small, _given_to(node)))


def _given_to(node: nodes.Filter | nodes.Call) -> list[nodes.Expr]:
    return [*node.args, *(pair.value for pair in node.kwargs)]


def _multiplies_text(node: nodes.Filter | nodes.Call, name: str, of: nodes.Node) -> bool:
    """Whether a filter or method may make a text many times as long: what it writes for a part is
    long, or it works on what another one has made longer."""
    if name not in _GROWING:
        return False
    inner = [of, *of.find_all((nodes.Filter, nodes.Getattr))]
    names = {n.name if isinstance(n, nodes.Filter) else getattr(n, "attr", "") for n in inner}
    long = not all(_is_small(value, _LONGEST_PART) for value in _given_to(node))
    return long or bool(names & _GROWING)


def _is_small(node: nodes.Node, most: int = _LONGEST_CONSTANT) -> bool:
    if not isinstance(node, nodes.Const):
        return False
    value = node.value
    size = len(value) if isinstance(value, str) else value
    return value is None or (isinstance(size, int | float) and abs(size) <= most)


def _render_source(source: str, values: Mapping[str, Any]) -> str:
    template: jinja2.Template | None = None
    try:
        template = compiled(source)
        return _write_text(template, values)
    except RenderingError:
        raise
    except MemoryError as error:
        reason = f"it takes more than {MEMORY >> 20} MB of memory"
        raise RenderingError(reason, _find_line(template, error.__traceback__)) from None
    except Exception as error:
        # An expression may raise anything: 1 / 0, "a".missing(), an assertion of a filter.
        raise RenderingError(str(error), _find_line(template, error.__traceback__)) from None


def _write_text(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    parts, size = [], 0
    context = template.new_context(dict(values))
    stream = cast("GeneratorType[str, None, None]", template.root_render_func(context))
    for part in stream:
        parts.append(part)
        size += len(part)
        if size > OUTPUT:
            # The generator waits where it gave the part.
            number = stream.gi_frame.f_lineno if stream.gi_frame is not None else 1
            raise RenderingError(
                f"it writes more than {OUTPUT:,} characters",
                template.get_corresponding_lineno(number),
            )
    return "".join(parts)


def _find_line(template: jinja2.Template | None, trace: TracebackType | None) -> int | None:
    """The template's line in the innermost of its frames."""
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            found = trace.tb_lineno
        trace = trace.tb_next
    return None if found is None or template is None else template.get_corresponding_lineno(found)


class _Worker:
    """The process that renders what is not bounded; it is started when it is needed, and again
    after a rendering that it did not survive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, source: str, values: Mapping[str, Any]) -> str:
        """`render` there."""
        with self._lock:
            process = self._start_process()
            try:
                task = pickle.dumps((source, dict(values)))
                # The length goes before the task, so that the worker knows when it has all of it.
                os.write(cast(Any, process.stdin).fileno(), len(task).to_bytes(_SIZE, "big"))
                cast(Any, process.stdin).write(task)
                answer = _receive_answer(process, time.monotonic() + SECONDS)
            except TimeoutError:
                line = _hanging_at(process, source)
                self.close()
                reason = f"it takes longer than {SECONDS:g} seconds"
                raise RenderingError(reason, line) from None
            except (BrokenPipeError, EOFError):
                self.close()
                reason = f"it takes more than {MEMORY >> 20} MB of memory"
                raise RenderingError(reason, None) from None
            except BaseException:
                # What comes late must not be taken for the answer to another question.
                self.close()
                raise
        text, reason, line = answer
        if text is None:
            raise RenderingError(reason, line)
        return cast(str, text)

    def _start_process(self) -> subprocess.Popen[bytes]:
        # `poll` tells whether a rendering has killed it since.
        if self._process is None or self._process.poll() is not None:
            places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": places},
                # An interrupt is for the parent alone; the worker ends when its input does.
                start_new_session=True,
            )
            # Its start is no part of a rendering.
            _receive_answer(self._process, None)
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@lru_cache(maxsize=1)
def _start_worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.close)
    return worker


def _receive_answer(process: subprocess.Popen[bytes], until: float | None) -> Any:
    """What the worker answers. Raises TimeoutError and EOFError."""
    size = int.from_bytes(_read_bytes(process, _SIZE, until), "big")
    return pickle.loads(_read_bytes(process, size, until))


def _read_bytes(process: subprocess.Popen[bytes], size: int, until: float | None) -> bytes:
    pipe = cast(Any, process.stdout).fileno()
    found = bytearray()
    while len(found) < size:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        part = os.read(pipe, size - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def _hanging_at(process: subprocess.Popen[bytes], source: str) -> int | None:
    """The template's line at which the worker is busy, in Python or in C."""
    # faulthandler answers the signal in C code too, where no Python handler would run.
    process.send_signal(signal.SIGUSR1)
    pipe, said = cast(Any, process.stderr).fileno(), b""
    # On a busy machine the worker may wait for its turn.
    until = time.monotonic() + 5.0
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 16)
        said += part
        found = re.search(rf'"{_FILE}", line (\d+) in'.encode(), said)
        if found is not None:
            return compiled(source).get_corresponding_lineno(int(found.group(1)))
        if not part:
            break
    return None


def main() -> None:
    """Render for the process that started this one, until its end."""
    with os.fdopen(os.dup(1), "wb") as answers:
        # What is printed while a template renders must not get between the answers.
        os.dup2(2, 1)
        faulthandler.register(signal.SIGUSR1, all_threads=False)
        # A template's texts may hold what the sandbox gives them, such as examples.
        import rlaif.constitution.model  # noqa: F401

        # Once all is imported, so that the limit is for renderings alone.
        limit = _address_space() + MEMORY
        _send_value(answers, "ready")
        while head := sys.stdin.buffer.read(_SIZE):
            task = sys.stdin.buffer.read(int.from_bytes(head, "big"))
            # Values that are unpickled take several times the bytes of their pickle, and are no
            # fault.
            resource.setrlimit(resource.RLIMIT_AS, (limit + 8 * len(task), resource.RLIM_INFINITY))
            source, values = pickle.loads(task)
            try:
                text = _render_source(source, values)
                answer: tuple[str | None, str, int | None] = (text, "", None)
            except RenderingError as error:
                answer = (None, str(error), error.line)
            _send_value(answers, answer)


def _send_value(answers: Any, value: Any) -> None:
    data = pickle.dumps(value)
    answers.write(len(data).to_bytes(_SIZE, "big") + data)
    answers.flush()


def _address_space() -> int:
    """Bytes of addresses that this process has now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 32


if __name__ == "__main__":
    main()
