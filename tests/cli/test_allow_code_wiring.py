"""--allow-code of the commands that run rules without an experiment."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.constitution.code_rule import _Permission
from rlaif.core.errors import ConfigError
from rlaif.core.store import StepFolder
from rlaif.data.rows import write_rows

CHECK = {"rule": "code_tests", "params": {"seconds": 1.0}}
ANSWER = "```python\ndef one(): return 1\n```"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    constitution = {"name": "c", "principles": [{"id": "runs", "check": CHECK}]}
    Path("c.yaml").write_text(yaml.safe_dump(constitution), "utf-8")
    row = {"prompt": "Write one().", "completion": ANSWER, "reference": "assert one() == 1"}
    write_rows([row, row | {"completion": "None."}], Path("answers.jsonl"))
    return tmp_path


COMMANDS = {
    "judge": ["judge", "answers.jsonl", "--constitution", "c.yaml"],
    "evaluate": ["evaluate", "answers.jsonl", "--set", "checks=[{id: runs, rule: code_tests}]"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_runs_code_where_it_is_told_to(files: Path, words: list[str]) -> None:
    refused = CliRunner().invoke(cli, [*words, "--out", "no", "--quiet"])
    assert isinstance(refused.exception, ConfigError)
    assert "--allow-code" in str(refused.exception) and "allow_code: true" in str(refused.exception)
    done = CliRunner().invoke(
        cli, [*words, "--allow-code", "--out", "out", "--quiet"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert not _Permission.given, "it ends with the command"
    folder = StepFolder(Path("out"))
    if words[0] == "judge":
        assert sorted(row["score"] for row in folder.read("judgements")) == [0.0, 1.0]
    else:
        (row,) = folder.read("evaluation")
        assert row["metrics"]["check/runs"]["mean"] == 0.5


def find_command(name: str) -> click.Command:
    command: click.Command = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


@pytest.mark.parametrize("name", ["train grpo", "judge-bench", "constitution fit"])
def test_others_that_run_rules_take_it_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the command's context code is allowed, and not after it."""
    command = find_command(name)
    option = next(o for o in command.params if o.name == "allow_code")
    assert isinstance(option, click.Option) and option.callback is not None
    with click.Context(command) as context:
        option.callback(context, option, True)
        assert _Permission.given
    assert not _Permission.given
    with click.Context(command) as context:
        option.callback(context, option, False)
        assert not _Permission.given
