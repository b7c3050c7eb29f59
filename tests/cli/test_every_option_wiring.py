"""Every option of every command: with another value, what the command hands on is another, and says
that value. An option that no row names fails `test_no_option_is_left_out`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.config.methods import METHODS
from rlaif.config.on_policy import OnPolicyTrain, RolloutTrain

RULES = {"name": "two", "principles": [{"id": "kind", "text": "Be kind.", "weight": 4}]}
MODEL = ("model.yaml", "max_context=321")
READING: dict[str, Any] = {
    "--from": "trl",
    "--columns": ("columns.yaml", "better"),
    "--on-error": "fail",
}
HUB = READING | {"--split": "test", "--config": "small"}
STEP: dict[str, Any] = {
    "--out": "there",
    "--set": "n=3",
    "--seed": "6",
    "--quiet": ("", "QuietProgress"),
}


@dataclass(frozen=True)
class Row:
    """The function that a command hands its options to, the words that lead there, and the options
    with another value; a pair says what is to be found of a value that is read."""

    command: str
    function: str
    words: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


ROWS = [
    Row(
        "run",
        "rlaif.pipeline.experiment.run_experiment",
        "e.yaml",
        {
            "--out": "there",
            "--profile": "full",
            "--set": "a=1",
            "--strict": ("", "True"),
            "--quiet": ("", "QuietProgress"),
        },
    ),
    Row(
        "run",
        "rlaif.cluster.settings.ClusterSettings",
        "e.yaml --executor ray",
        {
            "--ray-address": ("10.0.0.1:6379", "'address': '10.0.0.1:6379'"),
            "--actors": ("3", "'actors': 3"),
            "--actor-cpus": ("2.5", "'cpus': 2.5"),
            "--actor-gpus": ("0.5", "'gpus': 0.5"),
            "--in-flight": ("7", "'in_flight': 7"),
        },
    ),
    Row(
        "run",
        "rlaif.pipeline.forecast.dry_run_report",
        "e.yaml --dry-run",
        {
            "--out": "there",
            "--profile": "full",
            "--set": "a=1",
            "--strict": ("", "True"),
            "--flops": ("4e14", "400000000000000.0"),
            "--device-memory": ("80", "80.0"),
            "--json": ("", "True"),
        },
    ),
    Row("status", "rlaif.pipeline.runs.load_run", "run"),
    Row("status", "rlaif.pipeline.verify.verify_run", "run --verify"),
    Row("report", "rlaif.report.build.build_report", "run", {"--out": "there.html"}),
    Row("doctor", "rlaif.analysis.doctor.examine", "", {"--out": "there"}),
    Row("export", "rlaif.pipeline.exports.trl_rows", "run out.jsonl"),
    Row("export", "rlaif.pipeline.exports.judgement_rows", "run out.jsonl --records judgements"),
    Row(
        "prompt render",
        "rlaif.pipeline.preview.rendered",
        "e.yaml",
        {
            "--judge": "j",
            "--prompt-id": "p",
            "--response": "one",
            "--response-2": "two",
            "--profile": "full",
            "--set": "a=1",
        },
    ),
    Row(
        "explain",
        "rlaif.pipeline.explain.plan.explain_file",
        "e.yaml",
        {"--profile": "full", "--arm": "left", "--set": "a=1"},
    ),
    Row(
        "launch",
        "rlaif.pipeline.launch.job.make_job",
        "e.yaml --to slurm",
        {
            "--to": ("kuberay", "target='kuberay'"),
            "--run": ("there", "out='there'"),
            "--profile": "full",
            "--set": "a=1",
            "--image": "other:image",
            "--gpus": ("3", "gpus=3"),
            "--gpu": "H100",
            "--device-memory": ("80", "device_memory=80.0"),
            "--flops": ("4e14", "flops=400000000000000.0"),
            "--hours": ("7", "hours=7.0"),
            "--cpus": ("9", "cpus=9"),
            "--memory": ("99", "memory=99"),
            "--secret": "HF_TOKEN",
            "--storage": "disk",
            "--resource": "qos=low",
            "--mirror": "s3://bucket/run",
        },
    ),
    Row(
        "run",
        "rlaif.pipeline.mirror.session.mirrored",
        "e.yaml --mirror memory://first",
        {"--mirror": "memory://other"},
    ),
    Row("pull", "rlaif.pipeline.mirror.session.pull", "memory://run run"),
    Row("explain", "rlaif.report.flow_svg.draw_flow", "e.yaml --format svg"),
    Row("explain", "rlaif.report.flow_text.render_mermaid", "e.yaml --out there.mmd"),
    Row(
        "constitution lint",
        "rlaif.constitution.lint.lint",
        "rules.yaml",
        {"--prompts": ("prompts.jsonl", "Name a fruit."), "--revise": ("", "True")},
    ),
    Row("new", "rlaif.cli.recipes.writing.check_places", "x.yaml", {"--force": ("", "True")}),
    Row(
        "new",
        "rlaif.cli.recipes.writing.write_with_schema",
        "x.yaml",
        {
            "--recipe": ("on-policy", "method: grpo"),
            "--name": ("Mine", "name: Mine"),
            "--model": "some/model",
            "--constitution": ("honest", "constitutions/honest.yaml"),
            "--judge": "some/judge",
            "--prompts": "mine.jsonl",
            "--rounds": ("4", "rounds: 4"),
            "--seeds": ("3,9", "[3, 9]"),
        },
    ),
    Row(
        "new",
        "rlaif.cli.recipes.writing.write_with_schema",
        "x.yaml --recipe constitutions",
        {"--against": ("honest", "constitutions/honest.yaml")},
    ),
    Row(
        "new",
        "rlaif.cli.recipes.writing.write_with_schema",
        "x.yaml --judge http://127.0.0.1:1/v1 --judge-model served",
        {"--judge-model": "other-model"},
    ),
    Row(
        "new",
        "rlaif.cli.recipes.writing.write_with_schema",
        "x.yaml --recipe human-vs-ai --data labelled.jsonl",
        {"--data": "others.jsonl"},
    ),
    Row(
        "new",
        "rlaif.cli.recipes.writing.write_with_schema",
        "x.yaml --recipe self-rewarding",
        {"--demonstrations": "demos.jsonl"},
    ),
    Row(
        "constitution diff",
        "rlaif.analysis.reach.measure_reach",
        "rules.yaml own.yaml --run run",
        {"--arm": "left"},
    ),
    Row(
        "constitution import",
        "rlaif.data.constitutions.import_constitution",
        "theirs.json --out x.yaml",
        {"--name": "mine"},
    ),
    Row(
        "constitution ablate",
        "rlaif.analysis.whatif.ablate_principles",
        "run",
        {"--labels": ("pairs.jsonl", "Name a fruit."), "--arm": "left"},
    ),
    Row(
        "constitution ablate",
        "rlaif.data.readers.read_labelled",
        "run --labels pairs.jsonl",
        READING,
    ),
    Row(
        "constitution infer",
        "rlaif.analysis.inverse_constitution.run.infer_principles",
        "pairs.jsonl --out x.yaml --model plain.yaml",
        {
            "--work": "there",
            "--pairs": "7",
            "--propose": "8",
            "--candidates": "9",
            "--model": MODEL,
            "--seed": "6",
            "--quiet": ("", "QuietProgress"),
        },
    ),
    Row(
        "constitution infer",
        "rlaif.data.readers.read_labelled",
        "pairs.jsonl --out x.yaml",
        READING,
    ),
    Row(
        "constitution fit",
        "rlaif.analysis.fit_weights.judges_of",
        "pairs.jsonl --constitution rules.yaml",
        {"--kind": "rating", "--constitution": ("own.yaml", "name='own'")},
    ),
    Row(
        "constitution fit",
        "rlaif.analysis.fit_weights.pair_votes",
        "pairs.jsonl --constitution rules.yaml --model plain.yaml",
        {
            "--work": "there",
            "--out": ("there.yaml", "there.work"),
            "--model": MODEL,
            "--seed": "6",
            "--quiet": ("", "QuietProgress"),
        },
    ),
    Row(
        "constitution fit",
        "rlaif.analysis.fit_weights.run_votes",
        "run --labels pairs.jsonl",
        {
            "--judge": "j",
            "--labels": ("more.jsonl", "Name a bird."),
            "--arm": ("left", "pairings of left"),
        },
    ),
    Row(
        "constitution fit",
        "rlaif.analysis.fit_weights.fitted_constitution",
        "run --labels pairs.jsonl",
        {"--judge": "j", "--arm": "left"},
    ),
    Row(
        "constitution fit",
        "rlaif.pipeline.constitutions.judges_constitutions",
        "run --labels pairs.jsonl",
        {"--arm": "left"},
    ),
    Row(
        "constitution fit",
        "rlaif.data.readers.read_labelled",
        "pairs.jsonl --constitution rules.yaml",
        READING,
    ),
    Row(
        "build",
        "rlaif.pipeline.experiment.run_experiment",
        "dataset.yaml",
        {
            "--out": "there",
            "--profile": "full",
            "--set": "rounds=2",
            "--quiet": ("", "QuietProgress"),
        },
    ),
    *(
        Row(
            "build",
            function,
            words,
            {
                "--arm": ("left", "arm='left'"),
                "--seed": ("6", "seed=6"),
                "--step": ("second", "step='second'"),
            },
        )
        for function, words in (
            ("rlaif.pipeline.choice.Choice.check", "dataset.yaml"),
            ("rlaif.pipeline.dataset.build_chosen", "run"),
        )
    ),
    Row(
        "prompts",
        "rlaif.pipeline.prompt_generation.run.make_prompts",
        "sources.yaml --out x",
        {"--out": "there", "--quiet": ("", "QuietProgress")},
    ),
    Row("data stats", "rlaif.data.readers.read_labelled", "pairs.jsonl", READING),
    Row("data sample", "rlaif.data.readers.read_labelled", "pairs.jsonl", READING),
    Row(
        "data diff",
        "rlaif.data.readers.read_labelled",
        "pairs.jsonl more.jsonl",
        {"--on-error": "fail"},
    ),
    Row(
        "convert",
        "rlaif.data.convert.convert_pairs",
        "o/n out.jsonl --to trl",
        HUB | {"--to": "openrlhf"},
    ),
    Row(
        "judge-bench",
        "rlaif.analysis.bench.run.run_bench",
        "pairs.jsonl --model plain.yaml",
        {
            "--judge": "longer",
            "--attack": "flattery",
            "--limit": "7",
            "--repeats": "4",
            "--author": "me",
            "--no-baselines": ("", "baselines=False"),
            "--out": "there",
            "--constitution": "rules.yaml",
            "--model": MODEL,
            "--seed": "6",
            "--quiet": ("", "QuietProgress"),
        },
    ),
    Row("judge-bench", "rlaif.data.readers.read_labelled", "o/n", HUB),
    Row(
        "reward-bench",
        "rlaif.analysis.bench.reward.run_reward_bench",
        "rm pairs.jsonl --out x",
        {
            "--train": ("preferences.jsonl", "Name a pear."),
            "--out": "there",
            "--seed": "6",
            "--quiet": ("", "QuietProgress"),
        },
    ),
    Row(
        "reward-bench",
        "rlaif.analysis.bench.reward.run_reward_bench",
        "rm pairs.jsonl --out x --scored one.jsonl --gold one.jsonl",
        {"--scored": ("two.jsonl", "score=0.75"), "--gold": ("two.jsonl", "score=0.75")},
    ),
    Row("reward-bench", "rlaif.data.readers.read_labelled", "rm pairs.jsonl --out x", READING),
    Row("winrate", "rlaif.metrics.battles.read_battles", "pairs.jsonl", READING),
    Row(
        "arena",
        "rlaif.cli.arena._make_experiment",
        "some/model other/maker --prompts prompts.jsonl --out o",
        {
            "--judge": "longer",
            "--by": "some/judge",
            "--set": "order=fixed",
            "--constitution": "honest",
            "--battles": "77",
            "--pairing": "variance",
            "--anchor": "maker",
            "--max-new-tokens": "55",
            "--temperature": "0.3",
            "--seed": "66",
        },
    ),
    Row(
        "arena",
        "rlaif.pipeline.experiment.run_experiment",
        "some/model other/maker --prompts prompts.jsonl --out o",
        {"--out": "there", "--quiet": ("", "QuietProgress")},
    ),
    Row(
        "arena",
        "rlaif.cli.arena._read_asked",
        "some/model other/maker --out o",
        {"--prompts": "mine.jsonl"},
    ),
    Row(
        "compare",
        "rlaif.analysis.comparison.compute.compare_inputs",
        "pairs.jsonl",
        {
            **READING,
            "--margin": "0.07",
            "--epsilon": "0.25",
            "--seed": "6",
        },
    ),
    Row(
        "sample",
        "rlaif.pipeline.single_step.run_step",
        "p.jsonl --out x",
        STEP | {"--model": "other-model", "--constitution": "r.yaml"},
    ),
    Row(
        "judge",
        "rlaif.pipeline.single_step.run_step",
        "c --out x",
        STEP
        | {
            "--prompts": "p.jsonl",
            "--against": "other.jsonl",
            "--kind": "rating",
            "--constitution": "r.yaml",
            "--model": "other-model",
        },
    ),
    Row(
        "score",
        "rlaif.pipeline.single_step.run_step",
        "c --out x --model rm",
        {
            "--prompts": "p.jsonl",
            "--model": "other",
            "--out": "there",
            "--quiet": ("", "QuietProgress"),
        },
    ),
    Row(
        "pair",
        "rlaif.pipeline.single_step.run_step",
        "c js/one --out x",
        STEP | {"--prompts": "p.jsonl", "--constitution": "r.yaml"},
    ),
    Row(
        "evaluate",
        "rlaif.pipeline.single_step.run_step",
        "c --out x --against old",
        STEP
        | {
            "--against": "older",
            "--judgements": "js/one",
            "--against-judgements": "ks/one",
            "--prompts": "p.jsonl",
            "--constitution": "r.yaml",
        },
    ),
    Row(
        "rbr-weights",
        "rlaif.judges.rbr.fit",
        "one.jsonl preferences.jsonl --out x.yaml",
        {"--margin": "2.5", "--ridge": "0.125", "--rewards": ("two.jsonl", "score=0.75")},
    ),
    Row("average", "rlaif.train.average.average", "one two --out x", {"--out": "there"}),
    Row(
        "distill",
        "rlaif.pipeline.single_step.run_step",
        "made --out x",
        STEP | {"--judgements": "js/one", "--model": "other-model", "--on-error": "skip"},
    ),
    Row("distill", "rlaif.pipeline.single_step.run_step", "o/n --out x", HUB),
    Row(
        "serve reward",
        "rlaif.engines.local.reward.load",
        "rm",
        {"--dtype": "float32"},
    ),
    Row(
        "serve reward",
        "rlaif.web.reward_app.RewardServer",
        "rm",
        {"--host": "0.0.0.0", "--port": "1234"},
    ),
    Row(
        "annotate",
        "rlaif.web.annotate.study.open_study",
        "pairs.jsonl --db v.db",
        {
            "--rate": ("", "rate=True"),
            "--scale": "scale.yaml",
            "--evaluation": ("M0,M7", "['M0', 'M7']"),
            "--constitution": "own.yaml",
            "--principles": ("kind,brief", "['kind', 'brief']"),
            "--overlap": ("3", "overlap=3"),
            "--budget": ("40", "budget=40"),
            "--gold": "more.jsonl",
            "--gold-share": ("0.25", "gold_share=0.25"),
            "--prelabels": ("after", "prelabels='after'"),
            "--lease": ("2.5", "lease=150.0"),
            "--seed": ("6", "seed=6"),
            "--from": "trl",
        },
    ),
    Row(
        "annotate",
        "rlaif.web.annotate.server.AnnotationServer",
        "pairs.jsonl --db v.db",
        {
            "--people": ("ada,ben", "['ada', 'ben']"),
            "--host": "0.0.0.0",
            "--port": "1234",
            "--address": "https://votes.example.org",
        },
    ),
    Row(
        "votes",
        "rlaif.web.annotate.writing.write_votes",
        "v.db --out there.jsonl",
        {"--records": "judgements"},
    ),
    Row(
        "ui",
        "rlaif.web.ui.app.serve_pages",
        "made",
        {"--port": "1234", "--no-open": ("", "False")},
    ),
    Row(
        "cache prune",
        "rlaif.engines.remote.cache.RequestCache.prune",
        "--unused-days 3",
        {"--unused-days": ("1", "913600.0"), "--model": "other-model"},
    ),
    Row(
        "cache prune",
        "rlaif.engines.remote.cache.RequestCache.shrink",
        "--to-mb 3",
        {"--to-mb": ("1.5", "1500000")},
    ),
    Row("cache prune", "rlaif.engines.remote.cache.RequestCache.prune", "--all"),
    Row(
        "cache export",
        "rlaif.engines.remote.cache.RequestCache.rows",
        "x",
        {"--model": "other-model"},
    ),
]
TEACHER = {"on_policy_distillation": " --teacher t"}
"""Options that a method cannot do without."""
for _method, _spec in METHODS.items():
    ROWS.append(
        Row(
            f"train {_method}",
            "rlaif.pipeline.single_step.run_step",
            f"{'p.jsonl' if issubclass(_spec, RolloutTrain) else 'made'} --out x"
            + TEACHER.get(_method, ""),
            STEP | {"--model": "other-model", "--lora": ("", "lora={}")},
        )
    )
WRITTEN = {
    # Options that change what a command prints or writes, and nothing that it asks for.
    "--json": "test_json_is_one_object_and_words_are_not",
    "--no-report": "tests/cli/test_cli.py",
    "--tokens": "test_tokens_and_tables_are_shown_where_they_are_asked_for",
    "--table": "test_tokens_and_tables_are_shown_where_they_are_asked_for",
    "--push": "tests/data/test_dataset.py",
    "--allow-code": "tests/cli/test_allow_code_wiring.py",
    "new --yes": "tests/cli/test_new.py",
    "constitution infer --keep": "tests/cli/test_cli_wiring.py",
    "constitution fit --folds": "tests/cli/test_cli_wiring.py",
    "constitution infer --out": "tests/cli/test_cli_wiring.py",
    "constitution import --out": "tests/cli/test_cli_constitution.py",
    "data sample -n": "tests/cli/test_cli_wiring.py",
    "data sample --seed": "tests/cli/test_cli_wiring.py",
    "data filter --filters": "tests/cli/test_cli_wiring.py",
    "data filter --refused": "tests/cli/test_cli_wiring.py",
    "rbr-weights --out": "tests/judges/test_rbr.py",
    "compare --out": "tests/cli/test_compare.py",
    "compare --between": "tests/cli/test_compare.py",
    "launch --out": "tests/cli/test_launch.py",
    "launch --dry-run": "tests/cli/test_launch.py",
}


class Handed(Exception):
    """Ends a command where it hands its options on."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the files that the rows name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    monkeypatch.setattr("rlaif.pipeline.runs.load_run", lambda path: Run(path))
    monkeypatch.setattr("rlaif.analysis.whatif.load_pairings", load_pairings)
    monkeypatch.setattr("rlaif.pipeline.explain.plan.explain_file", lambda *given: given)
    monkeypatch.setattr("rlaif.engines.build.whole", lambda path: tmp_path / path)
    monkeypatch.setattr("rlaif.engines.build.refuse_no_reward_model", lambda folder: None)
    monkeypatch.setattr("rlaif.engines.local.reward.load", lambda *given: given)
    monkeypatch.setattr("rlaif.web.reward_server.RewardService", lambda scorer: scorer)

    def lines(name: str, *rows: Any) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def document(name: str, content: Any) -> None:
        (tmp_path / name).write_text(yaml.safe_dump(content), "utf-8")

    for folder in ("run", "made", "rm", "js", "ks"):
        (tmp_path / folder).mkdir()
    document("e.yaml", {})
    document("model.yaml", {"path": "none", "engine": "fake", "max_context": 321})
    document("plain.yaml", {"path": "none", "engine": "fake"})
    document("columns.yaml", {"prompt": "q", "chosen": "better", "rejected": "worse"})
    document("rules.yaml", RULES)
    document("own.yaml", RULES | {"name": "own"})
    document("theirs.json", {})
    document("sources.yaml", {"sources": [{"kind": "file", "id": "f", "path": "prompts.jsonl"}]})
    dataset = {"formats": ["trl"], "license": "mit"}
    document(
        "dataset.yaml",
        {
            "name": "d",
            "models": {"policy": {"path": "none", "engine": "fake"}},
            "prompts": {"path": "prompts.jsonl"},
            "constitution": "rules.yaml",
            "steps": [{"sample": {}}, {"judge": {"kind": "longer"}}, {"pair": {}}],
            "dataset": dataset,
            "profiles": {"full": {"rounds": 2}},
        },
    )
    for name, prompt in (("pairs.jsonl", "Name a fruit."), ("more.jsonl", "Name a bird.")):
        lines(name, {"prompt": prompt, "chosen": "Yes.", "rejected": "No."})
    lines("prompts.jsonl", {"prompt": "Name a fruit."})
    turns = {k: [{"role": "assistant", "content": k}] for k in ("chosen", "rejected")}
    made = {"preference_id": "r", "prompt_id": "p", "round": 1, "margin": 1, "prob": 1, "weight": 1}
    made |= {"prompt": [{"role": "user", "content": "Name a pear."}], **turns}
    made |= {"score_chosen": 1, "score_rejected": 0, "reason": "", "source": "", "chosen_id": "a"}
    lines("preferences.jsonl", made | {"rejected_id": "b", "judgement_ids": []})
    for name, score in (("one.jsonl", 0.25), ("two.jsonl", 0.75)):
        said: dict[str, Any] = dict.fromkeys(
            ("judgement_id", "call_id", "prompt_id", "subject", "judge"), "x"
        )
        said |= {"subject_kind": "completion", "shown": ["x"], "annotator_id": "m", "status": "ok"}
        lines(name, said | {"annotator_kind": "ai", "principle": None, "score": score})
    return tmp_path


class Run:
    """A run as the commands look at it before they hand it on."""

    def __init__(self, path: Path):
        self.path = path
        self.root = path
        self.manifest: dict[str, Any] = {"arms": ["left"], "constitution": RULES, "name": "run"}

    def view(self) -> str:
        return f"view of {self.path}"

    def prompt_rows(self) -> Iterator[Any]:
        return iter([])

    metric_rows = prompt_rows

    def __repr__(self) -> str:
        return f"run {self.path}"


def load_pairings(run: Run, arm: str | None = None) -> list[str]:
    """Pairings that say whose they are."""
    return [f"pairings of {arm}"]


def handed(row: Row, *more: str) -> str:
    """What the row's function is given, as text."""
    got: list[Any] = []

    def take(*given: Any, **named: Any) -> None:
        got.extend([*given, named])
        raise Handed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(row.function, take)
        words = [*row.command.split(), *row.words.split(), *filter(None, more)]
        done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, Handed), (words, done.output, done.exception)
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(map(show, got)))


def show(value: Any) -> str:
    """A value with what it holds, so that an option inside of it shows."""
    if type(value).__name__ in ("Store", "StepFolder"):
        return f"store {getattr(value, 'root', None) or getattr(value, 'path', None)}"
    return repr(value)


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.command}:{row.function.rpartition('.')[2]}"
)
def test_another_value_is_handed_on(row: Row, files: Path) -> None:
    plain = handed(row)
    for option, wanted in row.options.items():
        value, said = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        changed = handed(row, option, value)
        assert changed != plain, f"{row.command} {option} reaches nothing"
        assert changed.count(said) > plain.count(said), (option, said, changed)


def every_command(group: click.Group = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        found = group.get_command(context, word)
        assert found is not None
        if isinstance(found, click.Group):
            yield from every_command(found, f"{name} {word}".strip())
        else:
            yield f"{name} {word}".strip(), found


def test_no_option_is_left_out() -> None:
    tried: dict[str, set[str]] = {}
    for row in ROWS:
        words = [word for word in row.words.split() if word.startswith("-")]
        tried.setdefault(row.command, set()).update(words, row.options)
    left = []
    for name, command in every_command():
        for option in command.params:
            if not isinstance(option, click.Option) or option.hidden:
                continue
            names = {*option.opts, *option.secondary_opts}
            written = any(n in WRITTEN or f"{name} {n}" in WRITTEN for n in names)
            # A method's keys have a row each in `test_each_key_of_a_method_is_a_setting`.
            key = name.startswith("train ") and option.name in METHODS[name[6:]].model_fields
            own = name.startswith("train ") and option.name in TRAIN_OPTIONS
            if not (written or key or own or names & tried.get(name, set())):
                left.append(f"{name} {option.opts[0]}")
    assert left == []


TRAIN_OPTIONS = {"reference", "completions", "from_", "columns", "split", "config"} | {
    "constitution",
    "rewards",
    "teacher",
}
VALUES = {"boolean": "false", "integer": "7", "number": "0.375", "string": "skip"}


@pytest.mark.parametrize("method", METHODS)
def test_each_key_of_a_method_is_a_setting(method: str, files: Path) -> None:
    spec = METHODS[method]
    fresh = issubclass(spec, OnPolicyTrain)
    row = Row(
        f"train {method}",
        "rlaif.pipeline.single_step.run_step",
        f"{'p.jsonl' if issubclass(spec, RolloutTrain) else 'made'} --out x"
        + TEACHER.get(method, ""),
    )
    [command] = [c for n, c in every_command() if n == row.command]
    options = {o.name: o.opts[0] for o in command.params if isinstance(o, click.Option)}
    keys = sorted(set(options) & set(spec.model_fields) - TRAIN_OPTIONS - {"lora"})
    assert {"learning_rate", "batch_size"} <= set(keys)
    every = [word for n, key in enumerate(keys) for word in (options[key], f"{n}")]
    given = handed(row, *every)
    for number, key in enumerate(keys):
        assert f"'{key}={number}'" in given
    if "reference" in options:
        assert "'reference': 'other'" in handed(row, "--reference", "other")
    if "teacher" in options:
        assert "'teacher': 'other'" in handed(row, "--teacher", "other")
        return
    if fresh:
        changed = handed(row, "--constitution", "r.yaml", "--reward", "rating", "--reward", "rm")
        assert "constitution='r.yaml'" in changed and "'kind': 'rating'" in changed
        assert "'by': 'rm'" in changed and "'kind': 'rules'" not in changed
        return
    assert "'completions/0': 'c'" in handed(row, "--completions", "c")
    load = Row(row.command, row.function, "o/n --out x")
    plain = handed(load)
    for option, value in HUB.items():
        word, said = value if isinstance(value, tuple) else (value, value)
        if option != "--on-error":
            changed = handed(load, option, word)
            assert changed != plain and said.split("=")[-1].strip("'") in changed


def said_by(*words: str) -> str:
    done = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    return done.stdout


def test_json_is_one_object_and_words_are_not(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "f.yaml").write_text(
        yaml.safe_dump({"filters": [{"kind": "duplicates", "of": "prompt"}]}), "utf-8"
    )
    commands = [
        "data stats pairs.jsonl",
        "data sample pairs.jsonl",
        "data diff pairs.jsonl more.jsonl",
        "data filter prompts.jsonl out.jsonl --filters f.yaml",
        "convert pairs.jsonl out2.jsonl --to trl",
        "constitution show rules.yaml",
        "constitution lint rules.yaml",
        "constitution diff rules.yaml own.yaml",
        "cache stats",
    ]
    for command in commands:
        words = command.split()
        json.loads(said_by(*words, "--json"))
        plain = said_by(*words)
        with pytest.raises(json.JSONDecodeError):
            json.loads(plain)


def test_tokens_and_tables_are_shown_where_they_are_asked_for(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [{"title": "policy", "text": "Hi there", "tokens": [5, 9], "pieces": ["Hi", " there"]}]
    monkeypatch.setattr("rlaif.pipeline.preview.rendered", lambda *given: shown)
    plain = "--- policy: 2 tokens\nHi there\n"
    assert said_by("prompt", "render", "e.yaml") == plain
    assert said_by("prompt", "render", "e.yaml", "--tokens") == plain + "5:'Hi' 9:' there'\n"
    assert json.loads(said_by("prompt", "render", "e.yaml", "--json")) == shown
    table = said_by("constitution", "show", "rules.yaml", "--table")
    assert table.startswith("two, version ") and "kind" in table
    assert yaml.safe_load(said_by("constitution", "show", "rules.yaml"))["name"] == "two"
