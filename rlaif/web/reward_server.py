"""What a served reward model is asked, and answers: OpenRLHF's `/get_reward`, verl's `/classify`,
an OpenAI-style chat endpoint that answers with the reward.

Requests that come while a batch is computed wait and are computed together. `reward_app` has the
sockets.

`RewardClient` asks a server of either kind as TRL's trainers call reward functions.
"""

from __future__ import annotations

import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any, NamedTuple

import jinja2

from rlaif.core.chat import is_unicode
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.numbers import sigmoid
from rlaif.core.records import Message, content_hash
from rlaif.data.turns import conversation
from rlaif.engines.base import RewardResult
from rlaif.engines.local.reward import RewardEngine

SHORTEST = 8
"""Characters of a prompt that was cut on its left by which what is left of it is looked for."""
Row = tuple[list[int], int]
"""Token ids of prompt and answer, and how many are the prompt's."""


class BadRequest(RlaifError):
    """What a client sent cannot be scored; the message says why."""


@dataclass
class _Job:
    rows: Sequence[Row]
    results: Future[list[RewardResult]] = field(default_factory=Future)


@dataclass
class Counts:
    """What the server did, as `/metrics` says it."""

    requests: int = 0
    refused: int = 0
    answers: int = 0
    batches: int = 0
    seconds: float = 0.0

    def text(self) -> str:
        """The counts in Prometheus' text format."""
        about = {
            "requests": "HTTP requests for rewards.",
            "refused": "Requests that could not be answered.",
            "answers": "Answers scored.",
            "batches": "Batches computed.",
            "seconds": "Seconds of computing.",
        }
        lines = []
        for name, said in about.items():
            full = f"rlaif_reward_{name}_total"
            lines += [f"# HELP {full} {said}", f"# TYPE {full} counter"]
            lines.append(f"{full} {getattr(self, name)}")
        return "\n".join(lines) + "\n"


class RewardService:
    """One reward model, asked by many threads and computed by one."""

    def __init__(self, engine: RewardEngine):
        self.engine = engine
        self.counts = Counts()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work_through_jobs, daemon=True)
        self._worker.start()

    @property
    def healthy(self) -> bool:
        """Whether the thread that computes is alive."""
        return self._worker.is_alive()

    def close(self) -> None:
        """Answer what was asked, then stop."""
        self._jobs.put(None)
        self._worker.join()
        self.engine.close()

    def text_rows(self, texts: Sequence[str], prompts: Sequence[str] | None) -> list[Row]:
        """Rendered texts of prompt and answer, as trainers hold them. Raises BadRequest.

        A trainer decodes padded ids and may cut a long prompt on its left: blanks of padding are
        taken off, and what is left of a prompt is looked for at the beginning of its text. Only a
        model whose gate looks at the prompt needs it at all.
        """
        if prompts is None and self.engine.reads_prompt:
            raise BadRequest("this model's gate looks at the prompt: send `prompts` as well")
        given = prompts if prompts is not None else [""] * len(texts)
        if len(given) != len(texts):
            raise BadRequest(f"{len(texts)} texts in `query` and {len(given)} in `prompts`")
        return [self._text_row(text, prompt) for text, prompt in zip(texts, given, strict=True)]

    def _text_row(self, text: str, prompt: str) -> Row:
        text = self._without_end_padding(text)
        if not text.startswith(prompt) or not prompt:
            text, prompt = self._without_start_padding(text), self._without_start_padding(prompt)
        start = left_of(prompt, text)
        if not start and self.engine.reads_prompt:
            raise BadRequest(
                "a text of `query` does not begin with its text in `prompts`, nor with the end of "
                "it, and this model's gate looks at the prompt"
            )
        row = self.engine.text_row(text, start)
        if not row[0]:
            raise BadRequest("a text of `query` is empty")
        return row

    def _without_start_padding(self, text: str) -> str:
        while mark := next((m for m in self._marks if text.startswith(m)), ""):
            text = text.removeprefix(mark)
        return text

    def _without_end_padding(self, text: str) -> str:
        """The text without padding after it; an answer that has ended keeps one end token."""
        ended, end = False, self.engine.tokenizer.eos_token
        while mark := next((m for m in self._marks if text.endswith(m)), ""):
            ended, text = ended or mark == end, text.removesuffix(mark)
        return text + end if ended else text

    @property
    def _marks(self) -> tuple[str, ...]:
        tokenizer = self.engine.tokenizer
        return tuple(mark for mark in (tokenizer.pad_token, tokenizer.eos_token) if mark)

    def _token_ids(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = self.engine.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def classify_row(self, given: str | list[int], special: bool) -> Row:
        """A whole conversation as text, or as token ids. Raises BadRequest."""
        if self.engine.reads_prompt:
            raise BadRequest(
                "this model's gate looks at the prompt, which /classify does not tell apart: use "
                "/get_reward with `messages`, or with `query` and `prompts`"
            )
        ids = self._token_ids(given, special) if isinstance(given, str) else given
        known = len(self.engine.tokenizer)
        if not ids or not all(0 <= i < known for i in ids):
            raise BadRequest(f"`input` must hold text, or token ids from 0 to {known - 1}")
        return ids, 1

    def chat_row(self, messages: list[Message]) -> Row:
        """A conversation that ends with the answer. Raises BadRequest."""
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise BadRequest("`messages` must end with the assistant's turn that is to be scored")
        try:
            return self.engine.rendered(messages)[1:]
        except (RlaifError, jinja2.TemplateError) as error:
            raise BadRequest(f"the chat template cannot write these messages: {error}") from None

    def submit(self, rows: Sequence[Row]) -> Future[list[RewardResult]]:
        """The rows' rewards, in their order, when they are computed. The future raises RlaifError
        where their batch could not be."""
        job = _Job(rows)
        self._jobs.put(job)
        return job.results

    def count(self, **more: int) -> None:
        """Add to the counts."""
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)

    def _work_through_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, last = [job], False
            while not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    last = True
                    break
                jobs.append(following)
            self._compute_batch(jobs)
            if last:
                return

    def _compute_batch(self, jobs: Sequence[_Job]) -> None:
        rows = {f"{i}/{k}": row for i, job in enumerate(jobs) for k, row in enumerate(job.rows)}
        began = perf_counter()
        failed: str | None = None
        try:
            found = {r.request_id: r for batch in self.engine.reward_ids(rows) for r in batch}
        except Exception as error:
            # One batch too large for the memory must not end the server, nor leave anyone waiting.
            failed = f"the batch could not be computed: {error}"
        with self._lock:
            self.counts.batches += 1
            self.counts.answers += len(rows)
            self.counts.seconds += perf_counter() - began
        for i, job in enumerate(jobs):
            # A client that has gone has cancelled its future.
            if not job.results.set_running_or_notify_cancel():
                continue
            if failed is not None:
                job.results.set_exception(RlaifError(failed))
            else:
                job.results.set_result([found[f"{i}/{k}"] for k in range(len(job.rows))])


def left_of(prompt: str, text: str) -> str:
    """The longest end of a prompt that a text begins with: all of it, or what was left when a
    trainer cut it on its left; an empty text where there is none."""
    if text.startswith(prompt):
        return prompt
    start = prompt.find(text[:SHORTEST]) if len(text) >= SHORTEST else -1
    while start >= 0:
        if text.startswith(prompt[start:]):
            return prompt[start:]
        start = prompt.find(text[:SHORTEST], start + 1)
    return ""


class Asked(NamedTuple):
    """The rows of a request, and what their results are answered with."""

    rows: list[Row]
    answer: Callable[[Sequence[RewardResult]], dict[str, Any]]


def asked(service: RewardService, path: str, body: Any) -> Asked | None:
    """What a POST to `path` asks, None where there is no such path. Raises BadRequest."""
    read = READERS.get(path)
    if read is None:
        return None
    if not isinstance(body, dict):
        raise BadRequest("a JSON object was expected")
    return read(service, body)


def all_scored(results: Sequence[RewardResult]) -> Sequence[RewardResult]:
    """The results, where each has a reward. Raises BadRequest."""
    failed = next((r for r in results if r.reward is None), None)
    if failed is not None:
        raise BadRequest(failed.error or "an answer could not be scored")
    return results


def _ask_rewards(service: RewardService, body: Mapping[str, Any]) -> Asked:
    """OpenRLHF's form, and conversations in `messages` in place of rendered texts."""
    if "messages" in body:
        given = body["messages"]
        if not isinstance(given, list):
            raise BadRequest("`messages` must be a list of conversations")
        rows = [service.chat_row(_read_turns(messages)) for messages in given]
    else:
        texts, prompts = body.get("query"), body.get("prompts")
        if not _are_texts(texts) or not (prompts is None or _are_texts(prompts)):
            raise BadRequest('{"query": [texts]} was expected, and "prompts" as a list of texts')
        _refuse_cut_text([*texts, *(prompts or [])])  # type: ignore[misc]
        rows = service.text_rows(texts, prompts)  # type: ignore[arg-type]
    return Asked(rows, _answer_rewards)


def _answer_rewards(found: Sequence[RewardResult]) -> dict[str, Any]:
    rewards = [r.reward for r in found]
    # OpenRLHF reads all three names; `scores` filter prompts, `extra_logs` are plotted.
    names = list(found[0].parts) if found else []
    logs = {name: [r.parts[name] for r in found] for name in names}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


def _ask_classes(service: RewardService, body: Mapping[str, Any]) -> Asked:
    """vLLM's form, as verl asks: text or token ids in `input`, one or several. The reward stands in
    `probs` as it is; `use_activation: true` asks for its sigmoid."""
    given = body.get("input")
    single = isinstance(given, str) or _are_token_ids(given)
    several: list[Any] = [given] if single else given if isinstance(given, list) else []
    if not several or not all(isinstance(one, str) or _are_token_ids(one) for one in several):
        raise BadRequest("`input` must be a text or a list of token ids, or a list of them")
    special = body.get("add_special_tokens", True)
    squeezed = body.get("use_activation", False)
    if not isinstance(special, bool) or not isinstance(squeezed, bool | None):
        raise BadRequest("`add_special_tokens` and `use_activation` must be true or false")
    _refuse_cut_text([one for one in several if isinstance(one, str)])
    rows = [service.classify_row(one, special) for one in several]

    def answer(found: Sequence[RewardResult]) -> dict[str, Any]:
        rewards = [sigmoid(r.reward or 0.0) if squeezed else r.reward for r in found]
        return {
            "id": "classify-" + content_hash(several),
            "object": "list",
            "created": int(time()),
            "model": service.engine.name,
            "data": [
                {"index": i, "label": "reward", "probs": [reward], "num_classes": 1}
                for i, reward in enumerate(rewards)
            ],
            "usage": _token_usage(sum(len(ids) for ids, _ in rows)),
        }

    return Asked(rows, answer)


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _refuse_cut_text(texts: Sequence[str]) -> None:
    """Raises BadRequest where a text has half a character in it."""
    if not is_unicode(texts):
        raise BadRequest("a text has half a surrogate pair in it, which no tokenizer takes")


def _read_turns(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise BadRequest("`messages` must be a list of turns with role and content")
    try:
        return conversation(value, "user", "messages", "request")
    except ConfigError as error:
        raise BadRequest(str(error)) from None


def _ask_chat(service: RewardService, body: Mapping[str, Any]) -> Asked:
    messages = _read_turns(body.get("messages"))
    row = service.chat_row(messages)

    def answer(found: Sequence[RewardResult]) -> dict[str, Any]:
        content = json.dumps({"reward": found[0].reward, **found[0].parts})
        message = {"role": "assistant", "content": content}
        return {
            "id": "reward-" + content_hash(messages),
            "object": "chat.completion",
            "created": int(time()),
            "model": service.engine.name,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _token_usage(len(row[0])),
        }

    return Asked([row], answer)


def _token_usage(count: int) -> dict[str, int]:
    return {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}


READERS: dict[str, Callable[[RewardService, Mapping[str, Any]], Asked]] = {
    "/get_reward": _ask_rewards,
    "/classify": _ask_classes,
    "/v1/chat/completions": _ask_chat,
}
"""How the body of a POST to each path is read."""


class RewardClient:
    """`RewardClient(url)(prompts=..., completions=...)` gives a list of rewards: a reward function
    for TRL's online trainers. `url` is that of `rlaif serve reward`; `timeout` is in seconds."""

    def __init__(self, url: str, timeout: float = 600.0):
        self.url = url.rstrip("/")
        self.timeout = timeout
        # TRL names its metrics by this.
        self.__name__ = "rlaif_reward"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **more: Any
    ) -> list[float]:
        """The reward of each completion. Prompts and completions are texts or lists of turns, as
        in TRL; what else a trainer passes is not looked at. Raises RlaifError."""
        rows = [
            [*_message_turns(p, "user"), *_message_turns(c, "assistant")]
            for p, c in zip(prompts, completions, strict=True)
        ]
        body = json.dumps({"messages": rows}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/get_reward", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                rewards: list[float] = json.load(answer)["rewards"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise RlaifError(f"{self.url} refused the answers ({error.code}): {said}") from None
        except OSError as error:
            raise RlaifError(f"{self.url} cannot be reached: {error}") from None
        return rewards


def _message_turns(value: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
