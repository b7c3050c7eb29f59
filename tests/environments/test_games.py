"""The games: golden episodes worked out by hand, the same again from the same seed, and what
gymnasium's toy texts are shown as."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.config.environments import ENVIRONMENTS, read_environment
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt
from rlaif.environments.base import Step
from rlaif.environments.number import NumberGame
from rlaif.environments.play import Play, make_starts
from rlaif.environments.rooms import COIN, KEY, Rooms

NUMBER: dict[str, Any] = {"kind": "number", "low": 1, "high": 10, "max_turns": 5}
ROOMS: dict[str, Any] = {"kind": "rooms", "rooms": 3, "max_turns": 12}
LAKE: dict[str, Any] = {
    "kind": "gymnasium",
    "name": "FrozenLake-v1",
    "options": {"is_slippery": False},
}
NEEDS = "gymnasium IS NOT INSTALLED: pip install 'gymnasium>=1.2'"


def starts(keys: dict[str, Any], count: int = 4) -> list[Prompt]:
    return make_starts(read_environment(keys), count)


def begun(keys: dict[str, Any], seed: int = 0) -> Play:
    start = starts(keys, seed + 1)[seed]
    assert start.environment is not None
    play = Play(start.environment)
    play.begin(start)
    return play


def test_a_number_is_found_by_halving() -> None:
    game = NumberGame(1, 10)
    game.reset(0)
    game.number = 7
    assert game.step("Is it 5?") == Step("It is higher than 5.")
    assert game.step("8 or 9") == Step("It is lower than 8.")
    assert game.step("no idea") == Step("I see no number. Answer with one number.")
    assert game.step("7") == Step("Yes, it is 7.", 1.0, True, "guess the number")


def test_the_last_miss_may_be_rewarded_by_how_close_it_is() -> None:
    """Range 1 to 11, the number 6: a miss by 3 gives (1 - 3 / 10) / 2 at the last turn alone."""
    game = NumberGame(1, 11, last=2)
    game.reset(0)
    game.number = 6
    assert game.step("3").reward == 0.0
    assert game.step("9").reward == pytest.approx(0.35)


def test_numbers_are_drawn_over_the_whole_range() -> None:
    game = NumberGame(1, 10)
    found = []
    for seed in range(300):
        game.reset(seed)
        found.append(game.number)
    assert set(found) == set(range(1, 11))
    assert max(found.count(n) for n in set(found)) < 60


def test_a_house_is_played_to_its_end() -> None:
    """Three rooms in a row, the key in the first, the chest in the last, and one begins between."""
    house = Rooms(3)
    house.reset(0)
    house.rooms, house.key, house.chest, house.at = ["hall", "attic", "cellar"], 0, 2, 1
    assert house.step("open the chest").observation.startswith("That is not possible here.")
    moved = house.step("I go to the HALL, then go to the cellar.")
    assert moved == Step(
        "You are in the hall. There is a brass key. You carry nothing.\n"
        "You can: take the brass key; go to the attic",
        achieved="go to the hall",
    )
    taken = house.step("Take the brass key!")
    assert (taken.reward, taken.achieved, taken.done) == (1 / 3, KEY, False)
    assert house.step("take the brass key").achieved is None
    for command in ("go to the attic", "go to the cellar", "open the chest"):
        step = house.step(command)
    assert step.reward == 1 / 3
    assert house.step(COIN) == Step("You have the gold coin.", 1 / 3, True, COIN)


@pytest.mark.parametrize("keys", [NUMBER, ROOMS], ids=["number", "rooms"])
@given(actions=st.lists(st.text(max_size=20) | st.sampled_from(["5", "take the brass key"])))
def test_an_episode_is_the_same_again(keys: dict[str, Any], actions: list[str]) -> None:
    """What an environment says is a function of seed and turns, which resuming rests on."""

    def play() -> list[Step]:
        one = begun(keys, 1)
        found = []
        for action in actions:
            if not one.over:
                found.append(one.step(action))
        return found

    assert play() == play()


def test_starts_differ_by_seed_and_keys() -> None:
    """The first text of the number game is the same for every seed, and the episodes are not."""
    known = starts(NUMBER, 6)
    assert len({p.messages[0]["content"] for p in known}) == 1
    assert len({p.prompt_id for p in known}) == 6
    other = starts(NUMBER | {"max_turns": 6}, 6)
    assert not {p.prompt_id for p in known} & {p.prompt_id for p in other}
    assert known[2].environment == {"role": "user", "closeness": False, "seed": 2} | NUMBER


def test_a_lake_is_walked_to_the_goal() -> None:
    """The map of gymnasium's documentation; six steps that avoid its holes."""
    pytest.importorskip("gymnasium", reason=NEEDS)
    play = begun(LAKE)
    assert play.reset().endswith("left, down, right, up.\n\n[S]FFF\nFHFH\nFFFH\nHFFG")
    steps = [play.step(a) for a in ("Down.", "down", "go right", "right", "down", "RIGHT")]
    assert [s.reward for s in steps] == [0.0] * 5 + [1.0]
    assert [s.done for s in steps] == [False] * 5 + [True]
    assert steps[0].observation == "You did: down.\n\n  (Down)\nSFFF\n[F]HFH\nFFFH\nHFFG"
    assert steps[0].achieved == "down"


def test_what_is_no_action_changes_nothing() -> None:
    pytest.importorskip("gymnasium", reason=NEEDS)
    play = begun(LAKE)
    step = play.step("I sit downwards.")
    assert step == Step("That is no action. Actions: left, down, right, up.")


def test_colours_are_brackets_and_observations_are_shown_where_nothing_is_drawn() -> None:
    pytest.importorskip("gymnasium", reason=NEEDS)
    taxi = begun({"kind": "gymnasium", "name": "Taxi-v4"}).reset()
    assert "\x1b" not in taxi
    assert all(sign in taxi.partition("+")[2] for sign in "()[]<>")
    cards = begun({"kind": "gymnasium", "name": "Blackjack-v1"}).reset()
    assert "stick, hit" in cards and "\n\nObservation: (" in cards


def test_keys_of_gymnasium_reach_what_is_shown() -> None:
    pytest.importorskip("gymnasium", reason=NEEDS)
    keys: dict[str, Any] = {"actions": ["west", "south", "east", "north"], "task": "Walk east."}
    large = LAKE | {"options": {"map_name": "8x8"}} | keys
    text = begun(large).reset()
    assert text.startswith("Walk east. Answer with one action and nothing else: west, south, ")
    assert len(text.splitlines()[-1]) == 8
    assert begun(large | {"name": "CliffWalking-v1", "options": {}}).reset() != text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "Nowhere-v0"}, "environment gymnasium Nowhere-v0: NameNotFound"),
        ({"name": "Pendulum-v1"}, "its actions are Box.*, and not numbered"),
        ({"name": "Blackjack-v1", "actions": ["hit", "HIT"]}, "it has 2 actions; give as many"),
        ({"name": "FrozenLake-v1", "options": {"size": 3}}, "TypeError: .*size"),
    ],
)
def test_environments_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    pytest.importorskip("gymnasium", reason=NEEDS)
    with pytest.raises(ConfigError, match=message):
        starts({"kind": "gymnasium"} | keys)


def test_without_its_package_gymnasium_says_how_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlaif.environments.gym.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed\. Run: pip install 'gymnasium"):
        starts(LAKE)


def test_the_table_names_every_kind() -> None:
    assert set(ENVIRONMENTS) == {"number", "rooms", "gymnasium"}
    with pytest.raises(ValueError, match="must be number, rooms, gymnasium or package"):
        read_environment({"kind": "chess"})
    with pytest.raises(ValueError, match=r"`low` \(3\) must be below `high` \(3\)"):
        read_environment({"kind": "number", "low": 3, "high": 3})
