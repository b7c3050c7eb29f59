"""An environment may do anything: what it does wrong is said with its name, the episode and the
turn, and what it may do is taken as it is."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.config.environments import read_environment
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import make_prompt
from rlaif.environments.play import Play, make_starts

HOSTILE = "tests.support.environments:Hostile"
AT = f"environment {HOSTILE}, episode 5, "


def play_of(answer: str) -> Play:
    return Play({"kind": HOSTILE, "options": {"answer": answer}, "seed": 5})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("raises", "`step` raised ZeroDivisionError: of its own"),
        ("nonsense", "`step` must return a Step, not str"),
        ("no text", "the observation must be a text, not NoneType"),
        ("empty", "the observation is empty, and the policy is to answer it"),
        ("surrogate", "the observation is not valid Unicode"),
        ("nan", "the reward must be a finite number, not nan"),
        ("truth", "the reward must be a finite number, not True"),
        ("done", "`done` must be true or false, not 1"),
        ("achieved", "what was achieved must be a text, not int"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(answer: str, message: str) -> None:
    play = play_of(answer)
    play.reset()
    play.step("hello")
    with pytest.raises(RlaifError) as error:
        play.step("hello")
    assert str(error.value) == f"{AT}turn 2: {message}"


@pytest.mark.parametrize("answer", ["unicode", "long", "never done"])
def test_what_is_unusual_is_taken(answer: str) -> None:
    play = play_of(answer)
    play.reset()
    play.step("hello")
    assert not play.step("\U0001f600 \u0000 of the policy's own").done


def test_a_start_that_cannot_be_answered_is_refused() -> None:
    spec = read_environment({"kind": HOSTILE, "options": {"answer": "empty start"}})
    with pytest.raises(RlaifError, match=r"episode 0, its start: the observation is empty"):
        make_starts(spec, 2)


def test_an_episode_that_begins_in_another_way_than_before_is_refused() -> None:
    """It depends on more than its seed, so it could not be played again after a kill."""
    play = play_of("never done")
    start = make_prompt([{"role": "user", "content": "Began."}], environment={"kind": HOSTILE})
    with pytest.raises(RlaifError, match=f"{AT}its start: it begins with another text than before"):
        play.begin(start)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "tests.support.nowhere:Name"}, "there is no module 'tests.support.nowhere'"),
        ({"kind": "tests.support.environments:Letter"}, "has no 'Letter'; did you mean"),
        ({"kind": "pathlib:PurePath"}, "is no environment: it lacks reset, step"),
        (
            {"kind": HOSTILE, "options": {"replies": "x"}},
            r"made with `options` \{'replies': 'x'\} it raised TypeError",
        ),
    ],
)
def test_classes_that_are_no_environments_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_starts(read_environment(keys), 1)
