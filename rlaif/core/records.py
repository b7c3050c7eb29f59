"""The typed records that flow between steps.

Plain frozen structs, JSON in and out, no tensor library. An id is the hash of the *request*
that makes the record (the step's inputs, the prompt, the sample index), so it is known before a
model answers and does not depend on the order of arrival; `digest` is the hash of the content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from msgspec import UNSET, Struct, UnsetType, field, structs

from rlaif.core.ids import Ids

SubjectKind = Literal["completion", "judgement", "episode"]
AnnotatorKind = Literal["ai", "human", "rule", "model"]
Status = Literal["ok", "tie", "abstain", "not_applicable", "both_bad", "unparsed", "failed"]

VALUED: frozenset[str] = frozenset({"ok", "tie"})
"""The only statuses under which a judgement carries a number."""


class Message(TypedDict):
    """One chat turn: `role` is system, user, assistant or tool. What a turn has besides its text is
    handed to the chat template as it is: an assistant's tool calls and the reasoning before its
    answer, and of a tool's turn the call that it answers and the tool's name."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]


def message_text(message: Message) -> str:
    """What a reader of a turn sees: its text, and after it each tool call as JSON in a
    `<tool_call>` element, as most chat templates write it. Reasoning is not shown."""
    calls = [
        f"<tool_call>\n{canonical_json(call.get('function', call))}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return "\n".join([*filter(None, [message["content"]]), *calls]) if calls else message["content"]


SPEAKERS = {"assistant": "PLAYER", "user": "ENVIRONMENT", "tool": "TOOL"}


def transcript(messages: Iterable[Message]) -> str:
    """The turns of an episode as one text, each after the name of who took it."""
    return "\n\n".join(f"{SPEAKERS[m['role']]}: {message_text(m)}" for m in messages)


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, non-ASCII kept. Raises on NaN."""
    return _ENCODER.encode(value)


def content_hash(*parts: Any, length: int = 24) -> str:
    """The first `length` hex digits of SHA-256 over the canonical JSON of `parts`."""
    # surrogatepass: text scraped from the web can hold lone surrogates, which strict UTF-8 refuses.
    data = canonical_json(list(parts)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:length]


def stream_hash(*parts: Any, length: int = 24) -> str:
    """`content_hash` of parts of which some are `Ids`, each hashed as the list that it stands
    for."""
    digest = hashlib.sha256(b"[")
    for number, part in enumerate(parts):
        digest.update(b"," if number else b"")
        for piece in _list_pieces(part) if isinstance(part, Ids) else [canonical_json(part)]:
            digest.update(piece.encode("utf-8", "surrogatepass"))
    digest.update(b"]")
    return digest.hexdigest()[:length]


def _list_pieces(names: Ids) -> Iterator[str]:
    """The JSON of a list of ids, in pieces."""
    rest, before = iter(names), "["
    while page := list(islice(rest, 1024)):
        yield before + canonical_json(page)[1:-1]
        before = ","
    yield "]" if before == "," else "[]"


class Prompt(Struct, frozen=True):
    """What the policy is asked: a conversation that ends with a user turn. Prompts of one `group`
    belong together, as both orders of a pair do: no window or batch of prompts parts them.

    The start of an episode names its `environment`: the keys of its spec, and the episode's `seed`.
    """

    prompt_id: str
    messages: list[Message]
    source: str = ""
    tags: list[str] = field(default_factory=list)
    reference: str | None = None
    group: str | None = None
    environment: dict[str, Any] | None = None

    @property
    def question(self) -> str:
        """The last user turn."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


class Turn(TypedDict):
    """One of the policy's own turns in an episode: the next `own` of the completion's tokens, and
    after them in what the model read the ids `given`, which it did not write (none after the last
    turn). `reward` is the environment's for this turn, `achieved` says in words what it achieved,
    None where nothing."""

    own: int
    given: list[int]
    reward: float
    achieved: str | None


class Completion(Struct, frozen=True):
    """One sampled answer. `finish_reason` is stop, length or failed (then `messages` is empty).

    `reasoning` is what the model thought before it; `token_ids` are all that it wrote, thinking
    included.

    An episode has `turns`. Its `messages` are all turns after the prompt, those of the environment
    too, while `token_ids` and `logprobs` are of the model's own. It ends with stop where the
    environment ended it, and with length where a limit did.
    """

    completion_id: str
    prompt_id: str
    sample_index: int
    messages: list[Message]
    model: str
    weights_hash: str
    sampling: dict[str, Any]
    finish_reason: str
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    principle: str | None = None
    system_prompt: str | None = None
    rendered_hash: str | None = None
    parent_id: str | None = None
    digest: str = ""
    error: str | None = None
    reasoning: str | None = None
    turns: list[Turn] | UnsetType = UNSET

    @property
    def text(self) -> str:
        """The assistant turn, of an episode all turns, or an empty string when generation
        failed."""
        if self.turns is not UNSET:
            return transcript(self.messages)
        return message_text(self.messages[-1]) if self.messages else ""

    @property
    def own_text(self) -> str:
        """What the model wrote: of an episode its own turns, one after the other."""
        if self.turns is UNSET:
            return self.text
        return "\n\n".join(message_text(m) for m in self.messages if m["role"] == "assistant")


def turns_of(completion: Completion) -> list[tuple[int, list[int]]]:
    """Of an episode how many of its tokens each own turn has, and the ids that follow it; none of
    another completion."""
    return [(t["own"], t["given"]) for t in completion.turns or ()]


def sequence_of(completion: Completion) -> list[int] | None:
    """All ids after the prompt: of an episode those that the model was given between its turns
    too. None where the completion's tokens are not known."""
    ids = completion.token_ids
    if ids is None or completion.turns is UNSET:
        return ids
    return interleave(ids, turns_of(completion))


def interleave(ids: list[int], turns: Iterable[tuple[int, Iterable[int]]]) -> list[int]:
    """The own `ids` of an episode with those that were given between its turns."""
    found: list[int] = []
    start = 0
    for own, given in turns:
        found += [*ids[start : start + own], *given]
        start += own
    return found


def are_own(turns: Iterable[tuple[int, Iterable[int]]]) -> list[bool]:
    """Of each id of an episode's sequence, whether the model wrote it."""
    return [own for count, given in turns for own in [*[True] * count, *(False for _ in given)]]


class Judgement(Struct, frozen=True):
    """One value that one annotator gave to one subject under one principle.

    `score` is on [0, 1] after the judge's declared scale was mapped; `prob_first` is the
    probability that the first text *shown* is better. Either exists only with status ok or tie.
    `raw_value` is the judge's own number, of any size, that the score was made of: a reward before
    its sigmoid; None where the judge has none. `raw` is what the annotator wrote.
    `cost` (in the currency of the model's price), `latency` (seconds) and the tokens that the model
    read and wrote are the answer's, None where no model was asked or nobody counts. `error` says
    why there was no answer, with status failed, or why it could not be read, with status unparsed.
    `rests_on` are the call ids of the answers that a verdict on several of them was made from, none
    where it was read in the answer to its own call.
    """

    judgement_id: str
    call_id: str
    prompt_id: str
    subject_kind: SubjectKind
    shown: list[str]
    subject: str
    judge: str
    annotator_id: str
    annotator_kind: AnnotatorKind
    principle: str | None
    status: Status
    score: float | None = None
    prob_first: float | None = None
    distribution: dict[str, float] | None = None
    label_mass: float | None = None
    rationale: str | None = None
    raw: str | None = None
    template_hash: str | None = None
    judge_hash: str = ""
    sample_index: int = 0
    cost: float | None = None
    latency: float | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    error: str | None = None
    rests_on: list[str] = field(default_factory=list)
    raw_value: float | None = None

    def __post_init__(self) -> None:
        valued = self.score is not None or self.prob_first is not None
        if valued != (self.status in VALUED):
            raise ValueError(
                f"judgement {self.judgement_id}: status {self.status!r} with "
                f"score={self.score} prob_first={self.prob_first}"
            )
        if self.raw_value is not None and not (valued and math.isfinite(self.raw_value)):
            raise ValueError(
                f"judgement {self.judgement_id}: status {self.status!r} with "
                f"raw_value={self.raw_value}"
            )


class Preference(Struct, frozen=True):
    """A chosen and a rejected answer to one prompt; TRL's explicit-prompt conversational form.

    The scores are on the scale of whoever gave them, and `margin` says by how much the chosen
    answer is better; they are None where nobody said.

    An answer that stands alone, labelled good or bad, is `chosen` or `rejected` of a record whose
    other side is empty. Only methods that ask for single answers may see one.
    """

    preference_id: str
    prompt_id: str
    round: int
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    score_chosen: float | None
    score_rejected: float | None
    margin: float | None
    prob: float
    weight: float
    reason: str
    source: str
    judgement_ids: list[str]
    chosen_id: str
    rejected_id: str

    @property
    def paired(self) -> bool:
        """Whether there is an answer on both sides."""
        return bool(self.chosen and self.rejected)


class RoundRecord(Struct, frozen=True):
    """One evaluation, and what its round did: the models in and out, record counts, every metric
    with its interval.

    `round` counts over all stages and `number` within `stage`; `step` is the evaluation's id, and
    `against` names what its model, `policy_out`, is compared with. Rows of earlier versions, which
    had one stage and one row for each round, lack these.
    """

    arm: str
    seed: int
    round: int
    policy_in: str
    policy_out: str
    config_hash: str
    counts: dict[str, int]
    metrics: dict[str, Any]
    stage: str = "main"
    number: int | None = None
    step: str = ""
    against: list[str] = []


Record = Prompt | Completion | Judgement | Preference | RoundRecord


def to_json(record: Record) -> dict[str, Any]:
    """A record as a JSON-ready dict, every field present but for those that earlier versions do not
    know, where they say nothing: a prompt's `group` and `environment`, a completion's `turns`. It
    shares the record's lists."""
    found = structs.asdict(record)
    if isinstance(record, Prompt):
        left_out = [key for key in ("group", "environment") if found[key] is None]
    else:
        left_out = [key for key, value in found.items() if value is UNSET]
    return {key: value for key, value in found.items() if key not in left_out}


R = TypeVar("R", Prompt, Completion, Judgement, Preference, RoundRecord)


def from_json(kind: type[R], row: Mapping[str, Any]) -> R:
    """A record from a dict; unknown keys raise, so that nothing read from a file is dropped."""
    try:
        return kind(**row)
    except TypeError:
        unknown = row.keys() - set(kind.__struct_fields__)
        if not unknown:
            raise
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}") from None


def make_prompt(
    messages: list[Message],
    source: str = "",
    tags: list[str] | None = None,
    reference: str | None = None,
    group: str | None = None,
    environment: dict[str, Any] | None = None,
) -> Prompt:
    """A Prompt whose id is the hash of its messages, so duplicates share an id; episodes that begin
    alike differ by their environment and seed."""
    more = [] if environment is None else [environment]
    prompt_id = "p_" + content_hash(messages, *more)
    return Prompt(prompt_id, messages, source, tags or [], reference, group, environment)
