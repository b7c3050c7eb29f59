"""A run's own held-out answers as battles: each later model against M0, on the same prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, content_hash
from rlaif.metrics import metrics
from rlaif.metrics.metrics import Values
from rlaif.metrics.winrate import Battle
from rlaif.pipeline.constitutions import run_weights
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.arena import RESULT, read_battles
from rlaif.pipeline.steps.context import by_prompt

INITIAL = "M0"


@dataclass(frozen=True, slots=True)
class _Side:
    """A model's held-out answers by prompt, and its judgements by judge."""

    answers: dict[str, list[Completion]]
    judgements: dict[str, list[Judgement]]


def run_battles(run: Run) -> dict[str, list[Battle]]:
    """By judge, a battle per held-out prompt of every later model with M0, from the finished
    evaluations of a run, the last of each round.

    A judge of single answers gives the prompt to the higher mean score, as the metric
    `win_rate/JUDGE` does; one that compares gives its mean probability, both orders together. A
    prompt that it has no verdict on is a missing one. Where a prompt has several answers of one
    model, its length is their mean. The battles of an arena are those of ARENA/JUDGE. Raises
    ConfigError where nothing is finished.
    """
    # Every arm is measured by the run's own constitution.
    weights = run_weights(run)
    found: dict[str, list[Battle]] = {}
    for name, step in _find_evaluations(run):
        new, old = _load_side(run, step, ""), _load_side(run, step, "initial/")
        for judge in new.judgements:
            wins = _compute_wins(judge, new, old, weights)
            found.setdefault(judge, []).extend(_make_battles(name, new, old, wins))
    found |= _arena_battles(run)
    if not found:
        raise ConfigError(
            "no finished arena, and no finished evaluation in which a judge saw a later model's "
            "answers beside M0's; "
            "`rlaif status` says where the run stands",
            run.root,
        )
    return found


def _arena_battles(run: Run) -> dict[str, list[Battle]]:
    """The battles of every finished arena; those of other rounds, arms or seeds of one step go by
    their round, arm and seed too."""
    steps = [s for s in run.manifest["steps"] if s["kind"] == "arena"]
    finished = [s for s in steps if run.store.step(s["hash"]).done() is not None]
    alike = Counter(step["id"] for step in steps)
    found = {}
    for step in finished:
        folder = run.store.step(step["hash"])
        result = folder.read(RESULT)[0]
        parts = [f"{step['id']}/{result['judge']}"]
        if alike[step["id"]] > 1:
            parts += [f"round {step['round']}", *step["arms"], f"seed {step['seed']}"]
        found[" ".join(parts)] = [battle.as_battle() for battle in read_battles(folder)]
    return found


def _find_evaluations(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The last finished evaluation of each later model, by the model's name: its round, its arm
    where arms differ, its seed where there are several."""
    found = {}
    for step in run.manifest["steps"]:
        done = step["kind"] == "evaluate" and run.store.step(step["hash"]).done()
        if done and "initial/completions" in step["inputs"]:
            shared = len(step["arms"]) == max(len(run.manifest["arms"]), 1)
            parts = [step["models"]["policy"][0], *([] if shared else step["arms"])]
            if len(run.manifest["seeds"]) > 1:
                parts.append(f"seed {step['seed']}")
            found[" ".join(parts)] = step
    yield from found.items()


def _load_side(run: Run, step: Mapping[str, Any], prefix: str) -> _Side:
    inputs = step["inputs"]
    completions = run.store.step(inputs[f"{prefix}completions"]).records(Completion)
    start = f"{prefix}judgements/"
    judgements = {
        name.removeprefix(start): list(run.store.step(digest).records(Judgement))
        for name, digest in inputs.items()
        if name.startswith(start)
    }
    return _Side(by_prompt([c for c in completions if c.finish_reason != "failed"]), judgements)


def _compute_wins(judge: str, new: _Side, old: _Side, weights: Mapping[str, float]) -> Values:
    """By prompt, how far the new model won it: 1, 0.5, 0 or a probability."""
    mine, others = (_completion_ids(side) for side in (new, old))
    judged = new.judgements[judge]
    if any(len(j.shown) > 1 for j in judged):
        compared = metrics.pairwise_values(judge, judged, mine)
        return metrics.to_shares(compared[f"win_rate_vs_initial/{judge}"])
    name = f"score/{judge}"
    score, against = (
        metrics.to_shares(metrics.judge_values(judge, rows, weights, ids)[name])
        for rows, ids in ((judged, mine), (old.judgements.get(judge, []), others))
    )
    return {
        p: (1 + (s > against[p]) - (s < against[p])) / 2 for p, s in score.items() if p in against
    }


def _completion_ids(side: _Side) -> set[str]:
    return {c.completion_id for answers in side.answers.values() for c in answers}


def _make_battles(name: str, new: _Side, old: _Side, wins: Values) -> Iterator[Battle]:
    for prompt in sorted(new.answers.keys() & old.answers.keys()):
        first, second = old.answers[prompt], new.answers[prompt]
        yield Battle(
            prompt,
            INITIAL,
            name,
            wins.get(prompt),
            (_mean_length(first), _mean_length(second)),
            (_digest_answers(first), _digest_answers(second)),
            f"prompt {prompt}",
        )


def _mean_length(answers: Sequence[Completion]) -> int:
    return round(fmean(len(c.text) for c in answers))


def _digest_answers(answers: Sequence[Completion]) -> str:
    digests = sorted(content_hash(c.text) for c in answers)
    return digests[0] if len(digests) == 1 else content_hash(digests)
