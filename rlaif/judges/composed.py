"""What judges share whose verdicts rest on several answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rlaif.core.numbers import sigmoid
from rlaif.core.records import AnnotatorKind, Completion, Judgement, Prompt, Status, content_hash
from rlaif.engines.base import Capability, RewardRequest, ScoreRequest
from rlaif.judges.base import (
    Answer,
    Answered,
    Call,
    Judge,
    Verdict,
    call_id,
    is_staged,
    make_judgement,
)
from rlaif.judges.common import usable


def all_needs(roles: Mapping[str, frozenset[Capability]]) -> frozenset[Capability]:
    """What the models of all roles must be able to do, taken together."""
    return frozenset[Capability]().union(*roles.values())


def under(place: str, calls: Iterable[Call]) -> list[Call]:
    """The calls of the judge at `place`, with the roles that it gave them."""
    prefix = f"{place}/"
    return [
        replace(call, role=call.role.removeprefix(prefix))
        for call in calls
        if call.role.startswith(prefix)
    ]


def placed(place: str, calls: Iterable[Call]) -> list[Call]:
    """Calls of the judge at `place`, with roles that say so."""
    return [replace(call, role=f"{place}/{call.role}") for call in calls]


def follow_within(
    place: str, judge: Judge, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
) -> list[Call]:
    """What the judge at `place` asks further."""
    own = under(place, calls)
    return placed(place, judge.follow(own, answers, seed)) if is_staged(judge) else []


def annotators(calls: Iterable[Call], answers: Mapping[str, Answered], judge_id: str) -> str:
    """Who answered the calls, or the judge's own program where no model was asked."""
    names = {answers[c.call_id].annotator_id for c in calls if c.call_id in answers}
    return " + ".join(sorted(names)) or f"program:{judge_id}"


def conclude_verdict(
    judge: Judge,
    calls: Sequence[Call],
    shown: Sequence[Completion],
    annotator_id: str,
    verdict: Verdict,
    *,
    principle: str | None = None,
    kind: AnnotatorKind = "ai",
    among: Sequence[Completion] = (),
    rests_on: Sequence[str] | None = None,
) -> Judgement:
    """The record of one verdict that rests on several calls, about the first of `shown`. It is a
    program's where no model was asked. `among` are the answers that the verdict depends on beside
    those shown: another group of them makes another judgement. `rests_on` are the ids of the calls
    that were asked for it, by default all of `calls` that ask a model."""
    name = call_id(judge.judge_hash, shown, principle)
    if among:
        name = "c_" + content_hash(name, sorted([c.completion_id, c.digest] for c in among))
    return make_judgement(
        judge,
        Call(name, calls[0].prompt, tuple(shown), principle),
        annotator_id,
        verdict,
        "rule" if annotator_id.startswith("program:") else kind,
        rests_on=asked_ids(calls) if rests_on is None else rests_on,
    )


def asked_ids(calls: Iterable[Call]) -> list[str]:
    """The ids of the calls that ask a model, each once."""
    return list(dict.fromkeys(c.call_id for c in calls if c.request is not None))


def behind(judgements: Iterable[Judgement], calls: Iterable[Call]) -> list[str]:
    """The ids of those of `calls` that judgements within a judge were read from, each once. What no
    model was asked has no answer to follow."""
    asked = set(asked_ids(calls))
    names = (name for j in judgements for name in (j.rests_on or [j.call_id]))
    return list(dict.fromkeys(name for name in names if name in asked))


@dataclass(frozen=True, slots=True)
class Rewarding:
    """A judge whose models are each asked once about each answer, and which makes a reward of what
    they say: the score is its sigmoid, the raw value the reward itself."""

    id: str
    judge_hash: str
    roles: Mapping[str, frozenset[Capability]]
    comparative: ClassVar[bool] = False
    unbounded: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Capability]:
        """What the models of all roles must be able to do, taken together."""
        return all_needs(self.roles)

    def make_request(
        self, name: str, prompt: Prompt, completion: Completion
    ) -> RewardRequest | ScoreRequest:
        """What each model is asked about a completion, under a call's id."""
        raise NotImplementedError

    def read_reward(self, answers: Mapping[str, Answer]) -> dict[str, float] | None:
        """The `reward` by the answers to one completion's calls, by role, and what goes with it,
        all of which is kept. None where it cannot be told."""
        raise NotImplementedError

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and model; `seed` changes nothing."""
        return [
            Call(name, prompt, (c,), request=self.make_request(name, prompt, c), role=role)
            for c in usable(completions)
            for role in self.roles
            for name in [f"{call_id(self.judge_hash, [c], None)}-{role}"]
        ]

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """Nothing."""
        return []

    def most_calls(self, calls: Sequence[Call]) -> int:
        """The calls as they are."""
        return len(calls)

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion; failed where it has no reward, or one that is not
        finite."""
        found = []
        for completion in completions_of(calls):
            own = [c for c in calls if c.shown[0].completion_id == completion.completion_id]
            who = annotators(own, answers, self.id)
            kept = self.read_reward({c.role: answers[c.call_id].answer for c in own})
            verdict = Verdict("failed")
            if kept is not None and math.isfinite(reward := kept["reward"]):
                verdict = Verdict("ok", sigmoid(reward), distribution=kept, raw_value=reward)
            found.append(conclude_verdict(self, own, [completion], who, verdict, kind="model"))
        return found


def completions_of(calls: Iterable[Call]) -> list[Completion]:
    """The completions that calls are about, in the order of sampling."""
    found = {c.completion_id: c for call in calls for c in call.shown}
    return sorted(found.values(), key=lambda c: (c.sample_index, c.completion_id))


def seen_together(calls: Iterable[Call]) -> list[Completion]:
    """The completions of the calls that show several at once: what one is worth depends on the
    others."""
    return completions_of(call for call in calls if len(call.shown) > 1)


def missing_status(statuses: Iterable[Status]) -> Status:
    """The one status of a verdict that could not be reached for want of others."""
    given = set(statuses)
    if given and given <= {"abstain", "not_applicable"}:
        return "abstain" if "abstain" in given else "not_applicable"
    return "failed" if "failed" in given else "unparsed"
