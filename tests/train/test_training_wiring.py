"""What a training hands on, from its call to its processes, members, encoding and losses: no value
is its default or equal to a neighbour's, so that none can stand for another."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from rlaif.config.methods import AnyDistill, AnyTrain
from rlaif.core.chat import ChatSettings
from rlaif.core.records import Preference, content_hash, make_prompt
from rlaif.engines.base import RewardResult
from rlaif.train import members, worker
from rlaif.train import run as run_module
from rlaif.train.loop import TrainJob, TrainOutcome, TrainProgress, read_outcome
from rlaif.train.losses import policy as losses
from rlaif.train.reward_model import RewardTask, accuracy
from rlaif.train.rollout import Answer, Group, Rollout, _penalised_rewards, add_advantages
from rlaif.train.tokenise import Encoded, Example, Ranked

CHAT = ChatSettings(
    "Own.", {"enable_thinking": False}, "merge", markers=(("<a>", "</a>"),), opened=True
)
ASK = make_prompt([{"role": "user", "content": "Why?"}])


def training(**keys: Any) -> Any:
    return TypeAdapter(AnyTrain).validate_python(keys)


def distilling(**keys: Any) -> Any:
    return TypeAdapter(AnyDistill).validate_python({"id": "rm", **keys})


def preference(name: str = "p", **keys: Any) -> Preference:
    made: dict[str, Any] = {
        "preference_id": name,
        "prompt_id": ASK.prompt_id,
        "round": 3,
        "prompt": ASK.messages,
        "chosen": [{"role": "assistant", "content": f"good {name}"}],
        "rejected": [{"role": "assistant", "content": f"bad {name}"}],
        "score_chosen": 0.75,
        "score_rejected": 0.25,
        "margin": 0.5,
        "prob": 0.9,
        "weight": 2.0,
        "reason": "why",
        "source": "human",
        "judgement_ids": ["j"],
        "chosen_id": f"g{name}",
        "rejected_id": f"b{name}",
    }
    return Preference(**made | keys)


OUTCOME = TrainOutcome(7, 900, {"last_loss": 0.5}, {"overlong": 1}, 2.5, "float32", {"k": 1}, ["n"])


def test_the_processes_of_a_training_get_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = training(method="dpo", processes=2, beta=0.3, **{"from": "initial"})
    asked: list[Any] = []
    row = {
        "step": 3,
        "total_steps": 9,
        "loss": 0.5,
        "tokens_per_second": 7.0,
        "metrics": {"loss": 0.5},
    }

    def launch(request: Any, processes: int, work: Path, progress: Any) -> Any:
        asked.extend([json.loads(json.dumps(request)), processes, work])
        progress(row)
        return asdict(OUTCOME)

    monkeypatch.setattr(run_module.parallel, "launch", launch)
    seen: list[TrainProgress] = []
    pairs = [preference("p"), preference("q", weight=3.0)]
    tokens = {"gp": [4, 5], "bq": [6]}
    places = [tmp_path / name for name in ("start", "reference", "out", "work")]
    found = run_module.train(
        options, pairs, tokens, *places, 11, device="cpu", progress=seen.append, chat=CHAT
    )
    assert found == OUTCOME
    assert seen == [TrainProgress(3, 9, 0.5, 7.0, {"loss": 0.5})]
    request, processes, work = asked
    assert (processes, work) == (2, tmp_path / "work")
    # What a process makes of the request is the job again.
    jobs: list[TrainJob[Any]] = []
    job: Any = None

    def run(job: TrainJob[Any]) -> TrainOutcome:
        jobs.append(job)
        return OUTCOME

    # Of a member of an ensemble; of all others it is found by the options' own name for it.
    monkeypatch.setattr(worker, "train_on_preferences", run)
    monkeypatch.setattr(worker, "find_object", {options.trainer: run}.__getitem__)
    monkeypatch.setattr(worker.parallel.torch, "set_num_threads", lambda count: None)
    for name, answer in (("init_process_group", None), ("destroy_process_group", None)):
        monkeypatch.setattr(worker.dist, name, lambda *a, answer=answer, **k: answer)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    path = tmp_path / "launch.json"
    for member in (False, True):
        if member:
            run_module._launch_training(replace(job, member=True), 2)
            request = asked[3]
        path.write_text(json.dumps(request))
        assert worker.main(path) == 0
        job = jobs.pop()
        assert (job.options, list(job.preferences), dict(job.token_ids)) == (options, pairs, tokens)
        assert [job.start, job.reference, job.out, job.work] == places
        assert (job.seed, job.device, job.member) == (11, torch.device("cpu"), member)
        chat = replace(job.chat, markers=tuple(map(tuple, job.chat.markers)))
        assert chat == CHAT
    said = json.loads(path.with_name("launched.json").read_text())
    assert TrainOutcome(**said["outcome"]) == OUTCOME


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            training(method="sft", max_length=77, overlong="truncate_left", train_on_eos=False),
            {
                "both": False,
                "max_length": 77,
                "overlong": "truncate_left",
                "train_on_eos": False,
                "always_end": False,
                "reasoning": "keep",
                "on_error": "fail",
            },
        ),
        (
            training(method="dpo", max_length=55, reasoning="strip", on_error="skip"),
            {
                "both": True,
                "max_length": 55,
                "train_on_eos": True,
                "always_end": False,
                "reasoning": "strip",
                "on_error": "skip",
            },
        ),
        (
            distilling(method="bradley_terry", max_length=33),
            {"both": True, "max_length": 33, "train_on_eos": True, "always_end": True},
        ),
    ],
    ids=["sft", "dpo", "reward"],
)
def test_answers_are_encoded_as_the_step_and_the_model_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, wanted: dict[str, Any]
) -> None:
    asked: list[Any] = []
    example = Example("e", "p", [1], ([2], [3]))

    def encode(preferences: Any, tokenizer: Any, token_ids: Any, **keys: Any) -> Encoded:
        asked.append((preferences, tokenizer, token_ids, keys))
        return Encoded([example], {"overlong": 4})

    monkeypatch.setattr(run_module, "encode", encode)
    monkeypatch.setattr(run_module, "model_limits", lambda folder: ("limits of", folder))
    monkeypatch.setattr(run_module, "load_tokenizer", lambda folder: ("tokenizer of", folder))
    monkeypatch.setattr(run_module, "refuse_empty", lambda *given: asked.append(given))
    pairs = [preference("p"), preference("q")]
    start = tmp_path / "start"
    job = TrainJob(
        options,
        start,
        tmp_path / "out",
        tmp_path / "work",
        3,
        torch.device("cpu"),
        [*pairs, pairs[0]] if options.MAKES_REWARD_MODEL else pairs,
        {"gp": [4]},
        chat=CHAT,
        reference=tmp_path / "other",
    )
    found = run_module.encode_data(job)
    (preferences, tokenizer, token_ids, keys), refused = asked
    assert preferences == pairs
    assert (tokenizer, token_ids) == (("tokenizer of", start), {"gp": [4]})
    assert (keys["chat"], keys["limits"]) == (CHAT, ("limits of", start))
    assert {key: keys[key] for key in wanted} == wanted
    assert refused == (found, 2, options.max_length, options.overlong, ("limits of", start))
    repeated = {"repeated": 1} if options.MAKES_REWARD_MODEL else {}
    assert found.counts == {"overlong": 4, **repeated}


def test_a_model_is_loaded_and_prepared_as_the_step_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(run_module, "load_module", lambda *a: asked.append(a) or "module")
    monkeypatch.setattr(run_module, "prepare", lambda *a, **k: asked.append((a, k)) or "model")
    monkeypatch.setattr(run_module, "from_masters", lambda *a: ("masters", *a))
    monkeypatch.setattr("rlaif.train.model.has_fast_bf16", lambda kind: True)
    device = torch.device("meta")
    start, other = tmp_path / "start", tmp_path / "other"

    def job(options: Any) -> TrainJob[Any]:
        return TrainJob(options, start, tmp_path / "out", tmp_path / "work", 3, device)

    keys: Any = {"precision": "bf16", "gradient_checkpointing": True, "lora": {"r": 3}}
    plain = training(method="dpo", **keys)
    run_module.load_trainable(job(plain))
    run_module.load_frozen(job(plain), other)
    split = distilling(method="bradley_terry", precision="fp32", sharding="full", processes=2)
    run_module.load_trainable(job(split))
    run_module.load_frozen(job(split), other)
    cpu, lora = torch.device("cpu"), plain.lora
    assert asked == [
        (start, device, False, ("masters", start, lora)),
        (("module", device, torch.bfloat16, lora, True), {"sharded": False}),
        (other, device),
        (("module", device, torch.bfloat16), {"trainable": False, "sharded": False}),
        # A model that is to be split is loaded into main memory.
        (start, cpu, True, ("masters", start, None)),
        (("module", device, torch.float32, None, False), {"sharded": True}),
        (other, cpu),
        (("module", device, torch.float32), {"trainable": False, "sharded": True}),
    ]


def test_members_train_apart_and_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[TrainJob[Any]] = []

    def train_one(job: TrainJob[Any]) -> TrainOutcome:
        number = len(jobs)
        jobs.append(job)
        assert job.progress is not None
        job.progress(TrainProgress(2, 4, 0.5, 1.0, {}))
        (job.work.parent / "adapter").mkdir(parents=True)
        metrics = {"last_loss": 1.0 + 4 * number, "first_loss": 8.0}
        return TrainOutcome(4, 100 + number, metrics, {"overlong": 2}, 1.5 + number)

    def export(start: Path, folders: Any, out: Path) -> None:
        out.mkdir()
        asked.append((start, folders, out))

    asked: list[Any] = []
    monkeypatch.setattr(members, "find_trainer", lambda job: train_one)
    monkeypatch.setattr(members, "export_members", export)
    monkeypatch.setattr("rlaif.train.loop.verify_folder", lambda *given: None)
    seen: list[TrainProgress] = []
    keys: Any = {"lora": {"r": 2}, "members": 3}
    job = TrainJob(
        distilling(method="bradley_terry", **keys),
        tmp_path / "start",
        tmp_path / "out",
        tmp_path / "work",
        11,
        torch.device("cpu"),
        [preference()],
        {"gp": [4]},
        chat=CHAT,
        progress=seen.append,
    )
    found = members.train_members(job)
    assert found.steps == 12 and found.tokens == 303 and found.seconds == 7.5
    assert found.metrics == {"last_loss": 5.0, "first_loss": 8.0}
    assert found.skipped == {"overlong": 2}
    assert read_outcome(job.work, job.out) == found
    assert [(p.step, p.total_steps, p.loss) for p in seen] == [
        (2, 12, 0.5),
        (6, 12, 0.5),
        (10, 12, 0.5),
    ]
    folders = [tmp_path / f"work/member{n}" for n in range(3)]
    assert [(j.out, j.work) for j in jobs] == [(f / "adapter", f / "work") for f in folders]
    seeds = [int(content_hash("member", 11, n, length=8), 16) for n in range(3)]
    assert [j.seed for j in jobs] == seeds
    for own in jobs:
        assert own.member
        same = ("options", "start", "preferences", "token_ids", "chat", "device")
        assert [getattr(own, k) for k in same] == [getattr(job, k) for k in same]
    assert asked == [(job.start, [f / "adapter" for f in folders], job.out)]
    assert not any(folder.exists() for folder in folders)


@dataclass
class Rewards:
    """A model whose rewards are given, in the order of the answers."""

    given: list[float]
    laid_out: list[Any] = field(default_factory=list)

    def layout(self, branches: Any) -> Any:
        self.laid_out.append(branches)
        return Tokens()

    def rewards(self, layout: Any) -> torch.Tensor:
        return torch.tensor(self.given)


class Tokens:
    tokens = 42


def test_pairs_of_a_reward_model_take_their_own_answers_margins_and_weights() -> None:
    """Three answers with two pairs, then two answers with one: losses are 1, 10 and 100."""
    first = Example(
        "a",
        "p",
        [1],
        ([2], [3], [4]),
        scores=(0.1, None, 0.3),
        ranked=(Ranked(2, 0, 0.75, 1.5, 2.0), Ranked(1, 2, 1.0, None, 6.0)),
    )
    second = Example("b", "q", [5], ([6], [7]), 5.0, 0.25, 2.5, scores=(0.6, 0.7))
    model: Any = Rewards([1.0, 2.0, 4.0, 8.0, 8.0])
    asked: list[Any] = []

    class Method:
        def pair_losses(self, pairs: Any) -> torch.Tensor:
            asked.append(pairs)
            return torch.tensor([1.0, 10.0, 100.0])

    task = RewardTask([second, first], options=Method())
    loss, sums, tokens = task.loss(model, [1, 0], 4.0, 0)
    (pairs,) = asked
    assert pairs.chosen.tolist() == [4.0, 2.0, 8.0]
    assert pairs.rejected.tolist() == [1.0, 4.0, 8.0]
    assert pairs.chosen_scores.nan_to_num(-1).tolist() == pytest.approx([0.3, -1.0, 0.6])
    assert pairs.rejected_scores.nan_to_num(-1).tolist() == pytest.approx([0.1, 0.3, 0.7])
    assert pairs.margin.tolist() == [1.5, 0.0, 2.5]
    assert pairs.prob.tolist() == [0.75, 1.0, 0.25]
    # The pairs of one prompt share its weight: 2 and 6 halved, and 5.
    assert float(loss) == (1.0 * 1 + 3.0 * 10 + 5.0 * 100) / 4.0
    assert sums == {
        "accuracy": (1.5, 3.0),
        "margin": (1.0, 3.0),
        "reward_chosen": (14.0, 3.0),
        "reward_rejected": (13.0, 3.0),
    }
    assert tokens == 42
    assert model.laid_out == [[first.branches, second.branches]]


def test_accuracy_asks_about_both_answers_under_the_condition_of_their_source() -> None:
    rewards = {"p": (2.0, 1.0), "q": (2.0, 1.0), "r": (3.0, 3.0), "s": (None, 1.0)}
    asked: list[Any] = []

    class Engine:
        def reward(self, requests: Any) -> Any:
            for request in requests:
                asked.append(request)
                name, side = request.request_id.split("/")
                value = rewards[name][side == "rejected"]
                yield [RewardResult(request.request_id, value, 5)]

    options = distilling(
        method="conditional", conditions={"human": "By people.", "rlaif": "By judges."}
    )
    pairs = [
        preference("p", prompt_id="1"),
        preference("q", prompt_id="2", prob=0.25, source="rlaif"),
        preference("r", prompt_id="3"),
        preference("s", prompt_id="4"),
    ]
    found = accuracy(Engine(), pairs, options)  # type: ignore[arg-type]
    # Right, wrong since the label says that the other one is better, a tie, and not known.
    assert (found.mean, found.n) == (0.5, 3)
    assert accuracy(Engine(), pairs[:1], options).mean == 1.0  # type: ignore[arg-type]
    shown = {r.request_id: (r.messages, r.answer["content"]) for r in asked}
    system = {"role": "system", "content": "By judges."}
    assert shown["q/chosen"] == ([system, *ASK.messages], "good q")
    assert shown["q/rejected"] == ([system, *ASK.messages], "bad q")
    assert shown["p/chosen"][0][0]["content"] == "By people."


def test_ppo_estimates_advantages_with_its_own_discounts_and_kl() -> None:
    keys: Any = {"rewards": {"r": 1.0}, "gamma": 0.5, "lam": 0.25, "n": 2}
    answers = (Answer([1, 2], [], (0.0,), True), Answer([3], [], (0.0,), True))
    group = Group("p", [9], answers)
    rollout = Rollout(
        [group],
        rewards=[torch.tensor([3.0, -2.0])],
        active=[torch.tensor([True, True])],
        old=[torch.tensor([-1.0, -2.0, -3.0])],
        reference=[torch.tensor([-2.0, -1.5, -3.5])],
        values=[torch.tensor([0.25, 0.5, 1.0])],
    )
    options = training(method="ppo", whiten_rewards=False, **keys)
    add_advantages(rollout, options, 0.2)
    # -0.2 * KL for each token, and the reward at the last one; V is 0 after it.
    reward = [-0.2 * 1.0, -0.2 * -0.5 + 3.0, -0.2 * 0.5 - 2.0]
    last = reward[1] - 0.5
    first = reward[0] + 0.5 * 0.5 - 0.25 + 0.5 * 0.25 * last
    alone = reward[2] - 1.0
    assert rollout.returns is not None
    assert rollout.returns[0].tolist() == pytest.approx([first + 0.25, last + 0.5, alone + 1.0])
    wanted = losses.whiten(torch.tensor([first, last, alone]))
    assert rollout.advantages[0].tolist() == pytest.approx(wanted.tolist())
    assert rollout.metrics["kl_reference"] == pytest.approx((1.0 - 0.5 + 0.5) / 2)
    assert (rollout.metrics["reward"], rollout.metrics["answer_tokens"]) == (0.5, 1.5)


def test_penalties_are_taken_off_the_answers_that_they_are_for() -> None:
    keys: Any = {"rewards": {"r": 1.0}, "max_new_tokens": 4, "missing_eos_penalty": 0.25}
    options = training(method="grpo", overlong_buffer=2, **keys)
    answers = (
        Answer([1, 2], [], (0.0,), True),
        Answer([1, 2, 3], [], (0.0,), True),
        Answer([1, 2, 3, 4], [], (0.0,), False),
        Answer([1], [], (0.0,), True),
    )
    group = Group("p", [9], answers)
    found = _penalised_rewards(group, [1.0, 1.0, 1.0, None], options)
    assert found[:3].tolist() == [1.0, 0.5, 1.0 - 0.25 - 1.0]
    assert bool(found[3].isnan())
