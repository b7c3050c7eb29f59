"""`rlaif new`: files that load, plan and run as they are written, whatever the answers."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlaif.cli import cli
from rlaif.cli.recipes import RECIPES, writing
from rlaif.cli.recipes.render import write_value
from rlaif.core.errors import RlaifError
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.reading import experiment_schema, load_experiment
from rlaif.pipeline.runs import load_run

SERVER = ("--judge", "http://127.0.0.1:8000/v1", "--judge-model", "served")
OTHER = ("--judge", "someone/another-model")
OWN = ("--prompts", "own.jsonl", "--rounds", "1", "--seeds", "5")
VARIANTS: dict[str, list[tuple[str, ...]]] = {
    "dpo": [
        (),
        ("--judge", "self", "--constitution", "harmless"),
        OTHER,
        (*SERVER, *OWN),
        ("--prompts", "who/knows", "--model", "someone/policy", "--seeds", "1,2", "--rounds", "3"),
    ],
    "self-rewarding": [
        (),
        ("--demonstrations", "demos.jsonl"),
        ("--demonstrations", "demos.jsonl", "--constitution", "harmless", *OWN),
        ("--constitution", "honest", "--prompts", "answered"),
    ],
    "reward-model": [(), ("--judge", "self"), (*OTHER, *OWN), SERVER],
    "on-policy": [(), ("--judge", "self", "--constitution", "helpful"), (*OTHER, *OWN), SERVER],
    "constitutions": [
        (),
        ("--judge", "self"),
        (*OTHER, "--constitution", "helpful", "--against", "harmless", "--seeds", "1,2,3"),
        (*SERVER, *OWN),
    ],
    "human-vs-ai": [
        (),
        ("--judge", "self", "--data", "few.jsonl"),
        (*OTHER, "--seeds", "1,2"),
        SERVER,
    ],
    "dataset": [
        (),
        ("--judge", "self"),
        (*OTHER, "--constitution", "harmless"),
        (*SERVER, "--prompts", "own.jsonl"),
    ],
}
ONE_SCHEMA = cache(experiment_schema)
CASES = [
    pytest.param(name, options, id=f"{name}-{n}")
    for name, variants in VARIANTS.items()
    for n, options in enumerate(variants)
]


@pytest.fixture(autouse=True)
def _one_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema is made once, and not by every test."""
    monkeypatch.setattr(writing, "experiment_schema", ONE_SCHEMA)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prompts, pairs and demonstrations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"prompt": f"Question {n}?"} for n in range(14)]
    write_rows(tmp_path / "own.jsonl", rows)
    pairs = [{"prompt": f"Ask {n}?", "chosen": "Yes, it is.", "rejected": "no"} for n in range(300)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows(tmp_path / "few.jsonl", pairs[:20])
    demos = [{"prompt": f"Say {n}.", "completion": f"Here is {n}."} for n in range(6)]
    write_rows(tmp_path / "demos.jsonl", demos)
    return tmp_path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def new(*words: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(cli, ["new", *map(str, words)], **options)


def written(*words: str | Path) -> Path:
    done = new(*words, "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    return Path(words[0])


def test_every_recipe_is_tried() -> None:
    assert [*VARIANTS] == [*RECIPES]


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(ONE_SCHEMA()))


@pytest.mark.parametrize(("recipe", "options"), CASES)
def test_what_is_written_loads_and_plans_in_both_sizes(
    recipe: str, options: tuple[str, ...], here: Path, schema: jsonschema.Draft202012Validator
) -> None:
    path = written("my.yaml", "--recipe", recipe, *options)
    text = path.read_text("utf-8")
    assert text.startswith("# yaml-language-server: $schema=experiment.schema.json\n")
    assert "\n\n\n" not in text and not [n for n in text.splitlines() if n != n.rstrip()]
    data = yaml.safe_load(text)
    assert not [*schema.iter_errors(data)]
    small = prepare(path, fetch=False)
    # So many made-up prompts are enough here.
    fewer = (
        ["prompts.count=700"] if "dataset" in data["profiles"]["full"].get("prompts", ()) else []
    )
    full = prepare(path, fewer, fetch=False, profile="full")
    plans = [make_plan(inputs) for inputs in (small, full)]
    # The method is the same one, at another size.
    first, second = ([(p.kind, p.id, p.round, p.arms) for p in plan] for plan in plans)
    assert first == second and first
    made = [{p.hash for p in plan if p.kind in ("train", "sample", "evaluate")} for plan in plans]
    assert made[0] and not made[0] & made[1]
    own_model = "--model" in options
    assert any("meta-llama" in note for note in full.provisional) != own_model


ROUND = ["sample", "judge", "pair", "train", "evaluate"]


@pytest.mark.parametrize(
    ("recipe", "options", "stages"),
    [
        ("dpo", (), [(2, ROUND)]),
        ("self-rewarding", (), [(2, ROUND)]),
        (
            "self-rewarding",
            ("--demonstrations", "demos.jsonl"),
            [(1, ["load", "train", "evaluate"]), (2, ROUND)],
        ),
        (
            "reward-model",
            (),
            [(1, ["sample", "judge", "pair", "distill"]), (2, ["train", "evaluate"])],
        ),
        ("on-policy", (), [(2, ["train", "evaluate"])]),
        ("constitutions", (), [(2, ROUND)]),
        ("human-vs-ai", (), [(1, ["load", "judge", "label", "train", "evaluate"])]),
        ("dataset", (), [(1, ["sample", "filter", "judge", "pair", "filter"])]),
    ],
)
def test_a_recipe_is_its_method(
    recipe: str, options: tuple[str, ...], stages: list[tuple[int, list[str]]], here: Path
) -> None:
    own, _ = load_experiment(written("my.yaml", "--recipe", recipe, *options))
    assert [(s.rounds, [entry.kind for entry in s.steps]) for s in own.all_stages] == stages


def test_methods_differ_where_they_say(here: Path) -> None:
    path = written("a.yaml", "--recipe", "constitutions", "--against", "brevity_only")
    arms = prepare(path, fetch=False).arms
    assert arms["b"].constitution is not None and arms["b"].constitution.name == "brevity-only"
    own, _ = load_experiment(path)
    assert [j.constitution for j in own.judges] == [
        "constitutions/concise_helper.yaml",
        "constitutions/brevity_only.yaml",
    ]
    path = written("b.yaml", "--recipe", "human-vs-ai")
    arms_by_label = {n: a.labels for n, a in load_experiment(path)[0].arms.items()}
    assert arms_by_label == {"human": "human", "ai": "checks", "random": "random"}


def test_every_answer_reaches_the_file(here: Path) -> None:
    words = ["--name", "Mine", "--model", "some/model", "--rounds", "4", "--seeds", "3, 9", *SERVER]
    path = written("a/b/my.yaml", *words, "--prompts", "own.jsonl", "--constitution", "honest")
    own, _ = load_experiment(path)
    assert (own.name, own.rounds, own.all_seeds) == ("Mine", 4, [3, 9])
    assert own.models["policy"].path == "some/model"
    labeller = own.models["labeller"]
    assert (labeller.base_url, labeller.path) == ("http://127.0.0.1:8000/v1", "served")
    assert own.constitution == "constitutions/honest.yaml"
    # Of 14 prompts 4 are held out, and no more are sampled than are left.
    assert (own.prompts.path, own.prompts.holdout) == ("own.jsonl", 4)
    assert own.entries[0].step.prompts == 10
    # The model is the user's own, so the full size keeps it.
    assert load_experiment(path, profile="full")[0].models["policy"].path == "some/model"


def test_the_full_policy_is_not_the_judge(here: Path) -> None:
    path = written("my.yaml", "--judge", "meta-llama/Llama-3.1-8B-Instruct")
    full = load_experiment(path, profile="full")[0]
    assert full.models["policy"].path != full.models["labeller"].path


texts = st.text(min_size=1, max_size=30).filter(lambda t: bool(t.strip()) and "\x00" not in t)
encodable = texts.filter(lambda t: t.encode("utf-8", "ignore").decode() == t)


@given(encodable)
def test_values_read_back_as_they_are(text: str) -> None:
    written_value = write_value(text)
    assert "\n" not in written_value
    assert yaml.safe_load(f"a: {written_value}   # note\nb: 1") == {"a": text, "b": 1}
    assert yaml.safe_load(f"a: {{path: {written_value}}}") == {"a": {"path": text}}


@pytest.mark.parametrize(
    "text",
    [
        "a: b",
        "C:\\models\\new",
        "it's",
        'say "so"',
        "名前",
        "null",
        "1e5",
        "#x",
        "a, b]",
        "*x",
        "é\n- y",
    ],
)
def test_names_and_paths_are_quoted(text: str, here: Path) -> None:
    path = written("my file.yaml", "--name", text, "--model", text, "--prompts", f"{text}.jsonl")
    own = load_experiment(path)[0]
    assert (own.name, own.models["policy"].path) == (text, text)
    assert own.prompts.path == f"{text}.jsonl"


@settings(max_examples=10)
@given(name=encodable, model=encodable, data=encodable)
# No user has that name, whose home it would be.
@example(name="~0", model="~0", data="~")
def test_any_text_makes_a_file_that_loads(name: str, model: str, data: str) -> None:
    with CliRunner().isolated_filesystem():
        words = [f"--name={name}", f"--model={model}", f"--data={data}.jsonl"]
        path = written("my.yaml", "--recipe", "human-vs-ai", *words)
        own = load_experiment(path)[0]
    assert (own.name, own.models["policy"].path, own.data) == (name, model, f"{data}.jsonl")


def test_nothing_is_overwritten(here: Path) -> None:
    path = written("my.yaml")
    before = path.read_text()
    done = new("my.yaml", "--yes", "--recipe", "on-policy")
    assert isinstance(done.exception, RlaifError) and "--force" in str(done.exception)
    assert path.read_text() == before
    written("my.yaml", "--recipe", "on-policy", "--force")
    assert "grpo" in path.read_text()
    schema = here / "experiment.schema.json"
    assert json.loads(schema.read_text()) == json.loads(experiment_schema())
    # A schema of another version is renewed; a file that is something else stays.
    schema.write_text('{"title": "Experiment", "old": true}')
    written("other.yaml")
    assert "old" not in json.loads(schema.read_text())
    schema.write_text('{"mine": 1}')
    done = new("third.yaml", "--yes")
    assert "no schema of rlaif" in str(done.exception)
    assert schema.read_text() == '{"mine": 1}' and not (here / "third.yaml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--constitution", "harmles"), "did you mean 'harmless'"),
        (("--constitution", "harmless", "--judge", "rules"), "has none: take self or a model"),
        (("--constitution", "brevity_only", "--judge", "self"), "take rules or a model"),
        (("--recipe", "self-rewarding", "--constitution", "brevity_only"), "no principle with a"),
        (("--recipe", "self-rewarding", "--judge", "rules"), "--judge: this recipe has no use"),
        (("--recipe", "human-vs-ai", "--rounds", "2"), "--rounds: this recipe has no use"),
        (("--demonstrations", "demos.jsonl"), "--demonstrations: this recipe has no use"),
        (("--recipe", "constitutions", "--against", "concise-helper"), "the same one"),
        (("--judge", "some/model", "--model", "some/model"), "say `--judge self`"),
        (("--judge", "http://127.0.0.1:1/v1"), "--judge-model is needed"),
        (("--judge", "https://key@host/v1", "--judge-model", "x"), "may hold no key"),
        (("--judge-model", "x"), "only for a server"),
        (("--seeds", "1,x"), "expected whole numbers"),
        (("--seeds", "1,1"), "each seed once"),
        (("--name", " "), "an empty text"),
        (("--prompts", "empty.jsonl"), "empty.jsonl"),
        (("--prompts", "one.jsonl"), "none is left to train on"),
        (("--recipe", "human-vs-ai", "--data", "own.jsonl"), "own.jsonl"),
    ],
)
def test_answers_that_cannot_be(words: tuple[str, ...], said: str, here: Path) -> None:
    (here / "empty.jsonl").write_text("")
    write_rows(here / "one.jsonl", [{"prompt": "Only this?"}])
    done = new("my.yaml", "--yes", *words)
    assert isinstance(done.exception, RlaifError), done.output
    assert said in str(done.exception)
    assert not (here / "my.yaml").exists()


def test_what_is_not_there_yet_is_said(here: Path) -> None:
    (here / "pairs.jsonl").unlink()
    words = ["--recipe", "human-vs-ai", "--constitution", "mine.yaml", "--yes"]
    done = new("my.yaml", *words)
    assert done.exit_code == 0
    assert "note: pairs.jsonl is not there yet" in done.stderr
    assert "note: mine.yaml is not there yet" in done.stderr


class Terminal(io.BytesIO):
    """Input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_asked_for_what_no_option_says(here: Path) -> None:
    answers = {
        "Recipe": ["dpoo", "self-rewarding"],
        "Policy": ["some/model"],
        "Constitution": ["brevity_only", "honest"],
        "Demonstrations": [""],
        "Prompts": ["own.jsonl"],
        "Rounds": ["none", "3"],
        "Seeds": ["1,1", "4,2"],
    }
    typed = "".join(f"{line}\n" for lines in answers.values() for line in lines)
    done = new("my.yaml", "--name", "Given", input=Terminal(typed.encode()))
    assert done.exit_code == 0, done.output
    # Each is asked once, and once more after an answer that cannot be; what an option says is not.
    for question, lines in answers.items():
        assert done.stdout.count(f"\n{question}") + done.stdout.startswith(question) == len(lines)
    assert "\nName" not in done.stdout
    for fault in ("did you mean 'dpo'", "no principle with a text", "whole number", "each seed"):
        assert fault in done.output
    own, _ = load_experiment("my.yaml")
    assert (own.name, own.rounds, own.all_seeds) == ("Given", 3, [4, 2])
    assert own.models["policy"].path == "some/model" and own.prompts.path == "own.jsonl"
    assert own.constitution == "constitutions/honest.yaml" and own.stages is None


def test_the_judge_of_a_terminal_fits_the_constitution(here: Path) -> None:
    typed = "".join(f"{line}\n" for line in ["dpo", "", "", "harmless", "rules", *[""] * 4])
    done = new("my.yaml", input=Terminal(typed.encode()))
    assert done.exit_code == 0, done.output
    assert "has none: take self or a model" in done.output and "address [self]" in done.output
    assert load_experiment("my.yaml")[0].entries[1].step.by == "policy"
    typed = "\n".join(["", "", "", "", "http://127.0.0.1:1/v1", "served", "", "", "", ""])
    done = new("other.yaml", input=Terminal(typed.encode()))
    assert load_experiment("other.yaml")[0].models["labeller"].path == "served"


def test_a_real_terminal_is_asked(here: Path) -> None:
    """Through a pseudo-terminal, in a process of its own."""
    ours, theirs = pty.openpty()
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "rlaif", "new", "my.yaml"]
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.write(ours, b"on-policy\n" + b"\n" * 9)
        said = process.communicate(timeout=120)[0].decode()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0 and "rlaif explain my.yaml" in said
    assert "method: grpo" in Path("my.yaml").read_text()


def test_nothing_is_asked_without_a_terminal(here: Path) -> None:
    done = new("my.yaml", input="self-rewarding\n")
    assert done.exit_code == 0 and "Recipe" not in done.output
    assert load_experiment("my.yaml")[0].name == "my"
    assert "method: dpo" in Path("my.yaml").read_text()


@pytest.mark.parametrize("option", ["--yes", "-y"])
def test_nothing_is_asked_in_a_terminal_after_yes(option: str, here: Path) -> None:
    done = new("my.yaml", option, input=Terminal(b"self-rewarding\n"))
    assert done.exit_code == 0 and "Recipe" not in done.output
    assert "method: dpo" in Path("my.yaml").read_text()


SHORT = ("--set", "steps.sample.max_new_tokens=8")
DEMONSTRATIONS = ("--demonstrations", "demos.jsonl")


@pytest.mark.parametrize(
    ("recipe", "options", "changes"),
    [
        ("dpo", ("--rounds", "1"), (*SHORT, "--set", "steps.evaluate.max_new_tokens=8")),
        ("dataset", (), SHORT),
        pytest.param("self-rewarding", DEMONSTRATIONS, (), marks=pytest.mark.slow),
        pytest.param("reward-model", (), (), marks=pytest.mark.slow),
        pytest.param("on-policy", (), (), marks=pytest.mark.slow),
        pytest.param("constitutions", (), (), marks=pytest.mark.slow),
        pytest.param("human-vs-ai", ("--data", "few.jsonl"), (), marks=pytest.mark.slow),
    ],
)
def test_what_is_written_runs(
    recipe: str, options: tuple[str, ...], changes: tuple[str, ...], here: Path, tiny_model: Path
) -> None:
    words = ["my.yaml", "--recipe", recipe, "--model", tiny_model, *options]
    if "data" not in RECIPES[recipe].takes:
        words += ["--prompts", "own.jsonl"]
    path = written(*words)
    run = [RECIPES[recipe].command, str(path), "--quiet", *changes]
    done = CliRunner().invoke(cli, run)
    assert done.exit_code == 0, (done.output, done.exception)
    state = load_run(here / "runs" / "my").status()
    assert state["state"] == "done" and state["steps_done"] == state["steps_total"] > 3
