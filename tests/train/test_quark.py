"""Quark (arXiv 2205.13636): quantiles and the loss by hand, the tokens of a policy in training, and
whole trainings: conditioned on each quantile, resumed, exported with and without the tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd import gradcheck

from rlaif.config.methods import METHODS
from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, RlaifError, StoreError
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.local import hf
from rlaif.train import pool as pools
from rlaif.train.checkpoint import export
from rlaif.train.loading import load_module
from rlaif.train.methods.quark import quark_loss
from rlaif.train.model import TrainModel, prepare
from rlaif.train.pool import Scored, pool_metrics, rank_quantiles, scored_answers
from rlaif.train.quantile_tokens import (
    NAME,
    add_quantile_tokens,
    check_tokenizer,
    drop_quantile_tokens,
    quantile_id,
    token_text,
)
from rlaif.train.quark import QuarkTask
from rlaif.train.rewards import summed
from rlaif.train.rollout import Answer, Group, measure
from rlaif.train.tokenise import load_tokenizer
from tests.support.on_policy import collector, learn, low_tokens, options_of

CPU = torch.device("cpu")
approx: Any = pytest.approx


def t(*rows: Any, **options: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, **options)


# --- the pool -----------------------------------------------------------------------------------


def test_the_remainder_is_in_the_worst_quantile() -> None:
    """Twelve answers in five quantiles: 2, 2, 2, 2 and 4; four answers are all in the worst."""
    rewards = [float(x) for x in range(12)]
    found = rank_quantiles(rewards, 5)
    assert found == [5, 5, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    assert rank_quantiles([4.0, 3.0, 2.0, 1.0], 5) == [5, 5, 5, 5]
    assert rank_quantiles([], 5) == []


def test_of_equal_rewards_the_earlier_are_better() -> None:
    assert rank_quantiles([1.0, 0.0, 1.0, 1.0], 2) == [1, 2, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), max_size=40), st.integers(2, 7), st.data())
def test_quantiles_are_monotone_and_new_high_rewards_demote(
    rewards: list[float], count: int, data: Any
) -> None:
    found = rank_quantiles(rewards, count)
    sizes = [found.count(quantile) for quantile in range(1, count + 1)]
    assert sizes[:-1] == [len(rewards) // count] * (count - 1)
    assert sum(sizes) == len(rewards)
    for better, worse in zip(found, rewards, strict=True):
        assert all(q >= better for q, r in zip(found, rewards, strict=True) if r < worse)
    more = data.draw(st.lists(st.floats(6, 9), max_size=1))
    later = rank_quantiles([*rewards, *more], count)
    # One answer more moves the edges of a quantile by one place at most, and all ranks by one.
    assert all(now >= before for before, now in zip(found, later, strict=False)) or (
        len(rewards) % count == count - 1
    )


def test_many_better_answers_leave_the_old_ones_the_worst_token() -> None:
    old = [float(x) for x in range(10)]
    assert rank_quantiles(old, 5)[-1] == 1
    later = rank_quantiles([*old, *(20.0 + x for x in range(40))], 5)
    assert later[:10] == [5] * 10


def test_answers_without_a_reward_are_not_in_the_pool(make_model: Callable[[int], Path]) -> None:
    answers = tuple(Answer([i], [], (r,), True) for i, r in enumerate((1.0, None, 3.0)))
    groups = [Group("p", [7], answers, lead=260)]
    options = options_of("quark", n=3)
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    rollout = measure(model, groups, summed(groups, options.terms, {}), options, None, None)
    found = scored_answers(rollout)
    assert found == [Scored("p", [7], [0], 1.0), Scored("p", [7], [2], 3.0)]
    assert pool_metrics(found, [2, 1]) == {
        "pool": 2.0,
        "pool_reward/1": 3.0,
        "pool_reward/2": 1.0,
    }


def test_the_pool_is_cut_to_what_a_checkpoint_counts_on(tmp_path: Path) -> None:
    first, later = Scored("p", [1], [2, 3], 0.1 + 0.2), Scored("q", [4], [5], -1.0)
    assert pools.read_pool(tmp_path, None) == []
    pools.add_to_pool(tmp_path, [first])
    state = {"pool": pools.checkpoint.describe_log(tmp_path / pools.POOL)}
    pools.add_to_pool(tmp_path, [later])
    assert pools.read_pool(tmp_path, state) == [first]
    assert pools.read_pool(tmp_path, state) == [first]
    (tmp_path / pools.POOL).write_text("{}\n" * 40)
    with pytest.raises(StoreError, match=r"pool\.jsonl: damaged"):
        pools.read_pool(tmp_path, state)
    assert pools.read_pool(tmp_path, None) == []
    assert not (tmp_path / pools.POOL).read_text()


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Policy 1/2, 1/4, 1/4 and reference 1/4, 1/2, 1/4: NLL log 2 and log 4, KL from policy to
    reference 1/2 log 2 - 1/4 log 2, entropy 1.5 log 2."""
    policy = t([0.5, 0.25, 0.25], [0.5, 0.25, 0.25]).log()
    reference = t([0.25, 0.5, 0.25], [0.5, 0.25, 0.25]).log()
    loss, parts = quark_loss(policy, reference, torch.tensor([0, 2]))
    two = math.log(2)
    assert parts["nll"].tolist() == approx([two, 2 * two])
    assert parts["entropy"].tolist() == approx([1.5 * two] * 2)
    assert parts["kl"].tolist() == approx([0.25 * two, 0.0])
    wanted = [two + 0.05 * 0.25 * two - 0.06 * 1.5 * two, 2 * two - 0.06 * 1.5 * two]
    assert loss.tolist() == approx(wanted)
    alone, rest = quark_loss(policy, None, torch.tensor([0, 2]), entropy_weight=0.0)
    assert alone.tolist() == approx([two, 2 * two]) and "kl" not in rest
    # The other direction is 1/4 log(1/2) + 1/2 log 2.
    turned = quark_loss(t([0.25, 0.75]).log(), t([0.5, 0.5]).log(), torch.tensor([0]))[1]["kl"]
    assert turned.tolist() == approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)])


def test_gradcheck_of_the_loss() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 5, dtype=torch.float64).log_softmax(-1)
    targets = torch.tensor([0, 4, 2])

    def mean(x: Tensor) -> Tensor:
        loss = quark_loss(x.log_softmax(-1), reference, targets, beta=0.7, entropy_weight=0.3)[0]
        return loss.mean()

    assert gradcheck(mean, (logits,))


# --- the tokens ---------------------------------------------------------------------------------


def trainable(folder: Path, lora: Any = None) -> TrainModel:
    return prepare(load_module(folder, CPU), CPU, torch.float32, lora)


ROWS = [([1, 2, 3], ([4, 5], [6]))]


def after(model: TrainModel, lead: int | None) -> Tensor:
    rows = [(p if lead is None else [lead, *p], b) for p, b in ROWS]
    return model.token_logprobs(model.layout(rows)).detach()


def test_tokens_change_nothing_of_prompts_without_one(make_model: Callable[[int], Path]) -> None:
    model = trainable(make_model(0))
    before = after(model, None)
    add_quantile_tokens(model, 5, seed=0)
    assert torch.equal(after(model, None), before)
    ids = [quantile_id(model, quantile) for quantile in range(1, 6)]
    assert ids == list(range(ids[0], ids[0] + 5))
    found = [after(model, token) for token in ids]
    assert len({tuple(own.tolist()) for own in found}) == 5
    again = trainable(make_model(0))
    add_quantile_tokens(again, 5, seed=0)
    assert torch.equal(again.masters[NAME], model.masters[NAME])
    other = trainable(make_model(0))
    add_quantile_tokens(other, 5, seed=1)
    assert not torch.equal(other.masters[NAME], model.masters[NAME])


def test_an_embedding_that_is_more_than_a_table_is_refused(
    make_model: Callable[[int], Path],
) -> None:
    model = trainable(make_model(0))
    table = model.module.get_input_embeddings()
    plain = table.forward
    table.forward = lambda ids: 2 * plain(ids)
    with pytest.raises(EngineError, match="more than a table"):
        add_quantile_tokens(model, 2, seed=0)


def task_of(model: TrainModel, quantiles: list[int], reference: Any, **keys: Any) -> QuarkTask:
    return QuarkTask(POOL, quantiles, model, options_of("quark", **keys), reference)


POOL = [Scored("p", [1, 2, 3], [4, 5], 1.0), Scored("q", [6], [7, 8, 9], 0.0)]


@pytest.mark.parametrize("tile", [1, 2**22])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_task_learns_answers_after_their_tokens_and_the_reference_sees_none(
    make_model: Callable[[int], Path], monkeypatch: Any, tile: int, lora: bool
) -> None:
    from rlaif.config.training import LoraOptions

    monkeypatch.setattr("rlaif.train.quark.TILE", tile)
    model = trainable(make_model(0), LoraOptions(r=4) if lora else None)
    frozen = trainable(make_model(0))
    add_quantile_tokens(model, 3, seed=0)
    with torch.no_grad():
        for name, param in model.params.items():
            if "lora_B" in name:
                param.normal_(std=0.1)
    task = task_of(model, [1, 3], model if lora else frozen)
    assert task.total([0, 1]) == 5.0
    loss, sums, _ = task.loss(model, [0, 1], 5.0, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    nll = kl = entropy = 0.0
    for answer, quantile in zip(POOL, (1, 3), strict=True):
        prompt = [quantile_id(model, quantile), *answer.prompt_ids]
        layout = model.layout([(prompt, (answer.ids,))])
        own = model.read_vocabulary()(model.predicting(layout)).detach()
        plain = frozen.layout([(answer.prompt_ids, (answer.ids,))])
        other = frozen.read_vocabulary()(frozen.predicting(plain)).detach()
        nll -= float(own.gather(1, torch.tensor(answer.ids)[:, None]).sum())
        kl += float((own.exp() * (own - other)).sum())
        entropy -= float((own.exp() * own).sum())
    assert sums["nll"] == (approx(nll, rel=1e-4), 5.0)
    assert sums["kl"] == (approx(kl, rel=1e-4), 5.0)
    assert sums["entropy"] == (approx(entropy, rel=1e-4), 5.0)
    assert float(loss.detach()) == approx((nll + 0.05 * kl - 0.06 * entropy) / 5, rel=1e-4)
    grad = model.masters[NAME].grad
    assert grad is not None
    # The token of no answer has no gradient.
    assert [bool(row.any()) for row in grad] == [True, False, True]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_kl_is_0_where_the_token_changes_nothing(
    make_model: Callable[[int], Path], temperature: float
) -> None:
    """Here the reference sees what the policy sees."""
    model, frozen = trainable(make_model(0)), trainable(make_model(0))
    add_quantile_tokens(model, 2, seed=0)
    task = task_of(model, [1, 2], frozen, temperature=temperature)
    task.examples = [
        replace(example, prompt_ids=example.prompt_ids[1:]) for example in task.examples
    ]
    _, sums, _ = task.loss(model, [0, 1], 5.0, 0)
    assert sums["kl"][0] == approx(0.0, abs=1e-6)


# --- whole trainings ----------------------------------------------------------------------------

KEYS: dict[str, Any] = {"rollouts": 4, "checkpoint_every": 2, "quantiles": 3, "epochs": 2}


def rows_of(work: Path) -> list[dict[str, Any]]:
    rows = [json.loads(x) for x in (work / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "timing"} for row in rows]


def test_rollouts_see_the_best_token_but_the_first(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    watched = {"kl": {"warn": 1e9}, "entropy": {"warn": -1.0}}
    options = options_of("quark", **KEYS, gates=watched)
    real = collector(make_model(0), options, low_tokens)
    seen = []

    def watching(number: int, model: TrainModel, **about: Any) -> Any:
        seen.append(about.get("lead"))
        return real(number, model, **about)

    learn(make_model(0), tmp_path, options, collect=watching)
    words = len(load_tokenizer(make_model(0)))
    assert seen == [None, words, words, words]
    rows = rows_of(tmp_path / "work")
    # Two epochs of as many answers as each rollout adds.
    assert [row["pool"] for row in rows] == [24, 24, 48, 48, 72, 72, 96, 96]
    for row in rows:
        assert row["pool_reward/1"] > row["pool_reward/2"] > row["pool_reward/3"]
    assert rows[0]["kl"] > 0 and rows[0]["entropy"] > 0
    # Gates look at the policy after the token, and at a reference that sees none: at first both
    # are the start.
    assert rows[0]["kl_reference"] == approx(0.0, abs=1e-5)
    assert abs(rows[-1]["kl_reference"]) > 0.1


def mean_reward(folder: Path, quantile: int) -> float:
    """Of sixty answers of an exported model after the token of a quantile."""
    engine: Any = hf.load(
        ModelSpec(path=str(folder), dtype="float32", chat_template_kwargs={"quantile": quantile}),
        folder,
        "policy",
    )
    requests = [
        GenerateRequest(str(i), [{"role": "user", "content": str(i % 4)}], Sampling(6, seed=i))
        for i in range(60)
    ]
    made = [result for batch in engine.generate(requests) for result in batch]
    return sum(low_tokens(result.token_ids) for result in made) / len(made)


def test_answers_follow_the_token_that_they_are_sampled_after(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    """The best token's reward is above the middle's, and that above the worst's; rollouts, which
    are sampled after the best, end above where they began."""
    learn(make_model(0), tmp_path, options_of("quark", quantiles=3, rollouts=12, keep_tokens=True))
    best, middle, worst = (mean_reward(tmp_path / "out", quantile) for quantile in (1, 2, 3))
    assert best > middle + 0.05 and middle > worst + 0.05
    rewards = [row["reward"] for row in rows_of(tmp_path / "work")]
    assert sum(rewards[-18:]) / 18 > rewards[0] + 0.05


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_interrupted_and_resumed_ends_in_the_same_bits(
    tmp_path: Path, make_model: Callable[[int], Path], lora: Any
) -> None:
    options = options_of("quark", **KEYS, lora=lora)
    learn(make_model(0), tmp_path / "a", options)

    def stop(progress: Any) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path / "b", options, progress=stop)
    # The third rollout's answers are in the file, and no checkpoint counts on them.
    assert (tmp_path / "b/work/pool.jsonl").read_text().count("\n") == 96
    learn(make_model(0), tmp_path / "b", options)
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert rows_of(tmp_path / "a/work") == rows_of(tmp_path / "b/work")
    pool = [(tmp_path / f"{x}/work/pool.jsonl").read_bytes() for x in "ab"]
    assert pool[0] == pool[1]


def test_a_rollback_takes_its_answers_out_of_the_pool(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    """The reward of the third rollout is that of a policy that is lost, once."""
    options = options_of("quark", **KEYS, gates={"reward_spread": {"rollback": 1e-6}})
    real = collector(make_model(0), options, low_tokens)

    def spoiled(number: int, model: TrainModel, rollbacks: int = 0, **about: Any) -> Any:
        groups = real(number, model, **about)
        if number != 3 or rollbacks:
            return groups
        return [
            replace(g, answers=tuple(replace(a, values=(7.0,)) for a in g.answers)) for g in groups
        ]

    learn(make_model(0), tmp_path, options, collect=spoiled)
    lines = (tmp_path / "work/pool.jsonl").read_text().splitlines()
    assert len(lines) == 96 and all(json.loads(line)["reward"] < 2 for line in lines)
    assert rows_of(tmp_path / "work")[-1]["rollbacks"] == 1


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_the_export_has_the_tokens_where_they_are_asked_for(
    tmp_path: Path, make_model: Callable[[int], Path], lora: Any
) -> None:
    start = make_model(0)
    words = len(load_tokenizer(start))
    for kept in (False, True):
        learn(start, tmp_path / str(kept), options_of("quark", **KEYS, lora=lora, keep_tokens=kept))
    plain, wide = (tmp_path / f"{kept}/out" for kept in (False, True))
    assert len(load_tokenizer(plain)) == words
    assert load_tokenizer(plain).chat_template == load_tokenizer(start).chat_template
    before, now = (load_file(x / "masters/model.safetensors") for x in (plain, wide))
    assert before.keys() == now.keys() and NAME not in now
    for name, weight in before.items():
        assert torch.equal(weight, now[name][: len(weight)])
    tokenizer = load_tokenizer(wide)
    assert len(tokenizer) == words + 3
    module = load_module(wide, CPU)
    assert module.get_input_embeddings().num_embeddings == module.config.vocab_size == words + 3
    # Tied as before.
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert module.generation_config.suppress_tokens == [words, words + 1, words + 2]
    turns = [{"role": "user", "content": "5"}]

    def render(**variables: Any) -> list[int]:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **variables
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    assert render() == render(quantile=1)
    assert [render(quantile=q)[0] for q in (1, 2, 3)] == [words, words + 1, words + 2]
    assert render(quantile=3)[1:] == render()[1:]
    assert (
        tokenizer.decode([words, *tokenizer("ab")["input_ids"]], skip_special_tokens=True) == "ab"
    )


def test_the_exported_model_computes_after_a_token_what_the_trained_one_did(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    model = trainable(make_model(0))
    add_quantile_tokens(model, 4, seed=0)
    first = quantile_id(model, 1)
    # The head has rows for the tokens now: their share is not in the trained likelihoods.
    wanted = [after(model, first + q) for q in range(4)]
    export(model, make_model(0), tmp_path / "out", None, tokens=drop_quantile_tokens(model))
    wide = trainable(tmp_path / "out")
    for q in range(4):
        rows = [([first + q, *p], b) for p, b in ROWS]
        layout = wide.layout(rows)
        logprobs = wide.read_vocabulary()(wide.predicting(layout))
        own = logprobs[:, :first].log_softmax(-1)
        found = own.gather(1, layout.targets[:, None])[:, 0]
        assert found.tolist() == approx(wanted[q].tolist(), abs=1e-4)


def test_a_padded_vocabulary_has_room_for_the_tokens(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    """An untied head, and more rows than tokens: the table stays as large as it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(make_model(0))
    config = LlamaConfig.from_pretrained(make_model(0))
    config.vocab_size, config.tie_word_embeddings = len(tokenizer) + 7, False
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    model = trainable(tmp_path / "start")
    add_quantile_tokens(model, 3, seed=0)
    assert quantile_id(model, 1) == len(tokenizer) + 7
    rows = model.masters[NAME].detach().clone()
    head = model.module.get_output_embeddings().weight.detach().clone()
    tokens = drop_quantile_tokens(model)
    export(model, tmp_path / "start", tmp_path / "out", None, tokens=tokens)
    module = load_module(tmp_path / "out", CPU)
    weight = module.get_input_embeddings().weight
    assert len(weight) == len(tokenizer) + 7
    assert torch.equal(weight[len(tokenizer) : len(tokenizer) + 3], rows)
    mean = module.get_output_embeddings().weight[len(tokenizer)]
    assert torch.allclose(mean, head.mean(0), atol=1e-6)
    ids = load_tokenizer(tmp_path / "out").convert_tokens_to_ids([token_text(q) for q in (1, 2, 3)])
    assert ids == [len(tokenizer), len(tokenizer) + 1, len(tokenizer) + 2]


# --- refusals -----------------------------------------------------------------------------------


def test_a_model_with_quantile_tokens_gets_no_others(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    options = options_of("quark", rollouts=1, quantiles=2, keep_tokens=True)
    learn(make_model(0), tmp_path / "a", options)
    with pytest.raises(RlaifError, match="has quantile tokens already"):
        learn(tmp_path / "a/out", tmp_path / "b", options)


def test_a_tokenizer_that_reads_a_prompt_differently_after_a_token_is_refused(
    make_model: Callable[[int], Path], monkeypatch: Any
) -> None:
    check_tokenizer(make_model(0), 5, kept=True)
    module = "rlaif.train.quantile_tokens"
    monkeypatch.setattr(f"{module}.load_tokenizer", lambda folder: spaced(make_model(0)))
    check_tokenizer(make_model(0), 5, kept=False)
    with pytest.raises(RlaifError, match="reads a prompt differently"):
        check_tokenizer(make_model(0), 5, kept=True)


def spaced(folder: Path) -> Any:
    """A tokenizer whose template does not stand what is put before it."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{- 'x' ~ (quantile | default('y')) -}}" + tokenizer.chat_template
    real = tokenizer.apply_chat_template

    def apply(*args: Any, **keys: Any) -> str:
        return str(real(*args, **keys)).strip().replace("|>x", "|> x")

    tokenizer.apply_chat_template = apply
    return tokenizer


def test_a_model_without_a_tokenizer_is_refused(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    load_module(make_model(0), CPU).save_pretrained(tmp_path / "bare")
    with pytest.raises(EngineError, match="tokenizer"):
        learn(tmp_path / "bare", tmp_path, options_of("quark"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantiles": 1}, "quantiles"),
        ({"importance": "mask_token"}, "importance"),
        ({"costs": [{"judge": "c", "limit": 0}]}, "costs"),
        ({"keep_tokens": True, "lora": {"export": "adapter"}}, "an adapter by itself"),
        ({"beta": -0.1}, "beta"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    METHODS["quark"].model_validate({"method": "quark", "rewards": {"r": 1}})
    with pytest.raises(ValidationError, match=message):
        METHODS["quark"].model_validate({"method": "quark", "rewards": {"r": 1}, **keys})
