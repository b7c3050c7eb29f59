"""What written prompts and a dataset's card are made of: sources, seeds, steps and counts that all
differ."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlaif.config.prompts import PromptsFile
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Judgement, make_prompt
from rlaif.core.store import Store
from rlaif.data.describe import describe_data
from rlaif.data.readers.base import make_pair, user
from rlaif.engines.base import GenerateResult, Model
from rlaif.pipeline import provenance as told
from rlaif.pipeline.constitutions import hash_constitution
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.prompt_generation.accept import Accepted
from rlaif.pipeline.prompt_generation.ask import writing
from rlaif.pipeline.prompt_generation.mix import mixed, shares
from rlaif.pipeline.prompt_generation.run import make_prompts

GIVEN = [f"Given prompt number {n} about {word}?" for n, word in enumerate(("sea", "sky", "soil"))]


def spec_of(*sources: dict[str, Any], **keys: Any) -> PromptsFile:
    return PromptsFile.model_validate({"sources": list(sources), "seed": 5, **keys})


def asks(
    source: dict[str, Any], calls: int, made: tuple[str, ...] = (), seed: int = 5
) -> list[Any]:
    [made_source] = spec_of(source).sources
    own = writing(made_source, GIVEN, seed, None)
    return [own.ask(number, made) for number in range(calls)]


EVOLVE = {"id": "e", "kind": "evolve", "of": "p.jsonl", "count": 2, "temperature": 0.4}
EVOLVE |= {"top_p": 0.9, "max_new_tokens": 33, "operations": ["deepen", "reason"]}
TOPICS = {"id": "t", "kind": "topics", "count": 2, "topics": ["rain", "snow"]}
TOPICS |= {"personas": ["a pilot", "a cook"]}


def test_a_call_is_sampled_as_its_source_says_with_a_seed_of_its_own() -> None:
    found = [ask.request for ask in asks(EVOLVE, 3)]
    for request in found:
        sampling = request.sampling
        assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (33, 0.4, 0.9)
        assert request.writes == "assistant"
    others = [ask.request for ask in asks(EVOLVE, 3, seed=6)]
    other = [ask.request for ask in asks(EVOLVE | {"id": "f"}, 3)]
    every = [*found, *others, *other]
    assert len({r.sampling.seed for r in every}) == len({r.request_id for r in every}) == 9
    assert found == [ask.request for ask in asks(EVOLVE, 3)]


def test_each_given_prompt_is_rewritten_in_turn_by_an_operation_that_its_tag_names() -> None:
    found = asks(EVOLVE, 12)
    for number, ask in enumerate(found):
        [message] = ask.request.messages
        assert GIVEN[number % 3] in message["content"]
        assert sum(text in message["content"] for text in GIVEN) == 1
        [tag] = ask.tags
        assert tag in ("evolved-deepen", "evolved-reason")
    assert len({ask.tags for ask in found}) == 2


def test_every_persona_meets_every_topic() -> None:
    found = asks(TOPICS | {"red_team": True}, 5)
    wanted = [(p, t) for p in ("a pilot", "a cook") for t in ("rain", "snow")]
    for ask, (persona, topic) in zip(found, [*wanted, wanted[0]], strict=True):
        text = ask.request.messages[-1]["content"]
        assert persona in text and topic in text
        assert ask.tags == (topic, "red-team")
    [plain] = asks(TOPICS, 1)
    assert plain.tags == ("rain",)
    assert plain.request.messages != found[0].request.messages
    [nobody] = asks({"id": "t", "kind": "topics", "count": 2, "personas": ["a pilot"]}, 1)
    assert nobody.tags == ()


def test_new_instructions_are_shown_seeds_and_what_was_made() -> None:
    source = {"id": "s", "kind": "self_instruct", "seeds": "p.jsonl", "count": 9}
    source |= {"seed_examples": 2, "own_examples": 1}
    made = ("Made one?", "Made two?")

    def shown(made: tuple[str, ...]) -> tuple[int, int]:
        [ask] = asks(source, 1, made)
        text = ask.request.messages[-1]["content"]
        return sum(t in text for t in GIVEN), sum(t in text for t in ("Made one?", "Made two?"))

    assert shown(made) == (2, 1)
    # What there is not of its own, seeds make up for.
    assert shown(()) == (3, 0)


def test_magpie_writes_the_users_turn_after_its_system_prompt() -> None:
    source = {"id": "m", "kind": "magpie", "count": 1}
    [plain], [said] = asks(source, 1), asks(source | {"system_prompt": "You teach."}, 1)
    assert plain.request.messages == [] and plain.request.writes == "user"
    assert said.request.messages == [{"role": "system", "content": "You teach."}]
    assert plain.read("First.\n\nSecond.") == ["First."] and plain.read(" \n") == []


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        (EVOLVE, "{{ request }} {{ operation }} {{ fence }}"),
        (TOPICS, "{{ persona }} {{ topic }} {{ red_team }}"),
        (
            {"id": "s", "kind": "self_instruct", "seeds": "p.jsonl", "count": 9},
            "{% for e in examples %}{{ e }}{% endfor %}{{ wanted }}",
        ),
    ],
)
def test_a_template_of_ones_own_is_what_is_asked(
    source: dict[str, Any], variables: str, tmp_path: Path
) -> None:
    (tmp_path / "own.j2").write_text("Own words: " + variables)
    [made_source] = spec_of(source | {"template": str(tmp_path / "own.j2")}).sources
    [message] = writing(made_source, GIVEN, 5, None).ask(0, []).request.messages
    assert message["content"].startswith("Own words: ")


@pytest.mark.parametrize(
    ("keys", "words", "why"),
    [
        ({"max_words": 4}, "Five words are too many.", "too long"),
        ({"max_words": 5}, "Five words are not many.", None),
        ({"min_words": 6}, "Five words are too few.", "too short"),
    ],
)
def test_the_bounds_of_a_source_are_inclusive(
    keys: dict[str, int], words: str, why: str | None
) -> None:
    [source] = spec_of({"id": "m", "kind": "magpie", "count": 1, **keys}).written
    assert Accepted([], source).why_not(words) == why


class Engine:
    """Writes a prompt that says which call asked for it; answers are as long as the prompt says."""

    capabilities = frozenset({"generate", "user_turn"})

    def __init__(self, lengths: dict[str, int]):
        self.lengths = lengths
        self.asked: list[Any] = []

    def generate(self, requests: Any, done: Any) -> Any:
        for request in requests:
            if request.request_id in done:
                continue
            self.asked.append(request)
            text = f"Word{len(self.asked)} and more words of call {len(self.asked)}?"
            if request.writes == "assistant":
                number = request.messages[-1]["content"].split()[0]
                text = "x" * self.lengths[number]
            yield [GenerateResult(request.request_id, text, [], "stop", 1)]


def made(folder: Path, spec: PromptsFile, engine: Engine) -> tuple[dict[str, Any], list[Any]]:
    model: Any = SimpleNamespace(label="w", identity=lambda: "identity")
    engines: Any = SimpleNamespace(get=lambda model: engine)
    models: dict[str, Model] = {"writer": model}
    store = Store(folder / "out")
    store.root.mkdir(parents=True, exist_ok=True)
    report = make_prompts(spec, folder / "p.yaml", models, engines, store, QuietProgress())
    text = (store.root / "prompts.jsonl").read_text("utf-8")
    assert json.loads((store.root / "report.json").read_text("utf-8")) == report
    return report, [json.loads(line) for line in text.splitlines()]


def test_the_longest_answers_decide_which_of_the_written_prompts_are_kept(tmp_path: Path) -> None:
    source = {"id": "m", "kind": "magpie", "count": 2, "longest_answers": 2.0, "tags": ["own"]}
    source |= {"most_alike": 1.0, "max_new_tokens": 20, "calls": 4}
    engine = Engine({"Word1": 5, "Word2": 50, "Word3": 7, "Word4": 20})
    report, rows = made(tmp_path, spec_of(source), engine)
    found = {row["messages"][0]["content"].split()[0] for row in rows}
    assert found == {"Word2", "Word4"}
    assert {(row["source"], *row["tags"]) for row in rows} == {("m", "own")}
    about = report["sources"]["m"]
    assert (about["calls"], about["written"], about["taken"], about["mixed"]) == (4, 4, 2, 2)
    assert about["longest_answers"] == 2.0 and report["prompts"] == 2
    answers = engine.asked[4:]
    assert {r.sampling.max_new_tokens for r in answers} == {80}
    assert len({r.sampling.seed for r in answers}) == 4
    again = Engine({})
    assert made(tmp_path, spec_of(source), again)[0] == report and again.asked == []


def test_files_are_mixed_by_their_weights_with_their_own_tags_and_references(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        written: list[dict[str, Any]] = [
            {"prompt": f"{name}{n}?", "tags": [f"row{n}"], "reference": f"{name}{n}!"}
            for n in range(8)
        ]
        text = "".join(json.dumps(row) + "\n" for row in written)
        (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
    sources = [
        {"id": "one", "kind": "file", "path": "a.jsonl", "weight": 3.0, "tags": ["first"]},
        {"id": "two", "kind": "file", "path": "b.jsonl", "weight": 1.0},
    ]
    report, rows = made(tmp_path, spec_of(*sources, count=8), Engine({}))
    assert Counter(row["source"] for row in rows) == {"one": 6, "two": 2}
    for row in rows:
        name = row["messages"][0]["content"].rstrip("?")
        tags = [f"row{name[1]}", *(["first"] if name[0] == "a" else [])]
        assert (row["tags"], row["reference"]) == (tags, f"{name}!")
    assert {n: (r["taken"], r["mixed"]) for n, r in report["sources"].items()} == {
        "one": (8, 6),
        "two": (8, 2),
    }


def test_shares_go_by_weight_and_others_make_up_for_a_small_source() -> None:
    assert shares({"a": 9, "b": 9}, {"a": 3, "b": 1}, 8) == {"a": 6, "b": 2}
    assert shares({"a": 2, "b": 9}, {"a": 3, "b": 1}, 8) == {"a": 2, "b": 6}
    assert shares({"a": 2, "b": 3}, {"a": 3, "b": 1}, 8) == {"a": 2, "b": 3}
    assert shares({"a": 9, "b": 9, "c": 9}, {"a": 1, "b": 1, "c": 1}, 5) == {
        "a": 2,
        "b": 2,
        "c": 1,
    }
    both = make_prompt(user("both"), "x", ["one"]), make_prompt(user("both"), "x", ["two"])
    found = mixed({"a": [both[0]], "b": [both[1]]}, {"a": 1, "b": 1}, None, 3)
    assert [p.tags for p in found] == [["one"]]


class Folder:
    def __init__(self, marker: Any, rows: list[Any]):
        self._marker, self._rows = marker, rows

    def done(self) -> Any:
        return self._marker

    def records(self, kind: Any) -> Any:
        return iter(self._rows)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run of two rounds whose every step counts something else."""
    pair = {"id": "pair", "strategy": "margin", "min_margin": 0.25}
    config: dict[str, Any] = {
        "steps": [
            {"sample": {"id": "draw"}},
            {"judge": {"id": "j", "kind": "rating"}},
            {"judge": {"id": "unused", "kind": "yes_no"}},
            {"pair": pair},
        ]
    }
    config |= {"name": "e", "prompts": {"path": "p.jsonl"}}
    config |= {"models": {"policy": {"path": "none", "engine": "fake"}}}
    experiment = Experiment.model_validate(config)
    markers: dict[str, Any] = {
        "s1": {"counts": {"completions": 10, "failed": 1}},
        "j1": {"counts": {"judgements": 9, "with_value": 7}, "statuses": {"ok": 6, "tie": 1}},
        "p1": {"counts": {"prompts": 5, "preferences": 4, "tied_prompts": 1}},
        "s2": {"counts": {"completions": 20, "failed": 2}},
        "p2": {"counts": {"prompts": 9, "preferences": 3, "tied_prompts": 2}},
    }
    markers["j1"]["statuses"] |= {"unparsed": 2, "failed": 0}
    markers["p1"]["weights"] = {"k": 250.0, "j": 0.125}
    markers["p2"]["weights"] = {"j": 1.0}
    rows = {"p1": [SimpleNamespace(prompt_id=n) for n in "aab"]}
    rows["p2"] = [SimpleNamespace(prompt_id=n) for n in "abcd"]
    return SimpleNamespace(
        root=tmp_path,
        experiment=lambda: experiment,
        spec_of=lambda step: next(
            (e.step for e in experiment.entries if e.step.id == step["id"]), None
        ),
        manifest={
            "prompts": {"train": 30, "heldout": 4},
            "judges": {"j": "hash of j", "unused": "x"},
            "constitution": RULES.model_dump(mode="json"),
            "constitution_hash": hash_constitution(RULES),
            "arms": {},
        },
        store=SimpleNamespace(step=lambda name: Folder(markers.get(name), rows.get(name, []))),
    )


RULES = Constitution.model_validate(
    {"name": "rules", "version": "2", "principles": [{"id": "kind", "text": "Be kind."}]}
)
ABOVE = [
    {"id": "draw", "kind": "sample", "hash": "s1", "round": 1, "arms": []},
    {"id": "j", "kind": "judge", "hash": "j1", "round": 1, "arms": []},
    {"id": "people", "kind": "load", "hash": "l1", "round": 1, "arms": []},
    {"id": "pair", "kind": "pair", "hash": "p1", "round": 1, "arms": []},
    {"id": "draw", "kind": "sample", "hash": "s2", "round": 2, "arms": []},
    {"id": "pair", "kind": "pair", "hash": "p2", "round": 2, "arms": []},
]


def test_the_funnel_has_every_steps_own_counts_and_reasons(run: Any) -> None:
    found = told.funnel(run, ABOVE)
    rows = [tuple(row[k] for k in ("step", "what", "came", "left", "why")) for row in found]
    tied, rest = "tied_prompts", "no two answers fit its keys"
    assert rows == [
        ("prompts", "prompts", 34, 30, "held out: 4"),
        ("draw, round 1", "completions", 10, 9, "failed: 1"),
        ("j, round 1", "judgements", 9, 7, "unparsed: 2"),
        # Two prompts have a pair and one is tied: of five two are left.
        ("pair, round 1", "prompts to pairs", 5, 4, f"{tied}: 1; {rest}: 2"),
        ("draw, round 2", "completions", 20, 18, "failed: 2"),
        ("pair, round 2", "prompts to pairs", 9, 3, f"{tied}: 2; {rest}: 3"),
    ]
    filtered = {"funnel": [{"came": 5, "left": 3, "filter": "near", "why": {"alike": 2}}]}
    assert told.stages("filter", filtered) == [(5, 3, "near", {"alike": 2})]
    assert told.last_row({"train": 3, "test": 2}) == {
        "step": "dataset",
        "what": "pairs",
        "came": 5,
        "left": 5,
        "why": "train: 3; test: 2",
    }


def test_judges_weights_and_constitution_are_those_of_the_run(run: Any) -> None:
    assert told.judges(run, ABOVE) == [
        {"judge": "j", "kind": "rating", "hash": "hash of j"},
        {"judge": "people", "kind": "loaded", "hash": ""},
    ]
    start = "pair: strategy margin, by the mean of the judges' scores on [0, 1] with the weights "
    assert told.pairing(run, ABOVE) == [
        f"{start}j 0.125, k 250; at least 0.25 apart",
        f"{start}j 1; at least 0.25 apart",
    ]
    judging = [step for step in ABOVE if step["kind"] == "judge"]
    said = told.constitution(run, None, judging)
    assert said == f"rules, version 2, hash {hash_constitution(RULES)}"
    run.manifest["constitution"] = None
    assert told.constitution(run, None, judging) is None
    assert told.models({("m2", "w"): 3, ("m1", "v"): 5}) == [
        {"model": "m1", "weights": "v", "answers": "5"},
        {"model": "m2", "weights": "w", "answers": "3"},
    ]


def test_a_cards_example_figures_and_limits_are_of_each_side() -> None:
    pairs = [
        make_pair("f:0", user("Q?"), ("one two three four", "one"), 1.0, scores=(4.0, 2.5)),
        make_pair("f:1", user("R?"), ("a b", "c"), 1.0, scores=(3.0, 2.0)),
    ]
    assert told.example(pairs[0]) == {
        "Prompt": "Q?",
        "Chosen (4)": "one two three four",
        "Rejected (2.5)": "one",
    }
    bare = make_pair("f:2", user("Q?"), ("a", "b"), 1.0)
    assert list(told.example(bare)) == ["Prompt", "Chosen", "Rejected"]
    found = describe_data(pairs)
    assert told.figures(found) == {
        "words of the chosen: mean (5% to 95%)": "3 (2 to 4)",
        "words of the rejected": "1 (1 to 1)",
        "chosen is the longer one": "100%",
        "gap of the scores": "1.25 (1 to 1.5)",
    }
    rows: Any = (("1", "ok", 0.5), ("2", "unparsed", None), ("3", "tie", 0.5))
    missing = [
        Judgement(n, n, "p", "completion", ["c"], "c", "j", "a", "ai", None, status, score)
        for n, status, score in rows
    ]
    said = told.limits(found, missing, {"length": 2, "stop": 5})
    assert "2 of the pairs' 7 answers were cut at the limit of tokens." in said
    assert "1 of 3 judgements have no value and count nowhere." in said
    assert any(line.startswith("In 100% of the pairs of unequal length") for line in said)
    assert not any("always the" in line for line in said)


def test_a_source_that_brings_nothing_says_how_often_it_asked(tmp_path: Path) -> None:
    source = {"id": "m", "kind": "magpie", "count": 2, "min_words": 90, "calls": 3}
    with pytest.raises(ConfigError, match=r"source m: 3 calls of 'w' .*'too short': 3"):
        made(tmp_path, spec_of(source), Engine({}))
