"""Episodes: answers of several turns, played with the environment that a prompt names.

All episodes that are not over take one turn in one call of the engine. The model goes on from the
very ids that it has read and written, so that training sees what was sampled. Every turn is stored
as it comes (`turns.jsonl`); after a kill the episodes are played again from what is stored, and
only what is missing is sampled, in the batches of an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from msgspec import structs

from rlaif.core.chat import CUT
from rlaif.core.errors import EngineError
from rlaif.core.records import Completion, Message, Prompt, Turn, content_hash
from rlaif.core.store import StepFolder
from rlaif.engines.base import Engine, GenerateRequest, GenerateResult, Sampler, Sampling
from rlaif.environments.play import Play

TURNS = "turns"
"""The file of sampled turns."""


class Texts(Protocol):
    """What of an `rlaif.engines.local.encoding.Encoding` episodes need."""

    @property
    def context(self) -> int:
        """Tokens that the model can take."""

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The text and ids of a prompt."""

    def followed_by(
        self, messages: Sequence[Message], sampled: Sequence[int], reply: Message
    ) -> list[int]:
        """The ids between two answers."""


class TurnLog(Protocol):
    """Where turns are kept: a step's folder."""

    def append(self, name: str, records: Sequence[dict[str, Any]]) -> None:
        """Commit one batch of rows to the file `name`."""


@dataclass(frozen=True, slots=True)
class Start:
    """An episode that is to be played: the completion's id, its prompt and number, the messages
    that the model begins with, and how it samples the turn of a number."""

    name: str
    prompt: Prompt
    index: int
    messages: list[Message]
    sampling: Callable[[int], Sampling]


@dataclass(frozen=True, slots=True)
class Episode:
    """A played episode: the model's tokens and how it ended, as one result; all turns after the
    prompt, and what the environment made of the model's own. A failed one has neither."""

    start: Start
    result: GenerateResult
    messages: list[Message]
    turns: list[Turn]

    def as_turns(self, completion: Completion) -> Completion:
        """The completion that was made of `result`, with the turns."""
        if completion.finish_reason == "failed":
            return completion
        return structs.replace(
            completion,
            messages=self.messages,
            turns=self.turns,
            digest=content_hash(self.messages),
            reasoning=None,
        )


@dataclass(slots=True)
class _Live:
    """An episode that is being played. `ids` are all that the model reads next."""

    start: Start
    play: Play
    ids: list[int]
    rendered_hash: str
    own: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    prompt_tokens: int = 0


def texts_of(engine: Engine) -> Texts:
    """How an engine with the capability `token_ids` renders. Raises EngineError for another one."""
    if "token_ids" not in engine.capabilities:
        raise EngineError(
            f"model {engine.name!r}: episodes go on from token ids, which its engine does not take"
        )
    texts: Texts = engine.encoding  # type: ignore[attr-defined]
    return texts


def turn_name(start: Start, turn: int) -> str:
    """The id of a request for one turn (from 0)."""
    return "t_" + content_hash(start.name, turn)


def seed_of_turn(seed: int, turn: int) -> int:
    """The sampling seed of a turn (from 0), of 31 bits, from that of its episode."""
    return int(content_hash("turn", seed, turn, length=8), 16) & 0x7FFFFFFF


def turn_sampling(sampling: Sampling) -> Callable[[int], Sampling]:
    """How each turn of an episode is sampled whose first one is sampled so."""
    return lambda turn: replace(sampling, seed=seed_of_turn(sampling.seed, turn))


def read_turns(folder: StepFolder) -> dict[str, GenerateResult]:
    """The turns that are stored, by their ids."""
    return {row["request_id"]: GenerateResult(**row) for row in folder.rows(TURNS)}


def play_episodes(
    starts: Sequence[Start],
    engine: Sampler,
    texts: Texts,
    longest: int,
    folder: TurnLog,
    stored: dict[str, GenerateResult],
) -> Iterator[list[Episode]]:
    """Play all episodes; those that a turn ended come together, in the order of `starts`.

    `longest` is how many tokens an episode may have, prompt included. An episode whose next turn
    would not fit is over, with finish reason length. `stored` are the turns in `folder`, to which
    new ones are added. Raises RlaifError where an environment fails.
    """
    live = [_begin(start, texts) for start in starts]
    turn = 0
    while live:
        requests = [_request_turn(episode, turn) for episode in live]
        if not all(request.request_id in stored for request in requests):
            for batch in engine.generate(requests, stored.keys()):
                new = [result for result in batch if result.request_id not in stored]
                folder.append(TURNS, [asdict(result) for result in new])
                stored |= {result.request_id: result for result in new}
        over: list[Episode] = []
        left: list[_Live] = []
        for episode, request in zip(live, requests, strict=True):
            ended = _take_turn(episode, stored[request.request_id], texts, longest)
            if ended is None:
                left.append(episode)
            else:
                over.append(ended)
        if over:
            yield over
        live, turn = left, turn + 1


def _begin(start: Start, texts: Texts) -> _Live:
    assert start.prompt.environment is not None
    play = Play(start.prompt.environment)
    play.begin(start.prompt)
    text, ids = texts.render(start.messages)
    return _Live(start, play, ids, content_hash(text), prompt_tokens=len(ids))


def _request_turn(episode: _Live, turn: int) -> GenerateRequest:
    start = episode.start
    conversation = [*start.messages, *episode.messages]
    return GenerateRequest(
        turn_name(start, turn), conversation, start.sampling(turn), ids=episode.ids
    )


def _take_turn(
    episode: _Live, result: GenerateResult, texts: Texts, longest: int
) -> Episode | None:
    """The environment's answer to a turn of the model; the episode where it is over."""
    if result.finish_reason == "failed" or result.cut or not result.token_ids:
        why = CUT if result.cut else result.error or "the model wrote nothing"
        return _end(episode, "failed", why)
    said: Message = {"role": "assistant", "content": result.text}
    if result.reasoning:
        said["reasoning_content"] = result.reasoning
    step = episode.play.step(result.text)
    episode.own += result.token_ids
    episode.logprobs += result.logprobs
    reply: Message = {"role": episode.play.spec.role, "content": step.observation}
    episode.messages += [said, reply] if step.observation.strip() else [said]
    taken: Turn = {
        "own": len(result.token_ids),
        "given": [],
        "reward": float(step.reward),
        "achieved": step.achieved,
    }
    episode.turns.append(taken)
    if step.done:
        return _end(episode, "stop")
    if episode.play.turn >= episode.play.spec.max_turns:
        return _end(episode, "length")
    try:
        given = texts.followed_by(episode.start.messages, result.token_ids, reply)
    except EngineError as error:
        raise episode.play.fail(str(error)) from None
    new = episode.start.sampling(episode.play.turn).max_new_tokens
    if len(episode.ids) + len(result.token_ids) + len(given) + new > min(longest, texts.context):
        return _end(episode, "length")
    episode.turns[-1] = {**taken, "given": given}
    episode.ids = [*episode.ids, *result.token_ids, *given]
    return None


def _end(episode: _Live, reason: str, error: str | None = None) -> Episode:
    failed = reason == "failed"
    result = GenerateResult(
        episode.start.name,
        "",
        [] if failed else episode.own,
        reason,  # type: ignore[arg-type]
        episode.prompt_tokens,
        error,
        logprobs=[] if failed else episode.logprobs,
        rendered_hash=episode.rendered_hash,
    )
    return Episode(episode.start, result, episode.messages, episode.turns)
