"""What a model card says that a model was trained on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from msgspec.structs import replace

from rlaif.core.records import Message, Preference
from rlaif.pipeline.steps.load import load_preferences
from rlaif.pipeline.steps.model_card import BY_JUDGES, trained_on
from rlaif.preferences.labels import TURNED

JUDGES = {"self": "ai", "checks": "rule", BY_JUDGES: "ai and rule"}


def read(row: dict[str, object]) -> Preference:
    """The row as a file of it is read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        (found,) = load_preferences(path)
    return found


def preference(source: str) -> Preference:
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "source": source}
    return read(row)


def single(good: bool, source: str = "human") -> Preference:
    row = {"prompt": "Why?", "completion": "Because.", "label": good, "source": source}
    return read(row)


def test_pairs_are_named_by_who_labelled_them() -> None:
    given = [preference("human")] * 5 + [preference("ai")] * 8
    assert trained_on(given, JUDGES) == "13 preferences: 8 ai, 5 human"
    judged = [preference("self"), preference("checks"), preference(BY_JUDGES)]
    assert trained_on(judged, JUDGES) == "3 preferences: 1 ai, 1 ai and rule, 1 rule"


def test_labels_that_were_turned_round_are_counted() -> None:
    given = [preference("human"), preference(f"human{TURNED}")]
    said = trained_on(given, JUDGES)
    assert said == "2 preferences: 2 human (1 label turned round)"


def test_good_answers_alone_are_demonstrations() -> None:
    assert trained_on([single(True)] * 3, JUDGES) == "3 demonstrations: 3 human"
    both = [single(True), single(False), single(False)]
    assert (
        trained_on(both, JUDGES)
        == "1 answer labelled good: 1 human; 2 answers labelled bad: 2 human"
    )


def test_training_on_chosen_answers_says_so() -> None:
    said = trained_on([preference("human")], JUDGES, chosen_only=True)
    assert said == "the chosen answers of 1 preference: 1 human"


def test_what_no_one_is_named_for_is_not_called_ai() -> None:
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    said = trained_on([read(row)], JUDGES)
    assert said == "1 preference: 1 of a file that does not say by whom"
    turn: list[Message] = [{"role": "assistant", "content": "A reference."}]
    spin = replace(preference("reference"), chosen=turn)
    assert trained_on([spin], JUDGES) == "1 preference: 1 the prompts' own answers against samples"
