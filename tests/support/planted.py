"""Material with a known answer: a scripted reader of labelled pairs, and a run of two programs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import yaml

from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, content_hash, make_prompt
from rlaif.pipeline.experiment import run_experiment

SHORTER = "Choose the response that is shorter."
LIST = "Choose the response that gives a list."
POLITE = "Choose the response that is more polite to the reader."

# What a reader of the two answers would say: one is a line of a few words, the other is long.
FIRST, SECOND = r"\[answer 1 \w+\]\n", r"\[answer 2 \w+\]\n"
SCRIPT = {
    "rules": [
        {
            "match": "Somebody liked the preferred answer",
            "replies": [
                f"1. {SHORTER}\n2. {LIST}\n3. {POLITE}",
                f"- {LIST}\n- **{SHORTER}**",
                f"Some thoughts first.\n1) {POLITE}\n2) Choose the response that is the shorter.",
            ],
        },
        {"match": FIRST + r"[\s\S]*Principle: .*polite", "labels": {"neither": 0.6, "first": 0.2}},
        {"match": FIRST + r".{1,40}\n\[end[\s\S]*Principle: .*shorter", "labels": {"first": 0.7}},
        {"match": SECOND + r".{1,40}\n\[end[\s\S]*Principle: .*shorter", "labels": {"second": 0.7}},
        {
            "match": FIRST + r"- [\s\S]*" + SECOND + r"- [\s\S]*Principle: .*list",
            "labels": {"neither": 0.5},
        },
        {"match": FIRST + r"- [\s\S]*Principle: .*list", "labels": {"first": 0.8, "second": 0.1}},
        {"match": SECOND + r"- [\s\S]*Principle: .*list", "labels": {"second": 0.8, "first": 0.1}},
        {"match": "Principle: .*list", "labels": {"neither": 0.9}},
    ]
}


def answer(prompt_id: str, text: str) -> Completion:
    name = content_hash(prompt_id, text)
    turn = {"role": "assistant", "content": text}
    return Completion(name, prompt_id, 0, [turn], "m", "", {}, "stop")  # type: ignore[list-item]


def pairs(rule: str, count: int = 60, seed: int = 0) -> list[LabelledPair]:
    """Pairs of a short and a long answer, lists among either, labelled by `rule`."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        prompt = make_prompt([{"role": "user", "content": f"Question {number}?"}])
        listed_short, listed_long = rng.choice([(True, False), (False, True), (False, False)])
        short = ("- one - two" if listed_short else "One thing") + f" {number}"
        long = ("- first\n- second\n" if listed_long else "") + "many words " * 9 + str(number)
        texts = [short, long]
        rng.shuffle(texts)
        first, second = (answer(prompt.prompt_id, t) for t in texts)
        if rule == "shorter":
            label = float(first.text == short)
        elif listed_short or listed_long:
            label = float(first.text == (short if listed_short else long))
        else:
            label = 0.5
        made.append(LabelledPair(f"pair{number}", prompt, first, second, label))
    return made


# Two programs that disagree: one wants few words, the other a list.
CONSTITUTION = {
    "name": "two",
    "principles": [
        {
            "id": "brief",
            "text": "The answer has one to three words.",
            "weight": 2,
            "check": {"rule": "word_limits", "params": {"min": 1, "max": 3}},
        },
        {"id": "listed", "text": "The answer is a list.", "check": {"rule": "is_list"}},
    ],
}
REPLIES = [
    "Yes it is.",
    "- one\n- two\n- three\n- four\n- five",
    "A long answer of seven plain words.",
]


def two_checks_run(folder: Path, write_experiment: Callable[..., Path]) -> Path:
    """The folder of a finished run of a scripted policy, whose pairs two programs made."""
    path = write_experiment(
        folder,
        None,
        models={"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
        rounds=1,
        steps=[
            {"sample": {"n": 4, "temperature": 1.0, "max_new_tokens": 40}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {"strategy": "all"}},
        ],
    )
    script = {"rules": [{"match": ".", "replies": REPLIES}]}
    (folder / "script.yaml").write_text(yaml.safe_dump(script), "utf-8")
    (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION), "utf-8")
    run_experiment(path, folder / "run")
    return folder / "run"
