"""Episodes: played turn by turn, stored with the policy's own tokens, learned from, resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from msgspec import UNSET

from rlaif.config.environments import read_environment
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, EngineError, RlaifError
from rlaif.core.records import Completion, content_hash, from_json, sequence_of
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.engines.local.hf import HfEngine, load
from rlaif.environments.play import make_starts
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.memory import tokens_at_once
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.steps.episodes import (
    TURNS,
    Episode,
    Start,
    play_episodes,
    texts_of,
    turn_sampling,
)
from rlaif.report.browser import answer_text, count_own_words
from rlaif.train.rollout import Answer, Group
from tests.support.memory import Memory
from tests.support.on_policy import learn, options_of

LETTERS: dict[str, Any] = {"kind": "tests.support.environments:Letters"}
HOSTILE = "tests.support.environments:Hostile"
TRAIN: dict[str, Any] = {
    "method": "grpo",
    "rewards": {"env": 1.0},
    "rollouts": 3,
    "n": 3,
    "batch_size": 2,
    "max_new_tokens": 5,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "precision": "fp32",
    "max_length": 200,
    "checkpoint_every": 1,
}
EVALUATE = {"evaluate": {"judges": ["env"], "resamples": 50, "max_new_tokens": 5}}


@pytest.fixture(scope="module")
def engine(make_model: Callable[[int], Path]) -> HfEngine:
    folder = make_model(0)
    return load(ModelSpec(path=str(folder), dtype="float32"), folder, "tiny")


def make_episode_starts(keys: dict[str, Any], count: int, tokens: int = 5) -> list[Start]:
    return [
        Start(
            f"e{number}",
            prompt,
            0,
            prompt.messages,
            turn_sampling(Sampling(tokens, seed=100 + number)),
        )
        for number, prompt in enumerate(make_starts(read_environment(keys), count))
    ]


def play(
    engine: Any,
    keys: dict[str, Any],
    count: int = 3,
    longest: int = 250,
    log: Memory | None = None,
    stored: dict[str, GenerateResult] | None = None,
) -> dict[str, Episode]:
    starts = make_episode_starts(keys, count)
    known = {} if stored is None else stored
    batches = play_episodes(starts, engine, texts_of(engine), longest, log or Memory(), known)
    return {e.start.name: e for batch in batches for e in batch}


def parts_of(played: dict[str, Episode]) -> dict[str, Any]:
    return {name: (e.result, e.messages, e.turns) for name, e in played.items()}


def completion_of(episode: Episode) -> Completion:
    result = episode.result
    plain = Completion(
        episode.start.name, episode.start.prompt.prompt_id, 0, [], "m", "w", {},
        result.finish_reason, result.token_ids, result.logprobs,
    )  # fmt: skip
    return episode.as_turns(plain)


def test_the_model_reads_the_conversation_and_its_own_tokens_are_kept(engine: HfEngine) -> None:
    """What is decoded by hand is the chat template's text of the whole conversation, but for what
    the model wrote, which stays as it was sampled."""
    episode = play(engine, LETTERS)["e1"]
    made = completion_of(episode)
    assert made.turns is not UNSET and made.token_ids is not None
    assert [m["role"] for m in made.messages] == ["assistant", "user"] * 3
    assert made.messages[1]["content"] == "Go on 2."
    assert sum(t["own"] for t in made.turns) == len(made.token_ids) == len(made.logprobs or ())
    assert made.turns[-1]["given"] == []
    assert made.finish_reason == "stop"
    whole = sequence_of(made)
    assert whole is not None
    tokenizer, ends = engine.tokenizer, engine.end_ids
    start = 0
    for turn, reply in zip(made.turns[:-1], made.messages[1::2], strict=False):
        own = whole[start : start + turn["own"]]
        closed = own[-1] in ends
        text = tokenizer.decode(turn["given"])
        expected = f"\n<|im_start|>user\n{reply['content']}<|im_end|>\n<|im_start|>assistant\n"
        assert text == (expected if closed else "<|im_end|>" + expected)
        start += turn["own"] + len(turn["given"])


def test_every_turn_is_sampled_from_all_that_stands_before_it(engine: HfEngine) -> None:
    """The stored log-probs are those of the own tokens in the whole sequence, computed at once."""
    for episode in play(engine, LETTERS).values():
        made = completion_of(episode)
        _, prompt = engine.render(episode.start.messages)
        whole = sequence_of(made)
        assert whole is not None and made.turns is not UNSET
        with torch.no_grad():
            logits = engine.model(torch.tensor([[*prompt, *whole]])).logits.float()
        logprobs = logits.log_softmax(-1)[0]
        places = []
        start = len(prompt)
        for turn in made.turns:
            places += range(start, start + turn["own"])
            start += turn["own"] + len(turn["given"])
        expected = [float(logprobs[p - 1, [*prompt, *whole][p]]) for p in places]
        assert made.logprobs == pytest.approx(expected, abs=1e-4)


def test_rewards_and_achievements_are_the_environments(engine: HfEngine) -> None:
    made = completion_of(play(engine, LETTERS)["e0"])
    assert made.turns is not UNSET
    for turn, said in zip(made.turns, made.messages[::2], strict=True):
        text = said["content"]
        early = sum("a" <= c.lower() <= "m" for c in text)
        assert turn["reward"] == pytest.approx(early / max(1, len(text)))
        assert (turn["achieved"] is None) == (early == 0)


def test_tool_turns_have_the_role_of_tools(engine: HfEngine) -> None:
    made = completion_of(play(engine, LETTERS | {"role": "tool"})["e0"])
    assert [m["role"] for m in made.messages] == ["assistant", "tool"] * 3
    assert made.turns is not UNSET
    assert "<|im_start|>tool\nGo on 1." in engine.tokenizer.decode(made.turns[0]["given"])
    assert made.text.count("TOOL: Go on") == 3


@pytest.mark.parametrize("cut", [1, 2, 4, 5])
def test_an_interrupted_play_goes_on_with_what_is_stored(engine: HfEngine, cut: int) -> None:
    """Whatever turns are there: they are not sampled again, and the rest is the same bit for
    bit."""
    log = Memory()
    whole = parts_of(play(engine, LETTERS, log=log))
    rows = log.rows[TURNS]
    assert len(rows) == 9
    known = {row["request_id"]: GenerateResult(**row) for row in rows[:cut]}
    more = Memory()
    assert parts_of(play(engine, LETTERS, log=more, stored=dict(known))) == whole
    asked = {row["request_id"] for row in more.rows[TURNS]}
    assert asked == {row["request_id"] for row in rows[cut:]}


def test_limits_end_an_episode_as_cut(engine: HfEngine) -> None:
    """By turns, and by tokens: another turn of 5 would not fit."""
    by_turns = play(engine, LETTERS | {"options": {"turns": 9}, "max_turns": 2})["e0"]
    assert (by_turns.result.finish_reason, len(by_turns.turns)) == ("length", 2)
    assert by_turns.turns[-1]["given"] == []
    longest = 90
    by_tokens = play(engine, LETTERS | {"options": {"turns": 9}, "max_turns": 9}, longest=longest)
    for episode in by_tokens.values():
        assert episode.result.finish_reason == "length" and 0 < len(episode.turns) < 9
        whole = sequence_of(completion_of(episode))
        assert whole is not None
        assert len(engine.render(episode.start.messages)[1]) + len(whole) <= longest


@pytest.mark.parametrize(
    ("answer", "ending", "turns"), [("long", "length", 2), ("never done", "length", 8)]
)
def test_what_never_ends_or_does_not_fit_ends_by_a_limit(
    engine: HfEngine, answer: str, ending: str, turns: int
) -> None:
    """The reward of the turn that brought too long a text is kept."""
    keys = {"kind": HOSTILE, "options": {"answer": answer}}
    longest = 250 if answer == "long" else 10_000
    (episode,) = play(engine, keys, 1, longest).values()
    assert episode.result.finish_reason == ending
    assert len(episode.turns) <= turns
    if answer == "long":
        assert [t["reward"] for t in episode.turns] == [0.0, 1.0]


def test_unicode_goes_through_the_template_and_back(engine: HfEngine) -> None:
    keys = {"kind": HOSTILE, "options": {"answer": "unicode"}, "max_turns": 3}
    (episode,) = play(engine, keys, 1).values()
    text = "日本 \U0001f600 \u0000 e\u0301"
    assert episode.messages[3]["content"] == text
    assert text in engine.tokenizer.decode(episode.turns[1]["given"])


def test_a_template_without_a_turn_of_the_environments_role_is_refused_by_name(
    engine: HfEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it leaves tools' turns out."""
    left_out = "{% for m in messages if m['role'] != 'tool' %}"
    template = engine.tokenizer.chat_template.replace("{% for m in messages %}", left_out)
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    message = r"environment .*Letters, episode 0, turn 1: this chat template does not write a tool"
    with pytest.raises(RlaifError, match=message):
        play(engine, LETTERS | {"role": "tool"}, 1)


def test_an_engine_that_takes_no_ids_plays_nothing() -> None:
    engine = FakeEngine(FakeScript(), "fake")
    with pytest.raises(EngineError, match="'fake': episodes go on from token ids"):
        texts_of(engine)


def test_a_model_goes_on_from_given_ids(engine: HfEngine) -> None:
    """The same ids as the messages have give the same text; others give another one."""
    messages: Any = [{"role": "user", "content": "Hello."}]
    _, ids = engine.render(messages)
    sampling = Sampling(6, seed=4)

    def sample(given: list[int] | None) -> GenerateResult:
        request = GenerateRequest("a", messages, sampling, ids=given)
        ((result,),) = engine.generate([request])
        return result

    assert sample(None) == sample(ids)
    assert sample([*ids, 70, 71]).token_ids != sample(ids).token_ids
    assert sample([*ids, 70, 71]).prompt_tokens == len(ids) + 2


def collector_of(folder: Path, options: Any) -> Any:
    """Groups of episodes that the policy itself plays."""
    from rlaif.engines.local.encoding import Encoding
    from rlaif.engines.local.weights import Weights
    from rlaif.train.tokenise import load_tokenizer

    tokenizer = load_tokenizer(folder)
    spec = ModelSpec(path=str(folder), dtype="float32")
    encoding = Encoding(tokenizer, spec.chat, 256, "policy")
    prompts = make_starts(read_environment(LETTERS), options.batch_size * options.sync_every)

    def collect(number: int, model: Any) -> list[Group]:
        with model.generating() as module, torch.no_grad():
            engine = HfEngine(Weights(module, "x"), encoding, spec)
            starts = [
                Start(
                    f"{p}/{i}",
                    prompt,
                    i,
                    prompt.messages,
                    turn_sampling(
                        Sampling(options.max_new_tokens, seed=1000 * number + 10 * p + i)
                    ),
                )
                for p, prompt in enumerate(prompts)
                for i in range(options.n)
            ]
            batches = play_episodes(starts, engine, encoding, 250, Memory(), {})
            made = {e.start.name: e for batch in batches for e in batch}
            return [
                Group(
                    prompt.prompt_id,
                    engine.render(prompt.messages)[1],
                    tuple(as_answer(made[f"{p}/{i}"]) for i in range(options.n)),
                )
                for p, prompt in enumerate(prompts)
            ]

    return collect


def as_answer(episode: Episode) -> Answer:
    rewards = [turn["reward"] for turn in episode.turns]
    turns = tuple((turn["own"], turn["given"]) for turn in episode.turns)
    result = episode.result
    return Answer(result.token_ids, result.logprobs, (sum(rewards),), True, turns=turns)


@pytest.mark.parametrize(
    "name",
    [
        "grpo",
        pytest.param("rloo", marks=pytest.mark.slow),
        pytest.param("reinforce", marks=pytest.mark.slow),
        "ppo",
    ],
)
def test_a_planted_skill_is_learned(
    tmp_path: Path, make_model: Callable[[int], Path], name: str
) -> None:
    """The share of early letters over three turns, about 0.4 of 3 at first."""
    options = options_of(name, max_new_tokens=4, rollouts=14)
    folder = make_model(0)
    learn(folder, tmp_path, options, collect=collector_of(folder, options))
    rows = [json.loads(x) for x in (tmp_path / "work/metrics.jsonl").read_text().splitlines()]
    late = [row["reward"] for row in rows[-len(rows) // 4 :]]
    assert sum(late) / len(late) > rows[0]["reward"] + 0.4
    # The sampler and the trainer agree about every own token.
    assert max(row["logprob_gap"] for row in rows) < 1e-5


def write(folder: Path, model: Path | None, **changes: Any) -> Path:
    policy = {"path": str(model), "dtype": "float32"}
    data = {
        "name": "episodes",
        "seed": 3,
        "models": {"policy": policy},
        "prompts": {"environment": LETTERS, "episodes": 6, "holdout": 2},
        "judges": [{"kind": "episode", "id": "env", "high": 3.0}],
        "steps": [{"train": TRAIN}, EVALUATE],
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def read_files(run: Path) -> dict[str, bytes]:
    """The records and weights of a run, but for what has a time in it."""
    kinds = ("turns", "completions", "judgements", "logprobs", "values")
    found = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.glob("steps/*/*.jsonl"))
        if path.stem in kinds
    }
    weights = sorted(run.glob("models/*/*.safetensors"))
    return found | {str(p.relative_to(run)): p.read_bytes() for p in weights}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[[int], Path]) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("episodes")
    run_experiment(write(folder, make_model(0)), folder / "run")
    return folder


def test_a_run_stores_plays_and_measures_episodes(whole: Path) -> None:
    run = whole / "run"
    files = read_files(run)
    rows = [
        json.loads(line)
        for name, text in files.items()
        if name.endswith("completions.jsonl")
        for line in text.splitlines()
    ]
    made = [from_json(Completion, row) for row in rows]
    # Three rollouts of two prompts and three answers; two held-out episodes of M0 and M1.
    assert len(made) == 18 + 4
    assert all(c.turns and len(c.messages) == 6 for c in made)
    assert all(c.digest == content_hash(c.messages) for c in made)
    turns = [t for c in made for t in c.turns or ()]
    returns = {c.completion_id: sum(t["reward"] for t in c.turns or ()) for c in made}
    assert len(turns) == 66
    verdicts = [
        json.loads(line)
        for name, text in files.items()
        if name.endswith("judgements.jsonl")
        for line in text.splitlines()
    ]
    assert {v["subject"] for v in verdicts} == returns.keys()
    for verdict in verdicts:
        assert verdict["raw_value"] == pytest.approx(returns[verdict["subject"]])
        assert verdict["score"] == pytest.approx(verdict["raw_value"] / 3)
    (last,) = [json.loads(x) for x in (run / "rounds.jsonl").read_text().splitlines()][1:]
    metrics = last["metrics"]["metrics"]
    assert metrics["length/tokens"]["mean"] <= 15
    assert {"score/env", "kl/initial"} <= metrics.keys()
    starts = [json.loads(x) for x in (run / "prompts.jsonl").read_text().splitlines()]
    assert sorted(s["environment"]["seed"] for s in starts) == [*range(6)]
    page = (run / "report.html").read_text() if (run / "report.html").exists() else None
    assert page is None or "PLAYER: " in page


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("turns", 4),
        pytest.param("turns", 6, marks=pytest.mark.slow),
        ("completions", 2),
        pytest.param("completions", 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(whole: Path, file: str, number: int) -> None:
    """SIGKILL between two turns of a rollout, before the first turn of the next one, and where an
    episode is over and not stored yet."""
    killed = whole / f"{file}{number}"
    path = str(whole / "experiment.yaml")
    command = [sys.executable, "-m", "tests.support.killed_episodes", path, str(killed)]
    done = subprocess.run(
        [*command, file, str(number)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_experiment(Path(path), killed)
    assert read_files(killed) == read_files(whole / "run")


def test_an_environment_that_fails_stops_the_run_and_keeps_what_was_played(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    keys = {"kind": HOSTILE, "options": {"answer": "raises"}}
    prompts = {"environment": keys, "episodes": 6, "holdout": 2}
    path = write(tmp_path, make_model(0), prompts=prompts, steps=[{"train": TRAIN}])
    with pytest.raises(
        RlaifError, match=r"Hostile, episode \d, turn 2: `step` raised ZeroDivision"
    ):
        run_experiment(path, tmp_path / "run")
    (turns,) = (tmp_path / "run").glob("steps/*/turns.jsonl")
    assert len(turns.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"train": TRAIN | {"method": "online_dpo"}}], "online_dpo learns from whole texts"),
        ([{"train": TRAIN | {"method": "sppo"}}], "sppo learns from whole texts"),
        ([{"train": TRAIN | {"method": "quark"}}], "quark learns from whole texts"),
        (
            [{"train": TRAIN | {"overlong_buffer": 2}}],
            "overlong_buffer goes by max_new_tokens, which is the limit of one turn",
        ),
        (
            [{"sample": {"n": 2}}, {"judge": "env"}, {"pair": {}}],
            "pair 'pair': it takes answers of one turn",
        ),
        (
            [{"sample": {"n": 2}}, {"train": {"method": "sft"}}],
            "train 'train': it takes answers of one turn",
        ),
        (
            [{"sample": {"n": 2}}, {"judge": {"kind": "perplexity", "by": "initial"}}],
            "judge 'perplexity' of kind perplexity goes by the probability of all",
        ),
    ],
)
def test_steps_that_cannot_take_episodes_are_refused(
    tmp_path: Path, make_model: Callable[[int], Path], steps: list[Any], message: str
) -> None:
    path = write(tmp_path, make_model(0), steps=steps)
    with pytest.raises(ConfigError, match=message) as error:
        make_plan(prepare(path))
    assert "experiment.yaml:" in str(error.value)


def test_an_ellm_judge_reads_the_episodes_that_its_uses_name(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    judge = {"kind": "ellm", "by": "initial", "uses": ["own"]}
    steps = [
        {"sample": {"id": "own", "n": 1}},
        {"sample": {"id": "others", "n": 1, "temperature": 0.5}},
        {"judge": judge},
        {"judge": judge | {"id": "both", "uses": ["own", "others"]}},
    ]
    plan = {p.id: p for p in make_plan(prepare(write(tmp_path, make_model(0), steps=steps)))}
    own, others = plan["own"].hash, plan["others"].hash
    assert others not in plan["ellm"].sources and own in plan["ellm"].sources
    assert {own, others} <= set(plan["both"].sources)


def test_an_engine_that_cannot_play_is_refused_by_the_plan(tmp_path: Path) -> None:
    policy = {"path": "none", "engine": "fake"}
    path = write(tmp_path, None, models={"policy": policy}, steps=[EVALUATE])
    with pytest.raises(ConfigError, match="engine 'fake' of M0 does not take: use hf or vllm"):
        make_plan(prepare(path))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"environment": LETTERS, "holdout": 2}, "give `environment` and `episodes`"),
        ({"path": "p.jsonl", "episodes": 3}, "give `environment` and `episodes`"),
        ({"path": "p.jsonl", "environment": LETTERS, "episodes": 3}, "give one of `path`"),
        (
            {"environment": LETTERS, "episodes": 3, "columns": {"prompt": "x"}},
            "columns: the starts of episodes have none",
        ),
        ({"environment": {"kind": "chess"}, "episodes": 3}, "`kind` must be number"),
        ({"environment": LETTERS, "episodes": 2, "holdout": 2}, "none is left to train on"),
    ],
)
def test_prompts_that_cannot_be_are_refused(
    tmp_path: Path, make_model: Callable[[int], Path], prompts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(prepare(write(tmp_path, make_model(0), prompts=prompts)))


def test_memory_is_reckoned_with_whole_episodes() -> None:
    """Three answers of at most 5 tokens after a prompt, or three episodes, within 200 tokens."""
    options = options_of("grpo", n=3, max_new_tokens=5, max_length=200, micro_batch_tokens=1)
    assert tokens_at_once(options, 4, "cpu") == 200 + 2 * 5
    assert tokens_at_once(options, 4, "cpu", plays=True) == 3 * 200


def test_a_plan_counts_turns(tmp_path: Path, make_model: Callable[[int], Path]) -> None:
    from rlaif.pipeline.plan.base import Known
    from rlaif.pipeline.steps import step_module

    inputs = prepare(write(tmp_path, make_model(0)))
    plan = [p for p in make_plan(inputs) if p.kind in ("sample", "train")]
    sizes = {p.id: step_module(p.kind).size(inputs, p, Known()) for p in plan}
    # Two held-out episodes of at most 8 turns; 3 rollouts x 2 prompts x 3 answers x 8 turns.
    assert (sizes["evaluate.sample"].units, sizes["evaluate.sample"].calls) == (2, 16)
    assert sizes["train"].calls == 144
    assert sizes["train"].tokens == 144 * 5
    assert [p.options["plays"] for p in plan if p.kind == "train"] == [True]


def test_a_browser_shows_all_turns_with_what_they_gave() -> None:
    turns = [
        {"own": 1, "given": [5], "reward": 0.0, "achieved": None},
        {"own": 2, "given": [], "reward": 0.5, "achieved": "take the key"},
    ]
    messages = [
        {"role": "assistant", "content": "look about"},
        {"role": "user", "content": "A key."},
        {"role": "assistant", "content": "take it"},
    ]
    row = {"messages": messages, "turns": turns}
    assert answer_text(row) == (
        "PLAYER: look about\n\nENVIRONMENT: A key.\n\n"
        "PLAYER: take it\n[reward 0.5; achieved: take the key]"
    )
    assert count_own_words(row) == 4
    assert count_own_words({"messages": messages[:1]}) == 2


def test_every_turn_of_an_episode_has_a_seed_of_its_own() -> None:
    sampling = turn_sampling(Sampling(6, 0.5, seed=4))
    seeds = [int(content_hash("turn", 4, turn, length=8), 16) & 0x7FFFFFFF for turn in range(3)]
    assert len(set(seeds)) == 3
    assert [sampling(turn) for turn in range(3)] == [Sampling(6, 0.5, seed=one) for one in seeds]
