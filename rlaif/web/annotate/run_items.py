"""The pairs or answers of a run folder, with the verdicts of the run's judges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, Message, Prompt, content_hash, from_json
from rlaif.core.yamlio import suggest
from rlaif.data.votes import ItemJudge, VoteItem
from rlaif.pipeline.constitutions import run_weights
from rlaif.pipeline.run_rows import held_out_answers
from rlaif.pipeline.runs import Run
from rlaif.preferences.aggregate import answer_probability, candidate_scores, weights_of
from rlaif.web.annotate.items import Answer, answer_item, judge_verdict, pair_item, unique_items

Sides = tuple[Prompt, list[Answer]]
"""A prompt and its answers: two of a pair, or all that are rated."""


def run_items(run: Run, rate: bool, models: Sequence[str] = ()) -> list[VoteItem]:
    """The pairs of a run, or the held-out answers of two of its `models` beside each other; with
    `rate` the answers, each alone. Raises ConfigError."""
    groups = _held_out(run, models, rate) if models else _run_pairs(run)
    said = _Verdicts(run, {side.answer_id for _, sides in groups.values() for side in sides})
    if rate:
        return unique_items(
            answer_item(prompt, side, said.of_answer(side.answer_id))
            for prompt, sides in groups.values()
            for side in sides
        )
    return [
        pair_item(name, prompt, a, b, said.of_pair(a.answer_id, b.answer_id))
        for name, (prompt, (a, b)) in groups.items()
    ]


def _run_pairs(run: Run) -> dict[str, Sides]:
    prompts = run.prompt_records()
    pairs: dict[str, Sides] = {}
    for row in run.rows("preferences"):
        if row["chosen"] and row["rejected"]:
            prompt = _prompt_of(prompts, row["prompt_id"], row["prompt"])
            chosen = Answer(row["chosen_id"], row["chosen"])
            rejected = Answer(row["rejected_id"], row["rejected"])
            pairs[row["preference_id"]] = (prompt, [chosen, rejected])
    if not pairs:
        raise ConfigError(
            "this run has no pairs; --evaluation MODEL,MODEL takes the held-out answers of two "
            "models",
            run.root,
        )
    return pairs


def _prompt_of(known: Mapping[str, Prompt], name: str, messages: list[Message]) -> Prompt:
    return known[name] if name in known else Prompt(name, messages)


def _held_out(run: Run, models: Sequence[str], rate: bool) -> dict[str, Sides]:
    """By seed and prompt, what the models answered. A pair is named by its answers."""
    answers = _answers_by_model(run)
    for model in models:
        if model not in answers:
            hint = suggest(model, list(answers)) or f" (models: {', '.join(answers) or 'none'})"
            raise ConfigError(
                f"--evaluation: this run evaluated no model {model!r}{hint}", run.root
            )
    if not rate and len(set(models)) != 2:
        raise ConfigError("--evaluation takes two models to compare, such as M0,M1")
    prompts = run.prompt_records()
    groups: dict[str, Sides] = {}
    for key in answers[models[0]]:
        sides = [answers[model][key] for model in models if key in answers[model]]
        if len(sides) == len(models) and key[1] in prompts:
            name = "l_" + content_hash(*sorted(side.answer_id for side in sides))
            if rate or sides[0].messages != sides[1].messages:
                groups[name] = (prompts[key[1]], sides)
    if not groups:
        raise ConfigError(
            f"--evaluation: {' and '.join(models)} gave no different answers to one held-out "
            "prompt",
            run.root,
        )
    return groups


def _answers_by_model(run: Run) -> dict[str, dict[tuple[int, str], Answer]]:
    """By the model's name on the run's page, then by seed and prompt, its held-out answer."""
    found: dict[str, dict[tuple[int, str], Answer]] = defaultdict(dict)
    for place, row in held_out_answers(run.manifest, run.store, run.point_of):
        if row["messages"]:
            answer = Answer(row["completion_id"], row["messages"])
            found[place["model"]].setdefault((place["seed"], place["prompt_id"]), answer)
    return found


class _Verdicts:
    """What a run's judges said of some answers."""

    def __init__(self, run: Run, answers: Collection[str]):
        self._weights = run_weights(run)
        wanted = set(answers)
        self._of: dict[str, dict[str, Judgement]] = defaultdict(dict)
        for row in run.judgements_of(answers):
            judgement = from_json(Judgement, row)
            for name in wanted & {judgement.subject, *judgement.shown}:
                self._of[name][judgement.judgement_id] = judgement

    def of_pair(self, a: str, b: str) -> list[ItemJudge]:
        """Each judge's probability that a is better."""
        return [
            judge_verdict(judge, given[0].annotator_id, given[0].annotator_kind, prob)
            for judge, given in self._by_judge((a, b))
            if (prob := answer_probability(given, a, b, weights_of(judge, self._weights)))
            is not None
        ]

    def of_answer(self, answer: str) -> list[ItemJudge]:
        """Each judge's score of an answer by itself."""
        found = []
        for judge, given in self._by_judge((answer,)):
            score = candidate_scores(given, weights_of(judge, self._weights)).get(answer)
            if score is not None:
                name, kind = given[0].annotator_id, given[0].annotator_kind
                found.append(
                    ItemJudge(judge=judge, annotator=name, annotator_kind=kind, score=score)
                )
        return found

    def _by_judge(self, answers: Collection[str]) -> Iterator[tuple[str, list[Judgement]]]:
        """The judgements that are about these answers and no others, by judge."""
        about = {name: j for answer in answers for name, j in self._of[answer].items()}
        groups: dict[str, list[Judgement]] = defaultdict(list)
        for judgement in about.values():
            if {judgement.subject, *judgement.shown} <= set(answers):
                groups[judgement.judge].append(judgement)
        yield from sorted(groups.items())
