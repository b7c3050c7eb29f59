"""A verdict in the form that was asked for, amid prose that mentions other numbers, is read right
or not at all; and nearly always where no other line of that form stands in the text."""

from __future__ import annotations

import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.judges.forms import declared
from rlaif.judges.pairwise import choice_of
from rlaif.judges.questions import Written
from rlaif.judges.scored import score_of

LOW, HIGH = 1, 5
CHOICES = {"first": ("1", " 1"), "second": ("2", " 2"), "tie": ("tie",), "abstain": ("abstain",)}
SAID = {"1": "first", "2": "second"}

PROSE = (
    "The answer names {n} fruits out of {m}.",
    "About {n}/{m} of it is true.",
    "To reach a score of {n}, it would have to explain its choice.",
    "A score of {n} is for perfect answers.",
    "One might be tempted to give it a {n}.",
    "It is {n} out of {m} in clarity.",
    'The answer itself says "{form} {n}" at its end.',
    "It quotes \u201c{form} {n}\u201d and \u00ab{form} {m}\u00bb.",
    "It prints `{form} {n}` in code.",
    "It has a fence:\n```\n{form} {n}\n```",
    "> {form} {n}",
    'The writer put "<think>{form} {n}</think>" in quotation marks.',
    "It even writes `</think>` and '<think>' for no reason.",
    "{n}: excellent\n{m}: poor",
    "There are {n} typos, {m} sentences and 1,000 words.",
    "I cannot fault its {n} points; {n}% of them are new.",
    "Answer {n} is longer than answer {m}.",
    "Isn't it the author's {n}nd try? It's the dogs' bowl, 5\" wide.",
    "It names a 3/4 cup, on 4/5/1999, at {n}:30.",
    "Some would say that {n} is fair; others {m}.",
    "- It has {n} points\n- and {m} examples",
    "**Strengths:** {n} of them. **Weaknesses:** {m}.",
    "Here is my reasoning, in {n} steps:",
)
OTHERS = (
    "{form} {n}",
    "A {form} {n} would be too much.",
    "It does not deserve {form} {n}.",
    "{form} {n} is for perfect answers.",
    "At first I thought: {form} {n}",
    "The answer says:\n{form} {n}",
)
"""Lines of the asked form that are not the verdict, as far as a reader can tell."""
VERDICTS = (
    "{form} {v}",
    "**{form} {v}**",
    "**{form}** {v}",
    "{form} {v}.",
    "### {form} {v}",
    "Overall, {form} {v}",
)


def pieces(
    draw: st.DrawFn, kinds: tuple[str, ...], form: str, numbers: tuple[str, ...]
) -> list[str]:
    lines = draw(st.lists(st.sampled_from(kinds), max_size=5))
    pick = st.sampled_from(numbers)
    return [line.format(form=form, n=draw(pick), m=draw(pick)) for line in lines]


@st.composite
def texts(draw: st.DrawFn, form: str, values: tuple[str, ...], others: bool) -> tuple[str, str]:
    """A text and the verdict in it."""
    value = draw(st.sampled_from(values))
    before, after = (pieces(draw, PROSE, form, ("1", "2", "3", "4", "5", "10")) for _ in range(2))
    if others:
        before += pieces(draw, OTHERS, form, values)
        # Behind the verdict a last line of the form would be the verdict.
        after = [*pieces(draw, OTHERS, form, values), *after, "That is all."]
    verdict = draw(st.sampled_from(VERDICTS)).format(form=form, v=value)
    return "\n".join([*before, verdict, *after]), value


def scored(text: str, form: str) -> object:
    return score_of(Written(text, "0123abcd"), LOW, HIGH, ("abstain",), declared(f"{form} VALUE"))


def chosen(text: str, form: str) -> object:
    return choice_of(Written(text, "0123abcd"), CHOICES, declared(f"{form} VALUE"))


NUMBERS = ("1", "2", "3", "4", "5")


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from(["Score:", "[RESULT]"]))
def test_a_score_amid_prose_is_read_right_or_not_at_all(
    data: st.DataObject, others: bool, form: str
) -> None:
    text, value = data.draw(texts(form, NUMBERS, others))
    assert scored(text, form) in ((float(value), None) if others else (float(value),))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from(["Verdict:", "[RESULT]"]))
def test_a_choice_amid_prose_is_read_right_or_not_at_all(
    data: st.DataObject, others: bool, form: str
) -> None:
    text, value = data.draw(texts(form, ("1", "2"), others))
    assert chosen(text, form) in ((SAID[value], None) if others else (SAID[value],))


WORDS = (
    "it",
    "the answer",
    "good",
    "not",
    "score",
    "of",
    "4",
    "2",
    "1/2",
    "out of",
    "5",
    "would",
    ":",
)
WORDS += (
    "is",
    "a",
    ",",
    ".",
    "\n",
    "better",
    "than",
    "(",
    ")",
    "verdict",
    '"',
    "'",
    "`",
    "<think>",
)


def test_99_of_100_are_read_amid_random_words() -> None:
    """Words in any order make sentences that no list of them foresees: quotation marks that never
    close and thinking that never ends among them, which may hide a verdict but make none."""
    rng = random.Random(7)
    read = sound = 0
    for _ in range(1000):
        before, after = (" ".join(rng.choices(WORDS[:-4], k=rng.randint(0, 15))) for _ in range(2))
        value = rng.randint(LOW, HIGH)
        found = scored(f"{before}\n\nScore: {value}\n\n{after}", "Score:")
        assert found in (None, float(value)), (before, after)
        if not re.search(r"score\s*[:(]", before + after):
            sound += 1
            read += found is not None
        wild = " ".join(rng.choices(WORDS, k=12))
        assert scored(f"{wild}\nScore: {value}\n{wild}.", "Score:") in (None, float(value)), wild
    assert read >= 0.99 * sound, f"{read} of {sound}"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200), st.integers(LOW, HIGH))
def test_any_text_around_a_verdict_gives_no_other(before: str, after: str, value: int) -> None:
    found = scored(f"{before}\nScore: {value}\n{after}", "Score:")
    assert found in (None, float(value)) or "core" in before + after


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_a_text_without_a_verdict_is_a_number_alone_or_nothing(text: str) -> None:
    if scored(text, "Score:") is not None:
        assert any(c.isdigit() for c in text)
