"""The one result of `rlaif compare`: everything that its page, terminal and JSON show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.analysis.comparison.agree import agreement_rows, coverage_rows
from rlaif.analysis.comparison.gather import Gathered, Reading, gather_inputs
from rlaif.analysis.comparison.pairs import Compared, Source, lay_side_by_side
from rlaif.analysis.comparison.people import alt_test_row, disagreement_row, person_row
from rlaif.analysis.comparison.policies import (
    Between,
    across_runs,
    contest_rows,
    less_half,
    run_row,
)
from rlaif.core.errors import RlaifError
from rlaif.metrics.claims import answer_of, answer_sentence
from rlaif.metrics.intervals import IntervalJson, show_interval, show_number

MARGIN, EPSILON = 0.05, 0.1
PERSON = "another person"
READ = Reading()


@dataclass(frozen=True)
class Choices:
    """What is asked: the `margin` below which a difference does not matter, `epsilon` of the
    alternative annotator test, the two models of each head to head that is asked about, the seed of
    the held-out parts, and how files are read."""

    margin: float = MARGIN
    epsilon: float = EPSILON
    between: Between = ()
    seed: int = 0
    reading: Reading = READ


def compare_inputs(inputs: Sequence[str], choices: Choices = Choices()) -> dict[str, Any]:
    """The result, of plain JSON values. Raises RlaifError where the inputs have nothing in common
    that could be compared."""
    gathered = gather_inputs(inputs, choices.reading)
    compared = lay_side_by_side(gathered)
    agreement = agreement_rows(compared)
    contests = contest_rows(gathered, choices.between)
    _check_models(contests, choices.between)
    runs = [run_row(name, run) for name, run in gathered.runs.items()]
    across = across_runs(gathered)
    if not (agreement or contests or any(run["tables"] for run in runs) or across):
        raise RlaifError(_nothing_common(gathered, compared))
    twos = list(_pair_with_people(compared))
    result: dict[str, Any] = {
        "inputs": list(inputs),
        "margin": choices.margin,
        "epsilon": choices.epsilon,
        "pairs": len(compared.pairs),
        "prompts": len({pair.prompt_id for pair in compared.pairs.values()}),
        "same_text": compared.same_text,
        "skipped": gathered.skipped,
        "sources": coverage_rows(compared),
        "agreement": agreement,
        "beside": [_name_people(compared, person_row(compared, j, p)) for j, p in twos],
        "alt_test": [
            _name_people(compared, alt_test_row(compared, j, p, choices.epsilon)) for j, p in twos
        ],
        "disagreement": [
            _name_people(compared, disagreement_row(compared, j, p, choices.seed)) for j, p in twos
        ],
        "contests": contests,
        "across": across,
        "runs": runs,
    }
    return result | {"answers": list(list_answers(result))}


def _pair_with_people(compared: Compared) -> Iterator[tuple[Source, Source]]:
    """Each judge with each source of people that it shares a pair with. What an arm was trained on
    is no judge."""
    for people in (s for s in compared.sources if s.is_people):
        for judge in (s for s in compared.sources if not (s.is_people or s.is_arm)):
            if judge.probs.keys() & people.probs.keys():
                yield judge, people


def _name_people(compared: Compared, row: dict[str, Any]) -> dict[str, Any]:
    """The row with what its people are called in a sentence: by name where there are several."""
    several = sum(source.is_people for source in compared.sources) > 1
    return row | {"whom": f"people ({row['people_of']})" if several else "people"}


def _check_models(contests: Sequence[Mapping[str, Any]], between: Between) -> None:
    known = sorted({row[side] for row in contests for side in ("first", "second")})
    for two in between:
        if not any({row["first"], row["second"]} == set(two) for row in contests):
            listed = ", ".join(known) or "none"
            raise RlaifError(
                f"--between {two[0]} {two[1]}: no source compares these two models, directly or "
                f"with a third. Models that are compared: {listed}."
            )


def _nothing_common(gathered: Gathered, compared: Compared) -> str:
    sources = ", ".join(f"{source.name} ({len(source.probs)} pairs)" for source in compared.sources)
    unread = sum(
        not all(name in gathered.texts for name in judgement.shown)
        for judgements in gathered.judgements.values()
        for judgement in judgements
    )
    lacking = (
        f" {unread} judgements are of answers whose texts are in no input: give the completions or "
        "the pairs too, so that answers can be recognised by their content."
        if unread
        else ""
    )
    return (
        "no two sources have a verdict on the same pair, and no two models were compared. Pairs "
        "are the same where the prompt and both answers are, letter by letter. Sources: "
        f"{sources or 'none'}.{lacking}"
    )


def list_answers(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A plain answer to each question that the numbers are about: `verdict` as in `claims`, and for
    the test that passes or fails `passed`, `failed` or `none`."""
    margin = result["margin"]
    for row in result["beside"]:
        if row["figures"] is None:
            yield {"question": "labels", "verdict": "unknown", "sentence": no_ceiling_sentence(row)}
        else:
            figure = f"agreement with {row['whom']}"
            difference = row["figures"]["difference"]
            yield _answer("labels", PERSON, row["judge"], figure, difference, margin)
    for row in result["alt_test"]:
        yield {"question": "stand-in", "verdict": _passing(row), "sentence": alt_test_sentence(row)}
    for row in result["disagreement"]:
        yield {"question": "cause", "verdict": "none", "sentence": disagreement_sentence(row)}
    for row in result["contests"]:
        if row["asked"]:
            against = f"against {row['opponent']} " if row["opponent"] else ""
            two = row["first"], row["second"]
            figure = f"win rate {against}by {row['by']}"
            yield _answer("policies", *two, figure, row["difference"], margin)
            if row["opponent"] is not None:
                figure = f"share of prompts won, less one half, by {row['by']}"
                yield _answer("policies", *two, figure, less_half(row["won"]), margin)
    for row in result["across"]:
        yield _answer(
            "policies", row["first"], row["second"], row["figure"], row["difference"], margin
        )
    for run in result["runs"]:
        for sentence in run["answers"]:
            prefix = f"{run['name']}: " if len(result["runs"]) > 1 else ""
            yield {"question": "arms", "verdict": "none", "sentence": prefix + sentence}


def _answer(
    question: str, first: str, second: str, figure: str, difference: IntervalJson, margin: float
) -> dict[str, Any]:
    found = answer_of(difference, margin)
    sentence = answer_sentence(first, second, figure, difference, margin)
    return {"question": question, "verdict": found.verdict, "sentence": sentence}


def no_ceiling_sentence(row: Mapping[str, Any]) -> str:
    """What is known of a judge's agreement with people who voted once on each pair."""
    agreement = row["agreement"]
    known = (
        "."
        if agreement is None
        else f": it does on {show_interval(agreement)} of {agreement['n']} pairs, ties excluded."
    )
    return (
        f"Whether {row['judge']} agrees with {row['whom']} as they agree with one another cannot "
        "be told, since no pair that it decided has the votes of two people. How often it agrees "
        f"with their label is known{known}"
    )


def _passing(row: Mapping[str, Any]) -> str:
    return "none" if row["passed"] is None else "passed" if row["passed"] else "failed"


def alt_test_sentence(row: Mapping[str, Any]) -> str:
    """The outcome of the alternative annotator test in words."""
    who, whom = row["judge"], row["whom"]
    if row["refusal"] is not None:
        return f"Whether {who} may stand in for one of {whom} is not tested: {row['refusal']}."
    tested, outdone = len(row["people"]), sum(person["outdone"] for person in row["people"])
    skipped = len(row["skipped"])
    few = f" {skipped} more have too few prompts to be tested." if skipped else ""
    verb = "passes" if row["passed"] else "does not pass"
    return (
        f"{who} {verb} the alternative annotator test with {whom}: with epsilon "
        f"{show_number(row['epsilon'])} it labels as well as {outdone} of {tested} of them "
        f"(winning rate {row['winning_rate']:.2f}; 0.5 is needed). It agrees with the others at "
        f"least as well as the person left out on {row['advantage']:.0%} of pairs.{few}"
    )


def disagreement_sentence(row: Mapping[str, Any]) -> str:
    """What a judge's disagreement with people goes with, in words."""
    about = f"The disagreement of {row['judge']} with {row['whom']}"
    if "refusal" in row:
        return f"{about} is not explained: {row['refusal']}."
    parts = row["parts"]
    clear = [name for name, part in parts.items() if part["low"] is not None and part["low"] > 0]
    clear.sort(key=lambda name: -parts[name]["mean"])
    shown = []
    for name in clear:
        share = "" if row["shares"] is None else f", {row['shares'][name]:.0%} of the gap"
        shown.append(f"{name} ({show_interval(parts[name])} nats{share})")
    rest = ", ".join(sorted(set(parts) - set(clear)))
    if shown:
        found = (
            f"is associated with {', '.join(shown)}{'; not measurably with ' * bool(rest)}{rest}"
        )
    else:
        found = f"is not measurably associated with {rest or 'any feature: none differs'}"
    if row["gap"] is None:
        ceiling = f"No ceiling: {row['no_ceiling']}."
    else:
        gap = show_interval(row["gap"], signed=True)
        ceiling = f"It predicts a vote worse than is possible by {gap} nats."
    return f"{about} (over {row['pairs']} pairs) {found}. {ceiling}"
