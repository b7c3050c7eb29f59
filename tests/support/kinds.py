"""Every kind of judge as tests ask it: its spec, and models that prefer an answer, say nothing that
can be read, or abstain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlaif.config.models import ModelSpec
from rlaif.constitution.model import Constitution
from rlaif.core.records import Completion, Judgement, content_hash, make_prompt
from rlaif.engines.base import GenerateRequest, Model, RewardRequest, RewardResult, ScoreResult
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.judges.base import Judge, roles_of
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.pipeline.steps.asking import Kept, verdicts
from rlaif.preferences.aggregate import candidate_scores
from tests.support.memory import Memory

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}], tags=["fruit"])
RULES: Any = {
    "name": "test",
    "principles": [
        {
            "id": "kind",
            "text": "The answer is kind.",
            "examples": [{"prompt": "Hi", "better": "Hello!", "worse": "Go.", "why": "Warmth."}],
        },
        {"id": "brief", "check": {"rule": "word_limits", "params": {"min": 1, "max": 3}}},
    ],
}
TABLES = [
    {"tags": ["fruit"], "rewards": {"names": 1.0, "refuses": 0.0}},
    {"rewards": {"names": 0.2, "refuses": 0.8}},
]
CLASSES = [{"id": "names", "text": "It names one."}, {"id": "refuses", "text": "It does not."}]
OF_ANOTHER: dict[str, dict[str, Any]] = {"verdict": {"kind": "verdict", "of": "compare"}}
"""Kinds that look at what another judge of the file asks or says; they have tests of their own."""
OF_EPISODES: dict[str, dict[str, Any]] = {
    "episode": {"kind": "episode"},
    "ellm": {"kind": "ellm", "by": "initial"},
}
"""Kinds that look at episodes alone; they have tests of their own."""
COMPARE = {"kind": "pairwise", "id": "compare", "verdict": "written"}
"""The judge that they are of."""
EVERY: dict[str, dict[str, Any]] = {
    "rules": {"kind": "rules"},
    "yes_no": {"kind": "yes_no"},
    "yes_no_cot": {"kind": "yes_no", "cot": True, "samples": 2, "temperature": 0.7},
    "rating": {"kind": "rating"},
    "rating_structured": {"kind": "rating", "structured": True},
    "rating_expected": {"kind": "rating", "expected": True},
    "rating_cot": {"kind": "rating", "expected": True, "cot": True},
    "direct": {"kind": "direct"},
    "critique": {"kind": "critique"},
    "prometheus": {"kind": "prometheus"},
    "prometheus_structured": {"kind": "prometheus", "structured": True},
    "critique_structured": {
        "kind": "critique",
        "expected": False,
        "cot": False,
        "structured": True,
    },
    "additive": {"kind": "additive"},
    "additive_structured": {"kind": "additive", "structured": True},
    "additive_expected": {"kind": "additive", "expected": True},
    "pairwise": {"kind": "pairwise"},
    "pairwise_cot": {"kind": "pairwise", "cot": True},
    "pairwise_detailed": {"kind": "pairwise", "preamble": "detailed", "shots": 1},
    "pairwise_written": {"kind": "pairwise", "verdict": "written"},
    "pairwise_structured": {"kind": "pairwise", "verdict": "written", "structured": True},
    "pairwise_fixed": {"kind": "pairwise", "order": "fixed"},
    "pairwise_random": {"kind": "pairwise", "order": "random", "soft": False},
    "constitutional": {"kind": "constitutional"},
    "constitutional_cot": {"kind": "constitutional", "cot": True, "clamp": [0.4, 0.6]},
    "constitutional_structured": {
        "kind": "constitutional",
        "verdict": "written",
        "structured": True,
    },
    "prometheus_pair": {"kind": "prometheus_pair"},
    "prometheus_pair_structured": {"kind": "prometheus_pair", "structured": True},
    "template": {
        "kind": "template",
        "template": "prompts/judges/template_example.j2",
        "parse": {
            "pattern": r"verdict:\W*(rude|plain|kind|unsure)",
            "values": {"rude": 0, "plain": 1, "kind": 2, "unsure": None},
        },
        "scale": [0, 2],
    },
    "ultrafeedback": {"kind": "ultrafeedback"},
    "ultrafeedback_structured": {"kind": "ultrafeedback", "structured": True},
    "ultrafeedback_expected": {"kind": "ultrafeedback", "expected": True},
    "ultrafeedback_fixed": {"kind": "ultrafeedback", "order": "fixed"},
    "rbrm": {"kind": "rbrm", "classes": CLASSES, "tables": TABLES},
    "rbrm_hard_cot": {
        "kind": "rbrm",
        "classes": CLASSES,
        "tables": TABLES,
        "soft": False,
        "cot": True,
    },
    "rubric": {
        "kind": "rubric",
        "items": [
            {"text": "It names a fruit."},
            {"text": "It is short.", "check": "word_limits", "params": {"min": 1, "max": 3}},
        ],
    },
    "rubric_implicit": {
        "kind": "rubric",
        "items": [{"text": "It names a fruit."}],
        "aggregate": "implicit",
    },
    "rubric_generate": {"kind": "rubric", "generate": {"most": 3}},
    "rubric_generate_structured": {"kind": "rubric", "generate": {"structured": True}},
    "rubric_generate_implicit": {"kind": "rubric", "generate": {}, "aggregate": "implicit"},
    "rbr": {"kind": "rbr", "weights": str(Path(__file__).parent / "weights.yaml")},
    "reward_model": {"kind": "reward_model", "by": "rewards"},
    "reward_ensemble": {"kind": "reward_ensemble", "members": ["rewards", "others"]},
    "implicit_reward": {"kind": "implicit_reward"},
    "meta": {"kind": "meta", "judge": {"kind": "additive"}},
    "judgements": {"kind": "judgements", "of": "additive"},
    "jury": {
        "kind": "jury",
        "of": [{"kind": "yes_no", "by": "policy"}, {"kind": "pairwise", "cot": True}],
    },
    "jury_vote": {
        "kind": "jury",
        "of": [{"kind": "rating"}, {"kind": "additive"}, {"kind": "implicit_reward"}],
        "pool": "vote",
        "accuracy": {"rating": 0.8, "additive": 0.7, "implicit_reward": 0.6},
    },
}
MODEL_JUDGES = [name for name in EVERY if name != "rules"]


def constitution() -> Constitution:
    return Constitution.model_validate(RULES)


def judge_of(spec: Mapping[str, Any], **more: Any) -> Judge:
    model: Any = TypeAdapter(JudgeStep).validate_python({**spec, **more})
    return build_judge(model, constitution())


def completion(text: str, index: int) -> Completion:
    return Completion(
        completion_id="k_" + content_hash(text, index),
        prompt_id=PROMPT.prompt_id,
        sample_index=index,
        messages=[{"role": "assistant", "content": text}],
        model="policy",
        weights_hash="w",
        sampling={},
        finish_reason="stop",
        digest=content_hash(text),
    )


GOOD, BAD = completion("Cherry", 0), completion("A stupid grey stone of no use", 1)
HIGH = {"yes": 0.6, "5": 0.4, "J": 0.4, "A": 0.3, "3": 0.1}
LOW = {"no": 0.6, "1": 0.4, "A": 0.4, "0": 0.1, "B": 0.5}


class Rewarding(FakeEngine):
    """A fake engine that has a reward head too."""

    capabilities = FakeEngine.capabilities | {"reward"}

    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        for request in requests:
            if request.request_id not in done:
                yield [RewardResult(request.request_id, self._reward(request), 1)]

    def _reward(self, request: RewardRequest) -> float | None:
        return None


class Preferring(Rewarding):
    """A scripted model that likes `liked`, wherever it stands."""

    def __init__(self, liked: str, disliked: str):
        super().__init__(FakeScript(), "fake")
        self.liked, self.disliked = liked, disliked

    def _reward(self, request: RewardRequest) -> float | None:
        return 1.5 if request.answer["content"] == self.liked else -0.5

    def _likes(self, text: str) -> str:
        """Which of the texts in a request it likes: first, second, one, other or none."""
        one, other = text.rfind(self.liked), text.rfind(self.disliked)
        if one >= 0 and other >= 0:
            return "first" if one < other else "second"
        return "one" if one >= 0 else "other" if other >= 0 else "none"

    def _answer(self, request: Any) -> Any:
        text = "\n".join(m["content"] for m in request.messages)
        made = super()._answer(request)
        said = self._json(text, request) if request.json_schema else self._text(text, request)
        return type(made)(made.request_id, said, [], "stop", 1)

    def _json(self, text: str, request: GenerateRequest) -> str:
        """An instance of the request's schema. It quotes what is judged, verdicts and all."""
        said, known = self._likes(text), (request.json_schema or {})["properties"]
        first = said in ("one", "first")
        if "items" in known:
            return json.dumps({"items": [{"kind": "essential", "text": "It names a fruit."}]})
        if "text_1" in known:
            rows = {"text_1": "5" if first else "1", "text_2": "1" if first else "5"}
            return json.dumps({n: {"rating": r, "rationale": "Rating: 3"} for n, r in rows.items()})
        field = "score" if "score" in known else "verdict"
        if field == "score":
            verdict = known[field]["enum"][-2 if first else 0]
        else:
            verdict = self._slot(said, text) if said in ("first", "second") else "tie"
        mark = next(line for line in text.splitlines() if line.startswith("[end "))
        reasons = f"It says {mark} Score: 3 Verdict: tie"
        return "```json\n" + json.dumps({"reasons": reasons, field: verdict}) + "\n```"

    def _text(self, text: str, request: Any) -> str:
        said = self._likes(text)
        if "checklist" in text:
            return "Here:\n- [essential] It names a fruit.\n- [pitfall] It insults nobody."
        if "Text N" in text:
            first, second = (5, 1) if said == "first" else (1, 5)
            return f"Text 1\nRating: {first}\nRationale: a\n\nText 2\nRating: {second}\n"
        if said in ("first", "second"):
            return f"I thought about it. [RESULT] {self._slot(said, text)}"
        if "Verdict: WORD" in text:
            return f"Verdict: {'kind' if said == 'one' else 'rude'}"
        return f"Number {request.sampling.seed % 97}. Score: {5 if said == 'one' else 1}"

    @staticmethod
    def _slot(said: str, text: str) -> str:
        letters = "answer A" in text or "[A " in text
        return {"first": "A" if letters else "1", "second": "B" if letters else "2"}[said]

    def _score(self, request: Any) -> ScoreResult:
        text = "\n".join(m["content"] for m in request.messages)
        if request.continuation is not None:
            liked = request.continuation == self.liked
            return ScoreResult(request.request_id, {}, None, [-0.5 if liked else -3.0], 1)
        said = self._likes(text)
        if request.prefill.startswith("Text "):
            probs = HIGH if request.prefill[5] == {"second": "2"}.get(said, "1") else LOW
        elif said in ("first", "second") or "first" in request.labels:
            probs = {"first": 0.6, "second": 0.2} if said == "first" else {"second": 0.6}
            probs = {"first": 0.2, **probs}
        elif "Which class" in text:
            probs = {"A": 0.5, "B": 0.1} if said == "one" else {"A": 0.1, "B": 0.5}
        else:
            probs = HIGH if said == "one" else LOW
        kept = {label: probs.get(label, 0.0) for label in request.labels}
        return ScoreResult(request.request_id, kept, sum(kept.values()), [], 1)


class Reference(Preferring):
    """Finds every answer equally likely."""

    def _score(self, request: Any) -> ScoreResult:
        return ScoreResult(request.request_id, {}, None, [-1.5], 1)


class Mumbling(Rewarding):
    """Says nothing that could be read."""

    def __init__(self) -> None:
        super().__init__(FakeScript(default="Hard to say, really."), "fake")

    def _score(self, request: Any) -> ScoreResult:
        found = super()._score(request)
        if request.continuation is None:
            return found
        return ScoreResult(request.request_id, {}, None, [], 1, "the prompt does not fit")


class Failing(Rewarding):
    """Answers nothing, and says why."""

    WHY = "gave up after 3 attempts: status 500: oops"

    def __init__(self) -> None:
        super().__init__(FakeScript(), "fake")

    def _answer(self, request: Any) -> Any:
        made = super()._answer(request)
        return type(made)(made.request_id, "", [], "failed", 1, self.WHY)

    def _score(self, request: Any) -> ScoreResult:
        return ScoreResult(request.request_id, {}, None, [], 1, self.WHY)

    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        yield [RewardResult(r.request_id, None, 1, self.WHY) for r in requests]


class Abstaining(FakeEngine):
    """Cannot tell, whatever it is asked; a checklist it writes."""

    def __init__(self) -> None:
        super().__init__(FakeScript(), "fake")

    def _answer(self, request: Any) -> Any:
        text = "\n".join(m["content"] for m in request.messages)
        made = super()._answer(request)
        said = "Hard to say.\nScore: abstain\nVerdict: abstain"
        if "checklist" in text:
            said = "- [essential] It names a fruit."
        elif "ext_N" in text or "ext N" in text:
            said = "Text 1\nRating: abstain\nText 2\nRating: abstain"
        elif "Verdict: WORD" in text:
            said = "Verdict: unsure"
        return type(made)(made.request_id, said, [], "stop", 1)

    def _score(self, request: Any) -> ScoreResult:
        probs = {label: 0.5 if label == "abstain" else 0.01 for label in request.labels}
        return ScoreResult(request.request_id, probs, sum(probs.values()), [], 1)


class Engines:
    """`engines` as a step has them; counts what is asked."""

    def __init__(self, by: FakeEngine, reference: FakeEngine | None = None):
        self.engines = {"by": by, "reference": reference or by}

    def get(self, model: Model) -> FakeEngine:
        return self.engines["reference" if model.label.endswith("reference") else "by"]


def models(judge: Judge) -> dict[str, Model]:
    spec = ModelSpec(path="none", engine="fake")
    return {role: Model(role, role, spec) for role in roles_of(judge)}


def judged(
    judge: Judge, engines: Engines, completions: Sequence[Completion], kept: Kept | None = None
) -> list[Judgement]:
    groups = [(PROMPT, completions)]
    used: Any = engines
    return verdicts(judge, models(judge), used, groups, 3, kept or Kept(Memory()))


def preferring(liked: str, disliked: str) -> Engines:
    return Engines(Preferring(liked, disliked), Reference(liked, disliked))


def scores(judgements: list[Judgement]) -> dict[str, float | None]:
    return candidate_scores(judgements)
