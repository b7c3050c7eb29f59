"""What a plan does, in words and as a graph: it says what the plan says, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.config.dataset import DatasetSpec
from rlaif.core.errors import ConfigError
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.explain.build import make_flow
from rlaif.pipeline.explain.plan import explain_file
from rlaif.pipeline.explain.rows import read_rows
from rlaif.pipeline.reading import load_experiment
from rlaif.pipeline.remarks import list_kept
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report
from rlaif.report.flow import Flow, Node, rounds_in_words
from rlaif.report.flow_svg import draw_flow
from rlaif.report.flow_text import render_mermaid, render_text
from tests.support.flows import ARMS, Rows, many_steps
from tests.support.pictures import check_picture

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))
PROFILES = [
    (path, profile)
    for path in SHIPPED
    for profile in [None, *yaml.safe_load(path.read_text("utf-8")).get("profiles", {})]
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = ({"prompt": f"question {n}", "chosen": "yes", "rejected": "no"} for n in range(600))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def settings_of(path: Path, pairs: Path) -> list[str]:
    return [f"data={pairs}"] if "`data`" in path.read_text("utf-8") else []


@cache
def flow_at(path: Path, pairs: Path, *settings: str) -> Flow:
    return explain_file(path, [*settings_of(path, pairs), *settings])


def text_of(path: Path, pairs: Path, *settings: str) -> str:
    return render_text(flow_at(path, pairs, *settings))


def node(flow: Flow, name: str) -> Node:
    return next(node for node in flow.nodes if node.id == name)


def list_steps(name: str) -> list[tuple[str, str]]:
    steps = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text("utf-8"))["steps"]
    ids = [next((body or {}).get("id", kind) for kind, body in step.items()) for step in steps]
    return [(name, step) for step in ids]


NEEDED = {
    *(("quickstart", step) for step in ("sample", "checks", "self", "pair")),
    *(("ai_vs_human", step) for step in ("others", "taught", "pairs", "labeller", "label")),
}


@pytest.mark.parametrize(("name", "step"), list_steps("quickstart") + list_steps("ai_vs_human"))
def test_a_plan_without_a_step_is_explained_without_it(name: str, step: str, pairs: Path) -> None:
    path = EXPERIMENTS / f"{name}.yaml"
    whole = flow_at(path, pairs)
    assert step in [node.id for node in whole.nodes]
    try:
        text = text_of(path, pairs, f"steps.{step}=null")
    except ConfigError:
        # Another step needs it, so that there is no plan.
        assert (name, step) in NEEDED
        return
    assert (name, step) not in NEEDED
    assert text != render_text(whole)
    titles = [line.strip().split("  ")[0] for line in text.splitlines() if line.startswith("  ")]
    assert step not in [title.split(" ")[-1] for title in titles]


@pytest.mark.parametrize(
    ("setting", "before", "after"),
    [
        ("steps.sample.n=5", "3 answers to each of 28 prompts; 84 answers", "5 answers to each of"),
        ("steps.sample.prompts=10", "28 prompts; 84 answers, 84 model", "10 prompts; 30 answers"),
        ("prompts.holdout=20", "64 held out", "20 held out"),
        (
            "steps.sample.by=initial",
            "\n                by M0, then M1\n",
            "\n                by M0\n",
        ),
        ("steps.self.by=initial", "(completions); by M0, then M1", "(completions); by M0\n"),
        ("steps.train.reference=initial", "reference M0, then M1", "reference M0; makes"),
        ("steps.train.from=initial", "from M0, then M1", "from M0; reference"),
        ("steps.pair.max_pairs=7", "at most 20 pairs a round", "at most 7 pairs a round"),
        ("steps.pair.strategy=margin", "best answer against its worst", "far enough apart"),
        ("steps.train.beta=0.3", "lora, nll_weight", "lora, beta 0.3, nll_weight"),
        ("steps.self.principles=[brief]", "yes_no on useful", "yes_no on brief"),
        ("steps.evaluate.judges=[checks]", "judged by checks, self", "judged by checks\n"),
        ("steps.evaluate.against=[initial]", "M2 against M0 and M1", "M2 against M0;"),
        ("rounds=3", "2 rounds\n", "3 rounds\n"),
        ("seed=11", "Seeds         7", "Seeds         11"),
    ],
)
def test_what_a_key_changes_in_the_plan_it_changes_in_the_text(
    setting: str, before: str, after: str, pairs: Path
) -> None:
    path = EXPERIMENTS / "quickstart.yaml"
    plain, changed = text_of(path, pairs), text_of(path, pairs, setting)
    assert before in plain and after not in plain
    assert after in changed and before not in changed


MORE_STEPS = ("meta_rewarding", "full")
"""At full size this experiment also learns from judgements, which a small model cannot write."""


@pytest.mark.parametrize(
    ("path", "profile"), PROFILES, ids=[f"{p.stem}-{profile}" for p, profile in PROFILES]
)
def test_every_profile_of_every_shipped_experiment_is_explained(
    path: Path, profile: str | None, pairs: Path
) -> None:
    settings = settings_of(path, pairs)
    flow = explain_file(path, settings, profile) if profile else flow_at(path, pairs)
    data = yaml.safe_load(path.read_text("utf-8"))
    steps = [step for stage in data.get("stages", [data]) for step in stage["steps"]]
    added = {"judge meta", "pair judging"} if (path.stem, profile) == MORE_STEPS else set()
    assert added <= {node.title for node in flow.nodes}
    assert len({(node.stage, node.id) for node in flow.nodes}) == len(steps) + len(added)
    text = render_text(flow)
    assert all(node.title in text for node in flow.nodes)
    assert max(len(line) for line in text.splitlines()) <= 120
    check_mermaid(render_mermaid(flow), flow)
    check_picture(flow, draw_flow(flow, standalone=True))


def test_the_quickstart_is_explained_on_a_screen(pairs: Path) -> None:
    assert len(text_of(EXPERIMENTS / "quickstart.yaml", pairs).splitlines()) <= 40


LINE = re.compile(
    r'flowchart TD|  classDef some stroke-width:3px|  subgraph stage\d+\["[^"<>\[\]`]*"\]|  end'
    r'|    n\d+(\(\["[^"\[\]`]*"\]\)|\["[^"\[\]`]*"\])(:::some)?'
    r'|  n\d+ (-->|==>|-\.->)\|"[^"<>\[\]|`]*"\| n\d+'
)


def check_mermaid(text: str, flow: Flow) -> None:
    for line in text.splitlines():
        assert LINE.fullmatch(line), line
        assert set(re.findall("<[^>]*>", line)) <= {"<br>"}
    assert text.count("subgraph ") == text.count("  end\n") == len(flow.stages)


def test_what_is_thrown_away_is_said(pairs: Path) -> None:
    text = text_of(EXPERIMENTS / "ultrafeedback.yaml", pairs)
    thrown = text[text.index("Thrown away") :]
    assert "116 of 148 training prompts: never drawn" in thrown
    assert "distill reward: no step uses it" in thrown
    path = EXPERIMENTS / "quickstart.yaml"
    assert "64 held-out prompts: no step evaluates" in text_of(path, pairs, "steps.evaluate=null")
    unused = text_of(path, pairs, "models.spare={path: builtin/smollm2-135m-instruct}")
    assert "judges: no step" not in unused
    idle = "judges=[{id: gold, kind: longer}]"
    assert "judge gold: no step asks it" in text_of(
        path, pairs, idle, "steps.evaluate.judges=[checks]"
    )


def test_arms_share_what_they_do_alike(pairs: Path) -> None:
    path = EXPERIMENTS / "ai_vs_human.yaml"
    flow = flow_at(path, pairs)
    labels = [n for n in flow.nodes if n.kind == "label"]
    assert [n.arm_words for n in labels] == ["arm human", "arm ai", "arm random", "arm flipped"]
    assert [n.lines[0].partition("labels of ")[2] for n in labels] == [
        "people",
        "the judges",
        "a coin",
        "people, 25% turned round",
    ]
    assert node(flow, "taught").arm_words == ""
    assert node(flow, "train").arm_words == node(flow, "evaluate").arm_words == "once in each arm"
    assert "alike, once in each: train, evaluate" in flow.facts["Arms"]
    alone = explain_file(path, settings_of(path, pairs), arm="ai")
    assert [n.lines[0] for n in alone.nodes if n.kind == "label"] == [labels[1].lines[0]]
    assert not any(n.arm_words for n in alone.nodes) and "Arms" not in alone.facts
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        explain_file(path, settings_of(path, pairs), arm="randon")


@pytest.mark.parametrize("rounds", [1, 2])
def test_seeds_are_one_picture(rounds: int, tmp_path: Path) -> None:
    path = EXPERIMENTS / "quickstart.yaml"
    one = explain_file(path, ["seed=1", f"rounds={rounds}"])
    several = tmp_path / "several.yaml"
    several.write_text(path.read_text("utf-8").replace("seed: 7", "seeds: [1, 2, 3]"), "utf-8")
    three = explain_file(several, [f"rounds={rounds}"])
    assert three.facts["Seeds"] == ("1, 2, 3: the whole for each",)
    assert three.stages == one.stages and three.edges == one.edges


def test_the_next_round_is_one_edge(pairs: Path) -> None:
    flow = explain_file(EXPERIMENTS / "quickstart.yaml", ["rounds=4"])
    back = [edge for edge in flow.edges if edge.back]
    using = {node(flow, name).name for name in ("sample", "self", "train")}
    assert {edge.target for edge in back} == using
    [edge] = flow.returning
    assert (edge.source, edge.target) == (node(flow, "train").name, node(flow, "sample").name)
    assert render_mermaid(flow).count("-.->") == 1
    # What earlier rounds have made is read too, and that is said where it is read.
    flow = explain_file(EXPERIMENTS / "spin.yaml", [])
    assert node(flow, "train").reads == ("pair (preferences of earlier rounds too)",)


def test_a_load_that_a_bench_reads_held_out_is_used(pairs: Path) -> None:
    # Of the load's own records only the held-out ones are read, and by the bench itself.
    assert explain_file(EXPERIMENTS / "internlm2_cool.yaml", []).unused == ()
    other = explain_file(
        EXPERIMENTS / "internlm2_cool.yaml", ["stages.conditions.steps.bench=null"]
    )
    assert any(line.startswith("load planted") for line in other.unused)
    # Beside the step that a dataset is made of too.
    experiment = load_experiment(EXPERIMENTS / "internlm2_cool.yaml")[0]
    kept = experiment.model_copy(update={"dataset": DatasetSpec(uses="chosen")})
    assert list_kept(kept) == ("chosen", "planted")


def test_steps_side_by_side_that_are_given_the_same_are_told_once(pairs: Path) -> None:
    flow = explain_file(EXPERIMENTS / "gemini_refresh.yaml", [])
    assert len(flow.returning) == 3
    # Each time on two lines: beside `sample`, and beside both arms' `distill`.
    assert draw_flow(flow).count("the model, in the") == 2


def flow_of(rows: list[dict[str, Any]], name: str = "many") -> Flow:
    return make_flow(name, read_rows(rows, {}), {"Prompts": ("some",)})


def test_many_steps_in_stages_with_arms() -> None:
    flow = flow_of(many_steps())
    assert [(s.heading, len(s.nodes)) for s in flow.stages] == [
        ("supervised: one round", 6),
        ("align: 3 rounds", 25),
    ]
    assert [n.arms for n in flow.nodes if n.id == "prefs"] == [(arm,) for arm in ARMS]
    assert node(flow, "sft").arm_words == "" and node(flow, "tuned").apart
    assert node(flow, "mean").models[-1] == "makes mean@1, mean@2 and mean@3"
    assert flow.unused == ("distill idle (once in each arm): no step uses it",)
    check_picture(flow, draw_flow(flow, standalone=True))
    check_mermaid(render_mermaid(flow), flow)


STAGED = """\
name: staged
seed: 3
models: {policy: {path: builtin/smollm2-135m-instruct}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts/seeds/everyday.jsonl, holdout: 8}
prompt_sets: {others: {path: prompts/seeds/answered.jsonl, holdout: 2}}
judges:
  - {id: checks, kind: rules}
arms:
  weak: {}
  strong: {set: {steps.rl.beta: 0.5}}
stages:
  - id: warm
    steps:
      - sample: {id: drafts, n: 2, prompts: {set: others, count: 9}}
      - judge: {id: first, kind: longer}
      - pair: {id: long}
      - train: {id: warm}
  - id: align
    rounds: 2
    steps:
      - sample: {id: answers, n: 2, prompts: 10}
      - judge: checks
      - pair: {id: prefs}
      - train: {id: rl, reference: warm}
      - evaluate: {against: [initial, warm], judges: [checks], judged_by: warm}
"""


def test_a_file_with_stages_and_arms(tmp_path: Path) -> None:
    path = tmp_path / "staged.yaml"
    path.write_text(STAGED, "utf-8")
    flow = explain_file(path)
    assert [stage.heading for stage in flow.stages] == ["warm: one round", "align: 2 rounds"]
    assert node(flow, "drafts").lines[0] == "2 answers to each of 9 prompts of others"
    assert any("others, prompts/seeds/answered.jsonl: " in line for line in flow.facts["Prompts"])
    rl = [n for n in flow.nodes if n.id == "rl"]
    assert [n.arms for n in rl] == [("weak",), ("strong",)]
    assert "beta 0.5" in rl[1].lines and rl[0].models[0].startswith("from warm, then ")
    assert "reference warm" in rl[0].models
    assert node(flow, "warm").arm_words == "" and node(flow, "evaluate").apart
    said = node(flow, "evaluate").models
    assert said[0] == "measures M0" and said[1].endswith(" against M0 and warm")
    # In round 2 `warm` is no longer the policy before, and is compared with because it is named.
    assert said[2].endswith(" against M0 and warm")
    assert flow.facts["Arms"][0] == "strong sets steps.rl.beta to 0.5"
    assert "Arms" not in explain_file(path, arm="weak").facts
    pairs = {(e.source, e.target) for e in flow.edges if e.model and not e.back}
    assert (node(flow, "warm").name, node(flow, "answers").name) in pairs
    check_picture(flow, draw_flow(flow, standalone=True))
    check_mermaid(render_mermaid(flow), flow)
    text = render_text(flow)
    assert "Align: 2 rounds" in text and "arm strong; " in text
    path.write_text(STAGED.replace("reference: warm", "reference: initial"), "utf-8")
    assert render_text(explain_file(path)) != text


def test_what_differs_by_round_and_when_a_step_runs() -> None:
    made = Rows()
    for number in (1, 2, 3):
        place = ("s", number, number)
        answers = made.add("sample", "sample", place, {}, {"by": "M0"}, does=["4 answers"])
        if number != 2:
            made.add("judge", "meta", place, {"completions/0": answers}, {"by": "M0"})
        made.add(
            "pair", "pair", place, {"completions/sample": answers}, settings=[f"tier {number}"]
        )
    flow = flow_of(made.rows)
    assert node(flow, "meta").rounds == "rounds 1, 3" and node(flow, "sample").rounds == ""
    assert node(flow, "pair").settings == (
        "tier 1 (round 1)",
        "tier 2 (round 2)",
        "tier 3 (round 3)",
    )
    assert rounds_in_words({1, 2, 3, 5}) == "rounds 1-3, 5"
    assert rounds_in_words({2, 4, 5}) == "rounds 2, 4-5"
    # Arms that differ in nothing but a key that the words do not say are two nodes.
    apart = [
        row | {"arms": [arm], "hash": row["hash"] + arm, "inputs": {}}
        for arm in "ab"
        for row in made.rows
    ]
    for row in apart:
        if row["arms"] == ["b"] and row["kind"] == "pair":
            row["settings"] = ["tier 9"]
    parted = [n for n in flow_of(apart).nodes if n.id == "pair"]
    assert [n.arms for n in parted] == [("a",), ("b",)]
    assert parted[1].lines == ("tier 9",) and parted[1].settings == ()


NAMES = [
    "<script>alert(1)</script>",
    'a"b[c]{d}|e',
    "日本語 👩‍🔬 ünïcödé",
    "two\nlines `code` **bold**",
    "&lt; #35; %%",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markup(name: str) -> None:
    made = Rows()
    answers = made.add(
        "sample", "sample", ("main", 1, 1), {}, {"by": name}, does=[name, "1. x", "- y"]
    )
    made.add(
        "judge", "judge", ("main", 1, 1), {"completions/0": answers}, {"by": name}, arms=[name]
    )
    flow = flow_of(
        [row | {"arms": [name, "other"][: 2 - n]} for n, row in enumerate(made.rows)], name
    )
    picture = draw_flow(flow, standalone=True)
    assert "<script" not in picture
    check_picture(flow, picture)
    check_mermaid(render_mermaid(flow), flow)
    assert "<script" not in draw_flow(flow)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["explain", str(EXPERIMENTS / "quickstart.yaml")]
    text = CliRunner().invoke(cli, command)
    assert text.exit_code == 0 and text.output.startswith("quickstart\n")
    full = CliRunner().invoke(cli, [*command, "--profile", "full", "--set", "rounds=3"]).output
    assert "10,000 prompts" in full and "3 rounds" in full and "Provisional" in full
    mermaid = CliRunner().invoke(cli, [*command, "--format", "mermaid"]).output
    assert mermaid.startswith("flowchart TD\n")
    said = CliRunner().invoke(cli, [*command, "--out", "picture.svg"]).output
    assert said == "picture.svg\n"
    flow = flow_at(EXPERIMENTS / "quickstart.yaml", tmp_path)
    assert Path("picture.svg").read_text("utf-8") == f"{draw_flow(flow, standalone=True)}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.svg"]
    with pytest.raises(ConfigError, match="no arm"):
        CliRunner().invoke(cli, [*command, "--arm", "x"], catch_exceptions=False)


def test_a_report_has_the_picture_with_what_was_made(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(tmp_path / "e", None)
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    flow = run.view().flow
    assert flow is not None
    planned = explain_file(path)
    # The plan and the manifest are read alike: only the counts are others.
    assert [replace(n, lines=()) for n in flow.nodes] == [
        replace(n, lines=()) for n in planned.nodes
    ]
    assert flow.edges == planned.edges
    assert node(planned, "pair").lines[-1].startswith("at most 5 pairs")
    assert re.match(r"\d( to \d)? pairs?\b", node(flow, "pair").lines[-1])
    assert node(flow, "sample").lines[0] == "3 answers to each of 5 prompts"
    page = build_report(run.view(), tmp_path).read_text("utf-8")
    assert "What was run" in page and str(draw_flow(flow)) in page
    assert page.count('class="flow"') == 1


def test_a_run_of_the_first_version_has_a_picture() -> None:
    folder = Path(__file__).parents[1] / "first_version" / "arms" / "run"
    flow = load_run(folder).view().flow
    assert flow is not None
    assert {n.id for n in flow.nodes} == {"pairs", "checks", "label", "train", "evaluate"} - (
        {"train"} - {n.id for n in flow.nodes}
    )
    assert flow.facts["In all"] == (f"{len(load_run(folder).manifest['steps'])} steps",)
    check_picture(flow, draw_flow(flow, standalone=True))
