"""System prompts from template files: what they see, that they are keys like any text, and what is
said of those that cannot be rendered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.constitution.model import load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.resources import shipped_root
from rlaif.core.store import StepFolder
from rlaif.data.card import sampled_by
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.system_prompts import render_system_prompt

Writer = Callable[..., Path]
TEMPLATE = """\
{# What this is for. #}
You are {{ constitution.name }}.
{% for principle in constitution.principles if principle.weight > 0 %}
{{ loop.index }}. {{ principle.id }}: {{ principle.text or "-" }}
{% endfor %}
{{ principles | length }} in all.
"""
CONSTITUTION = {
    "name": "Ann",
    "description": "A {{ name }} of her own.",
    "principles": [
        {"id": "kind", "text": "The answer is kind.", "weight": 2},
        {"id": "brief", "text": "Answers of {{ few }} words are better."},
        {"id": "ends", "check": {"rule": "finished_sentence"}},
    ],
}
TEXT = """\
You are Ann.
1. kind: The answer is kind.
2. brief: Answers of {{ few }} words are better.
3. ends: -
2 in all."""


@pytest.fixture
def write(tmp_path: Path, write_experiment: Writer) -> Callable[..., Path]:
    """An experiment of one sample step, with a template beside it."""

    def write(sample: dict[str, Any], template: str = TEMPLATE, **keys: Any) -> Path:
        steps = [{"sample": {"n": 2, "max_new_tokens": 4, **sample}}]
        path = write_experiment(tmp_path, None, **({"steps": steps, "rounds": 1} | keys))
        (tmp_path / "told.j2").write_text(template, "utf-8")
        (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION), "utf-8")
        return path

    return write


def planned(path: Path, *changes: str) -> list[Planned]:
    return [p for p in make_plan(prepare(path, changes, fetch=False)) if p.kind == "sample"]


TOLD = {"system_prompt": {"template": "told.j2"}}


def test_a_template_sees_the_constitution_and_is_a_key_like_its_text(
    write: Callable[..., Path],
) -> None:
    (one,) = planned(write(TOLD))
    assert one.step.system_prompt == TEXT
    (written,) = planned(write({"system_prompt": TEXT}))
    assert one.hash == written.hash
    (commented,) = planned(write(TOLD, TEMPLATE.replace("What this", "{{ no }} What it")))
    assert commented.hash == one.hash
    (other,) = planned(write(TOLD, TEMPLATE.replace("in all", "of them")))
    assert other.hash != one.hash


def test_a_changed_constitution_changes_what_is_told(write: Callable[..., Path]) -> None:
    path = write(TOLD)
    (before,) = planned(path)
    text = (path.parent / "constitution.yaml").read_text("utf-8")
    (path.parent / "constitution.yaml").write_text(text.replace("kind.", "kind and warm."), "utf-8")
    (after,) = planned(path)
    assert "kind and warm." in after.step.system_prompt and before.hash != after.hash


def test_members_of_a_pool_have_templates_of_their_own(write: Callable[..., Path]) -> None:
    members = [{"system_prompt": {"template": "told.j2"}}, {"system_prompt": "Be brief."}, {}]
    found = planned(write({"n": 3, "pool": members}))
    assert [p.step.system_prompt for p in found] == [TEXT, "Be brief.", None]
    members[0] = {"system_prompt": TEXT}
    assert [p.hash for p in found] == [p.hash for p in planned(write({"n": 3, "pool": members}))]


def test_each_arm_is_told_by_its_own_constitution(write: Callable[..., Path]) -> None:
    arms = {"ann": {}, "bob": {"set": {"constitution": "bob.yaml"}}}
    path = write(TOLD, arms=arms)
    (path.parent / "bob.yaml").write_text(yaml.safe_dump(CONSTITUTION | {"name": "Bob"}), "utf-8")
    told = {arm: p.step.system_prompt for p in planned(path) for arm in p.arms}
    assert told == {"ann": TEXT, "bob": TEXT.replace("Ann", "Bob")}


def test_a_round_of_its_own_may_have_another_template(write: Callable[..., Path]) -> None:
    stage = {
        "id": "one",
        "rounds": 2,
        "at": {"2": {"steps.sample.system_prompt": {"template": "later.j2"}}},
        "steps": [{"sample": {"n": 1, **TOLD}}],
    }
    path = write({}, stages=[stage], steps=None, rounds=None)
    (path.parent / "later.j2").write_text("Later, {{ constitution.name }}.", "utf-8")
    assert [p.step.system_prompt for p in planned(path)] == [TEXT, "Later, Ann."]


def test_the_model_is_told_and_the_run_says_so(write: Callable[..., Path]) -> None:
    path = write(TOLD)
    out = path.parent / "run"
    assert run_experiment(path, out).ran == 1
    run = load_run(out)
    (step,) = run.manifest["steps"]
    rows = list(run.store.step(step["hash"]).rows("completions"))
    assert rows and {row["system_prompt"] for row in rows} == {TEXT}
    assert run_experiment(path, out).ran == 0
    assert sampled_by(run.experiment().entries[0].step.model_dump(mode="json")) == [
        "sample: policy, temperature 0.8, at most 4 tokens, system prompt: the template told.j2"
    ]


FAULTS: dict[str, tuple[str, str]] = {
    "an unknown variable": ("Hi.\n{{ principle }}", r"told.j2:2: unknown variable 'principle'"),
    "an unknown part": ("Hi.\n{{ constitution.nmae }}", r"told.j2:2: .*nmae"),
    "bad syntax": ("Hi.\n{% for x in principles %}\n", r"told.j2:\d: template syntax"),
    "another file": ("{% include 'x' %}", r"told.j2:1: a template may not include"),
    "sections": ("---system---\nA\n---user---\nB", r"told.j2: a system prompt is one text"),
    "nothing": ("{# only this #}", r"told.j2: the template renders to an empty text"),
    "a secret": ("{{ constitution.__class__ }}", r"told.j2:1: "),
    "an endless text": ("{{ 'x' * 10 ** 9 }}", r"told.j2:1: "),
}


@pytest.mark.parametrize(("template", "message"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_rendered_is_named(
    template: str, message: str, write: Callable[..., Path]
) -> None:
    path = write(TOLD, template)
    with pytest.raises(ConfigError, match=message):
        prepare(path, fetch=False)


def test_the_step_and_its_line_are_named(write: Callable[..., Path]) -> None:
    path = write({"system_prompt": {"template": "absent.j2"}})
    with pytest.raises(ConfigError, match=r"absent\.j2: not found") as caught:
        prepare(path, fetch=False)
    assert str(path) in str(caught.value) and "step sample: system_prompt" in str(caught.value)
    path = write({"system_prompt": {"tmplate": "told.j2"}})
    with pytest.raises(ConfigError, match="tmplate"):
        prepare(path, fetch=False)


def test_a_template_that_uses_no_constitution_needs_none(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(TOLD, "Be {{ 'very ' * 2 }}brief.", constitution=None)
    (one,) = planned(path)
    assert one.step.system_prompt == "Be very very brief."
    with pytest.raises(ConfigError, match=r"uses .*constitution.*, and there is no `constitution`"):
        planned(write(TOLD, constitution=None))


@pytest.mark.parametrize("name", ["character", "reflect"])
def test_what_ships_renders_for_every_constitution_that_ships(name: str) -> None:
    paths = sorted((shipped_root() / "constitutions").glob("*.yaml"))
    assert paths
    for path in paths:
        constitution = load_constitution(path)
        text = render_system_prompt(f"prompts/generate/{name}.j2", constitution, None)
        assert constitution.description in text
        assert all(p.text in text for p in constitution.principles)
        assert "{" not in text and "\n\n\n" not in text


def test_a_single_step_has_templates_too(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(TOLD)
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text("{path: none, engine: fake}", "utf-8")
    words = ["sample", "prompts.jsonl", "--model", "model.yaml", "--quiet", "--out", "answers"]
    words += ["--set", "system_prompt={template: told.j2}"]
    done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, ConfigError)
    assert "no `constitution`" in str(done.exception)
    CliRunner().invoke(cli, [*words, "--constitution", "constitution.yaml"], catch_exceptions=False)
    rows = StepFolder(Path("answers")).read("completions")
    assert rows and {row["system_prompt"] for row in rows} == {TEXT}
