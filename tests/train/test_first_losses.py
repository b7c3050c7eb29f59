"""The first loss of every method as a literal number, through the train step: the policy and the
reference give every token a probability that is a power of two, whatever stands before it."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from rlaif.config.gates import Gates
from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.core.records import Preference
from rlaif.core.resources import find_object
from rlaif.train.loading import load_module
from rlaif.train.loop import TrainJob
from rlaif.train.losses import policy as policies
from rlaif.train.losses import preference
from rlaif.train.losses import reward as rewards
from rlaif.train.methods.sppo import sppo_loss
from rlaif.train.model import prepare
from rlaif.train.on_policy import train_on_policy
from rlaif.train.policy_tasks import PolicyTask
from rlaif.train.rollout import Answer, Group, add_advantages, measure
from rlaif.train.run import train

CPU = torch.device("cpu")
LOG2 = math.log(2)
# -log2 of the probability of the end token and of three letters; the rest is shared by the others.
POLICY = {"<|im_end|>": 1, "a": 2, "b": 3, "c": 4}
REFERENCE = {"<|im_end|>": 2, "a": 1, "b": 4, "c": 3}
# So, in bits and with the end token: log pi, log pi_ref, their difference.
#   "ab"   -6   -7   1        "b"    -4   -6   2
#   "ccc" -13  -11  -2        "a"    -3   -3   0


@pytest.fixture(scope="module")
def unigram(tmp_path_factory, tokenizer):
    """bits -> folder of a checkpoint whose next token never depends on the text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(name, bits):
        width = 8
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        known = {tokenizer.convert_tokens_to_ids(t): 2.0**-b for t, b in bits.items()}
        rest = (1 - sum(known.values())) / (len(tokenizer) - len(known))
        logits = torch.tensor([math.log(known.get(i, rest)) for i in range(len(tokenizer))])
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            # The norm makes ones of equal numbers; their size leaves its epsilon no weight.
            model.model.embed_tokens.weight.fill_(1000.0)
            model.lm_head.weight.copy_((logits / width)[:, None].expand(-1, width))
        folder = tmp_path_factory.mktemp("unigram") / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="module")
def policy(unigram):
    return unigram("policy", POLICY)


@pytest.fixture(scope="module")
def reference(unigram):
    return unigram("reference", REFERENCE)


def pair(number, chosen, rejected, **keys):
    row = Preference(
        preference_id=f"r{number}",
        prompt_id=f"p{number}",
        round=0,
        prompt=[{"role": "user", "content": f"Question {number}"}],
        chosen=[{"role": "assistant", "content": chosen}],
        rejected=[{"role": "assistant", "content": rejected}],
        score_chosen=None,
        score_rejected=None,
        margin=None,
        prob=1.0,
        weight=1.0,
        reason="",
        source="test",
        judgement_ids=[],
        chosen_id=f"c{number}",
        rejected_id=f"d{number}",
    )
    return replace(row, **keys)


ONE = [pair(1, "ab", "ccc")]
TWO = [*ONE, pair(2, "b", "a")]
WEIGHTED = [ONE[0], pair(2, "b", "a", weight=3.0)]
SOFT = [pair(1, "ab", "ccc", prob=0.75)]
WORSE = [pair(1, "ccc", "ab")]


def first(folder, start, reference, preferences, **keys):
    keys = {"precision": "fp32", "learning_rate": 1e-6, **keys}
    options = {**METHODS, **DISTILLATIONS}[keys["method"]].model_validate(keys)
    out, work = folder / "out", folder / "work"
    return train(options, preferences, {}, start, reference, out, work, 0, "cpu").metrics


def log(x):
    return math.log(x)


@pytest.mark.parametrize(
    ("keys", "preferences", "loss"),
    [
        # delta is 3 bits, so sigmoid(delta) is 8/9; of the second pair 2 bits and 4/5.
        ({"method": "dpo"}, ONE, log(9 / 8)),
        ({"method": "dpo"}, TWO, (log(9 / 8) + log(5 / 4)) / 2),
        ({"method": "dpo"}, WEIGHTED, (log(9 / 8) + 3 * log(5 / 4)) / 2),
        ({"method": "dpo"}, SOFT, 0.75 * log(9 / 8) + 0.25 * log(9)),
        ({"method": "dpo"}, WORSE, log(9)),
        ({"method": "dpo", "label_smoothing": 0.125}, ONE, 0.875 * log(9 / 8) + 0.125 * log(9)),
        ({"method": "dpo", "length_normalise": True, "beta": 6.0}, ONE, log(33 / 32)),
        # The chosen answer's NLL is 2 bits a token; the rejected one's would be 13/4.
        ({"method": "dpo", "nll_weight": 0.5}, ONE, log(9 / 8) + 0.5 * 2 * LOG2),
        ({"method": "dpo", "positive_weight": 0.5}, WORSE, log(17)),
        ({"method": "robust", "label_smoothing": 0.25}, ONE, 1.5 * log(9 / 8) - 0.5 * log(9)),
        ({"method": "ipo", "beta": 0.5}, ONE, (3 * LOG2 - 1) ** 2),
        (
            {"method": "ipo", "beta": 0.5},
            WEIGHTED,
            ((3 * LOG2 - 1) ** 2 + 3 * (2 * LOG2 - 1) ** 2) / 2,
        ),
        ({"method": "ipo", "beta": 0.5, "length_normalise": True}, ONE, (5 / 6 * LOG2 - 1) ** 2),
        ({"method": "hinge", "beta": 0.2}, ONE, 1 - 0.6 * LOG2),
        ({"method": "apo_zero"}, ONE, 1 / 3 + 1 / 5),
        ({"method": "nca"}, ONE, log(3 / 2) + 0.5 * log(3) + 0.5 * log(5 / 4)),
        # The baseline is 3/2 bits: each prompt under the other one's chosen answer.
        ({"method": "kto", "beta": 2.0}, TWO, (2 / 3 + 1 / 129 + 1 / 3 + 1 / 9) / 4),
        (
            {"method": "kto", "beta": 2.0, "desirable_weight": 1.5, "undesirable_weight": 0.7},
            TWO,
            (1.5 * 2 / 3 + 0.7 / 129 + 1.5 / 3 + 0.7 / 9) / 4,
        ),
        ({"method": "kto", "beta": 2.0}, WEIGHTED, (2 / 3 + 1 / 129 + 3 / 3 + 3 / 9) / 4),
        # Without a reference: log pi is -6 and -13 bits.
        ({"method": "slic", "margin": 5.0, "nll_weight": 0.1}, ONE, 5 - 7 * LOG2 + 0.6 * LOG2),
        # Per token -2 and -13/4 bits.
        ({"method": "simpo", "beta": 2.0, "gamma": 0.5 * LOG2}, ONE, log(5 / 4)),
        # Per token 1/4 and 1/8, so odds of 1/3 and 1/7.
        (
            {"method": "orpo", "weight": 0.3},
            [pair(1, "ab", "cc")],
            2 * LOG2 + 0.3 * log(10 / 7),
        ),
        # Ten bits of five tokens, and of three of them without the ends.
        ({"method": "sft"}, TWO, 2 * LOG2),
        ({"method": "sft", "train_on_eos": False}, TWO, 8 / 3 * LOG2),
        # A new head gives every answer 0.
        ({"method": "bradley_terry"}, WEIGHTED, 2 * LOG2),
        (
            {"method": "bradley_terry", "margin": "score"},
            [pair(1, "ab", "ccc", margin=3 * LOG2)],
            log(9),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_first_loss_of_a_training(tmp_path, policy, reference, keys, preferences, loss):
    if "beta" in METHODS.get(keys["method"], METHODS["sft"]).model_fields:
        keys = {"beta": 1.0, **keys}
    metrics = first(tmp_path, policy, reference, preferences, **keys)
    assert metrics["first_loss"] == pytest.approx(loss, rel=2e-5)


def test_the_first_metrics_tell_chosen_from_rejected(tmp_path, policy, reference):
    metrics = first(tmp_path, policy, reference, ONE, method="dpo", beta=0.5, nll_weight=0.5)
    found = {
        name: metrics[f"first_{name}"] / LOG2
        for name in (
            "logprob_chosen",
            "logprob_rejected",
            "reward_chosen",
            "reward_rejected",
            "margin",
            "nll_chosen",
        )
    }
    assert found == pytest.approx(
        {
            "logprob_chosen": -6,
            "logprob_rejected": -13,
            "reward_chosen": 0.5,
            "reward_rejected": -1,
            "margin": 1.5,
            "nll_chosen": 2,
        },
        rel=2e-5,
    )


# On-policy: answers that a script gives, of the policy's own probabilities.


def group(tokenizer, prompt, *answers):
    """(text, the sampler's log-prob of each token in bits, reward) of each answer to a prompt."""
    made = []
    for text, bits, reward in answers:
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        assert len(ids) == len(bits)
        made.append(Answer(ids, [-b * LOG2 for b in bits], (reward,), True))
    return Group(prompt, tokenizer.encode(prompt, add_special_tokens=False), tuple(made))


def learn(folder: Path, start, reference, options, collect, progress=None):
    work = folder / "work"
    out = folder / "out"
    job = TrainJob(
        options,
        start,
        out,
        work,
        0,
        CPU,
        reference=reference,
        collect=collect,
        fingerprint="f",
        progress=progress,
    )
    train_on_policy(job)
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def on_policy(method, **keys):
    rows = {"rollouts": 1, "batch_size": 1, "precision": "fp32", "learning_rate": 1e-12}
    keys = {"method": method, "rewards": {"r": 1.0}, "beta": 0.0, **rows, **keys}
    return METHODS[method].model_validate(keys)


ROOT = math.sqrt(0.5)
"""The advantage of the better of two answers in units of their deviation."""


@pytest.mark.parametrize(
    ("keys", "loss"),
    [
        # Five tokens: three that gain, two that lose.
        ({"importance": "none"}, -ROOT * (3 - 2) / 5),
        ({"importance": "none", "reduction": "sequence"}, 0.0),
        ({"importance": "none", "scale": "none"}, -0.5 * (3 - 2) / 5),
        (
            {"importance": "none", "scale": "none", "reduction": "constant", "max_new_tokens": 8},
            -0.5 * (3 - 2) / 16,
        ),
        # The sampler found the first answer half as likely, and the second one four times.
        ({"importance": "truncate_sequence"}, -ROOT * (2 * 3 - 2 / 4) / 5),
        ({"importance": "mask_sequence", "importance_cap": 1.5}, ROOT * 2 / 4 / 5),
        ({"importance": "mask_sequence", "importance_floor": 0.5}, -ROOT * 2 * 3 / 5),
        ({"importance": "truncate_sequence", "importance_cap": 1.5}, -ROOT * (4.5 - 0.5) / 5),
        # By token the ratios are 2, 1, 1 and 1/4, 1.
        ({"importance": "truncate_token"}, -ROOT * (2 + 1 + 1 - 1 / 4 - 1) / 5),
        ({"importance": "mask_token", "importance_cap": 1.5}, -ROOT * (1 + 1 - 1 / 4 - 1) / 5),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_first_loss_of_grpo(tmp_path, policy, tokenizer, keys, loss):
    answers = group(tokenizer, "?", ("ab", [3, 3, 1], 1.0), ("b", [1, 1], 0.0))
    options = on_policy("grpo", n=2, **keys)
    row = learn(tmp_path, policy, None, options, lambda number, model: [answers])[0]
    assert row["loss"] == pytest.approx(loss, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "keys", "loss"),
    [
        # On fresh answers the ratio is 1: GRPO by answers, and tokens weighed by their log-probs.
        ("gspo", {"sync_every": 1}, 0.0),
        ("gspo", {"sync_every": 1, "importance": "truncate_sequence"}, -ROOT * (2 - 1 / 4) / 2),
        # Six bits of the better answer, four of the worse one.
        ("cispo", {}, ROOT * (6 - 4) * LOG2 / 5),
        # Three tokens of 1 and two of 0 have mean 3/5 and deviation sqrt(3/10); the sampler's
        # ratios are 2 for the first answer and 1/4 for the other.
        ("reinforce_pp", {}, 0.0),
        (
            "reinforce_pp",
            {"importance": "truncate_sequence"},
            -(2 * 3 * 0.4 - 2 / 4 * 0.6) / math.sqrt(0.3) / 5,
        ),
        # Whitened once more, the better one's half has 3/10 added: rewards of +-1/2.
        ("reinforce_pp", {"baseline": "group"}, 0.0),
        # A new critic says 0: the better answer's reward at three tokens, of two answers; and half
        # the error of 1 at three of five tokens.
        ("reinforce", {}, -3 / 2 + 3 / 2 / 5),
        ("reinforce", {"value_weight": 0.5, "critic": "head"}, -3 / 2 + 3 / 4 / 5),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_first_loss_of_what_differs_from_grpo(tmp_path, policy, tokenizer, method, keys, loss):
    answers = group(tokenizer, "?", ("ab", [3, 3, 1], 1.0), ("b", [1, 1], 0.0))
    options = on_policy(method, n=2, **{"importance": "none"} | keys)
    row = learn(tmp_path, policy, None, options, lambda number, model: [answers])[0]
    assert row["loss"] == pytest.approx(loss, rel=2e-4, abs=1e-6)


def test_the_first_loss_of_sppo(tmp_path, policy, reference, tokenizer):
    """Log-ratios of 1 and -2 bits; sigmoid(1) at a beta of one, less a half, halved by the answer
    itself: 0.115529 either way."""
    answers = group(tokenizer, "?", ("ab", [2, 3, 1], 1.0), ("ccc", [4, 4, 4, 1], 0.0))
    options = on_policy("sppo", n=2, beta=1.0)
    row = learn(tmp_path, policy, reference, options, lambda *_: [answers])[0]
    wanted = ((LOG2 - 0.115529) ** 2 + (-2 * LOG2 + 0.115529) ** 2) / 2
    assert row["loss"] == pytest.approx(wanted, rel=1e-4)
    assert row["win_rate_chosen"] == pytest.approx(0.615529, abs=1e-6)


def test_the_reference_pulls_grpo_and_shifts_rloo_rewards(tmp_path, policy, reference, tokenizer):
    """In bits log pi - log pi_ref is -1 for an a and 1 for the others: 1 for "ab", 2 for "b"."""

    def loss(name, values, **keys):
        answers = group(tokenizer, "?", ("ab", [2, 3, 1], values[0]), ("b", [3, 1], values[1]))
        options = on_policy(name, n=2, **keys)
        rows = learn(tmp_path / f"{name}{keys}", policy, reference, options, lambda *_: [answers])
        assert rows[0]["kl_reference"] == pytest.approx(1.5 * LOG2, rel=1e-4)
        return rows[0]["loss"]

    # e^u - 1 - u is 1 - log 2 for the a, and log 2 - 1/2 for each of the other four.
    k3 = (3 * LOG2 - 1) / 5
    gate = {"gates": {"kl": {"warn": 99}}}
    assert loss("grpo", (1.0, 1.0), beta=0.5, **gate) == pytest.approx(0.5 * k3, rel=1e-4)
    k2 = LOG2**2 / 2
    assert loss("grpo", (1.0, 1.0), beta=0.5, kl="k2", **gate) == pytest.approx(0.5 * k2, rel=1e-4)
    # The one reward less the other, each less the penalty; three tokens against two, two answers.
    assert loss("rloo", (1.0, 0.0), **gate) == pytest.approx(-0.5, rel=1e-4)
    gap = 1 - 0.5 * LOG2 - (0 - 0.5 * 2 * LOG2)
    assert loss("rloo", (1.0, 0.0), beta=0.5) == pytest.approx(-gap / 2, rel=1e-4)


def test_old_answers_are_weighted_by_how_much_likelier_they_have_become(
    policy, reference, tokenizer
):
    """Every token has become twice as likely since the rollout; the sampler was the old policy."""
    answers = group(tokenizer, "?", ("ab", [3, 4, 2], 1.0), ("b", [4, 2], 0.0))

    def loss(**keys):
        options = on_policy("grpo", n=2, sync_every=2, importance="truncate_token", **keys)
        model, frozen = (
            prepare(load_module(f, CPU), CPU, torch.float32) for f in (policy, reference)
        )
        rollout = measure(model, [answers], [[1.0, 0.0]], options, frozen, None)
        assert rollout.old is not None
        rollout.old = [old - LOG2 for old in rollout.old]
        add_advantages(rollout, options, options.beta)
        task = PolicyTask(rollout, options, options.beta)
        return float(task.loss(model, [0], task.total([0]), 0)[0].detach())

    # What gains is held at 5/4; what loses counts twice, or as much as `two_sided` lets it.
    gain, lose = -ROOT * 3 / 5, ROOT * 2 / 5
    clips = {"clip_low": 0.5, "clip_high": 0.25}
    assert loss(**clips) == pytest.approx(1.25 * gain + 2 * lose, rel=1e-3)
    assert loss(**clips, two_sided=1.5) == pytest.approx(1.25 * gain + 1.5 * lose, rel=1e-3)
    k3 = 2 * (3 * LOG2 - 1) / 5
    assert loss(**clips, beta=0.5) == pytest.approx(1.25 * gain + 2 * lose + 0.5 * k3, rel=1e-3)


def test_the_first_loss_of_ppo(tmp_path, policy, reference, tokenizer):
    """A new critic says 0 everywhere, and whitened advantages of one answer have mean 0: the loss
    is the value's, half its mean squared error from the returns."""
    answers = group(tokenizer, "?", ("ab", [2, 3, 1], 1.0))

    def row(**keys):
        options = on_policy("ppo", n=1, epochs=1, value_weight=0.5, **keys)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return learn(folder, policy, reference, options, lambda *_: [answers])[0]

    half = row(lam=0.5)
    assert half["loss"] == pytest.approx(0.5 * (1 + 1 / 4 + 1 / 16) / 6, rel=1e-4)
    half = row(gamma=0.5, lam=1.0)
    assert half["loss"] == pytest.approx(0.5 * (1 + 1 / 4 + 1 / 16) / 6, rel=1e-4)
    # The penalty is half a bit for the b and the end, and given back for the a.
    pulled = row(beta=0.5, lam=1.0)
    returns = (1 - 0.5 * LOG2, 1 - LOG2, 1 - 0.5 * LOG2)
    assert pulled["loss"] == pytest.approx(0.5 * sum(r * r for r in returns) / 6, rel=1e-4)
    assert pulled["kl_reference"] == pytest.approx(LOG2, rel=1e-4)


def test_online_dpo_takes_the_best_against_the_worst(tmp_path, policy, reference, tokenizer):
    answers = group(
        tokenizer, "?", ("b", [3, 1], 0.5), ("ccc", [4, 4, 4, 1], 0.0), ("ab", [2, 3, 1], 1.0)
    )
    for loss, beta, wanted in (
        ("dpo", 1.0, log(9 / 8)),
        ("ipo", 0.5, (3 * LOG2 - 1) ** 2),
        ("hinge", 0.2, 1 - 0.6 * LOG2),
    ):
        options = on_policy("online_dpo", n=3, loss=loss, beta=beta)
        row = learn(tmp_path / loss, policy, reference, options, lambda *_: [answers])[0]
        assert row["loss"] == pytest.approx(wanted, rel=1e-4)
        assert row["logprob_chosen"] == pytest.approx(-6 * LOG2, rel=1e-4)


def test_both_sides_of_online_dpo_are_at_the_temperature_of_sampling(tmp_path, policy, tokenizer):
    """The start is its own reference: no margin, whatever the temperature."""
    answers = group(tokenizer, "?", ("b", [3, 1], 0.0), ("ab", [2, 3, 1], 1.0))
    options = on_policy("online_dpo", n=2, beta=1.0, temperature=2.0)
    row = learn(tmp_path, policy, None, options, lambda *_: [answers])[0]
    assert row["loss"] == pytest.approx(LOG2, rel=1e-4)
    assert row["margin"] == pytest.approx(0.0, abs=1e-5)


def test_the_adaptive_coefficient_goes_on_where_it_was(tmp_path, policy, reference, tokenizer):
    """The KL is 1 bit and its target a tenth less: each rollout of one answer at a horizon of 2
    raises beta by a twentieth."""
    answers = group(tokenizer, "?", ("ab", [2, 3, 1], 1.0))
    keys = {"rollouts": 4, "checkpoint_every": 2, "beta": 0.5, "n": 1, "epochs": 1}
    options = on_policy("ppo", kl_target=LOG2 / 1.1, kl_horizon=2.0, **keys)

    def collect(number, model):
        return [answers]

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, policy, reference, options, collect, stop)
    rows = learn(tmp_path, policy, reference, options, collect)
    assert [row["beta"] for row in rows] == pytest.approx(
        [0.5, 0.525, 0.55125, 0.5788125], rel=1e-4
    )


# What a method does when it is told no more than its name. The papers and the documentation have
# these numbers too: whoever changes one changes what every experiment without the key computes.
SHARED = {
    "from_": "current",
    "micro_batch_tokens": "auto",
    "max_length": 1024,
    "overlong": "skip",
    "reasoning": "keep",
    "on_error": "fail",
    "precision": "auto",
    "trackers": [],
    "uses": None,
}
TRAINED = SHARED | {
    "id": "train",
    "learning_rate": 1e-6,
    "epochs": 1,
    "batch_size": 16,
    "warmup_ratio": 0.1,
    "schedule": "cosine",
    "min_lr_ratio": 0.0,
    "weight_decay": 0.0,
    "optimizer": "adamw",
    "adam_betas": (0.9, 0.999),
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "train_on_eos": True,
    "lora": None,
    "processes": "auto",
    "policy": True,
    "sharding": "none",
    "checkpoint_every": 50,
}
COMPARED = TRAINED | {"reference": "current", "beta": 0.1}
SAMPLED = TRAINED | {
    "prompts": None,
    "gates": Gates(),
    "rollouts": 50,
    "n": 8,
    "sync_every": 1,
    "lag": 0,
    "batch_size": 4,
    "temperature": 1.0,
    "max_new_tokens": 64,
    "stop": [],
    "checkpoint_every": 5,
    "importance": "mask_sequence",
    "importance_cap": 3.0,
    "importance_floor": 0.0,
}
FRESH = COMPARED | SAMPLED | {"missing_eos_penalty": 0.0}
GROUPED = FRESH | {
    "costs": [],
    "kl": "k3",
    "scale": "std",
    "overlong_buffer": 0,
    "mask_truncated": False,
    "resample": 0,
}
DISTILLED = {"id": "distill", "source_weights": {}, "replay": 1.0, "refresh": None}
REWARD = TRAINED | DISTILLED | {"learning_rate": 9e-6, "members": 1}
FITTED = SHARED | DISTILLED
GATED = FITTED | {
    "objectives": None,
    "debias": 0.03,
    "gate_layers": 3,
    "gate_width": 1024,
    "gate_temperature": 10.0,
    "gate_steps": 2000,
    "gate_batch": 1024,
}
DEFAULTS = {
    "sft": TRAINED | {"context": "drop"},
    "dpo": COMPARED
    | {
        "method": "dpo",
        "label_smoothing": 0.0,
        "nll_weight": 0.0,
        "positive_weight": 0.0,
        "length_normalise": False,
    },
    "robust": COMPARED | {"label_smoothing": 0.1},
    "ipo": COMPARED | {"length_normalise": False},
    "hinge": COMPARED | {"beta": 0.05},
    "apo_zero": COMPARED | {"learning_rate": 2e-7},
    "nca": COMPARED | {"beta": 0.01},
    "kto": COMPARED | {"desirable_weight": 1.0, "undesirable_weight": 1.0},
    "slic": TRAINED | {"margin": 1.0, "nll_weight": 0.0},
    "simpo": TRAINED | {"beta": 2.0, "gamma": 1.0},
    "orpo": TRAINED | {"weight": 0.1, "learning_rate": 8e-6},
    "grpo": GROUPED
    | {"beta": 0.04, "reduction": "token", "clip_low": 0.2, "clip_high": 0.2, "two_sided": None},
    "gspo": GROUPED | {"beta": 0.0, "sync_every": 4, "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": GROUPED | {"beta": 0.0, "clip_low": None, "clip_high": 4.0},
    "reinforce": FRESH
    | {"n": 1, "batch_size": 16, "beta": 0.05, "critic": "separate", "value_weight": 1.0},
    "reinforce_pp": FRESH
    | {
        "n": 1,
        "batch_size": 16,
        "beta": 0.01,
        "baseline": "none",
        "gamma": 1.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
    },
    "sppo": FRESH | {"n": 5, "beta": 0.001, "learning_rate": 5e-7, "importance": "none"},
    "quark": FRESH
    | {
        "n": 1,
        "batch_size": 128,
        "quantiles": 5,
        "beta": 0.05,
        "entropy_weight": 0.06,
        "learning_rate": 1e-5,
        "schedule": "linear",
        "importance": "none",
        "keep_tokens": False,
    },
    "rloo": FRESH | {"n": 4, "beta": 0.03, "costs": []},
    "ppo": FRESH
    | {
        "costs": [],
        "n": 1,
        "batch_size": 16,
        "epochs": 4,
        "beta": 0.05,
        "kl_target": None,
        "kl_horizon": 10000.0,
        "gamma": 1.0,
        "lam": 0.95,
        "clip": 0.2,
        "value_clip": 0.2,
        "value_weight": 0.1,
        "whiten_rewards": False,
        "critic": "head",
        "critic_warmup": 0,
        "ptx_weight": 0.0,
    },
    "online_dpo": FRESH | {"n": 2, "importance": "none", "loss": "dpo"},
    # arXiv 2306.13649 for beta; the rest as published recipes for full training have it.
    "on_policy_distillation": SAMPLED
    | {
        "n": 4,
        "learning_rate": 5e-5,
        "divergence": "reverse_kl",
        "beta": 0.5,
        "gamma": 0.0,
        "given": 0.0,
    },
    "bradley_terry": REWARD | {"method": "bradley_terry", "margin": "none", "centre": 0.01},
    "k_wise": REWARD | {"batch_size": 64, "centre": 0.01},
    "cost": REWARD | {"safe_at": 0.5},
    "conditional": REWARD
    | {
        "learning_rate": 1e-5,
        "weight_decay": 0.01,
        "gamma": 2.0,
        "penalty": 0.02,
    },
    "linear": FITTED | {"layers": "auto"},
    "ordinal": FITTED | {"levels": 5, "objective": None},
    "multi_objective": GATED,
    "quantile": GATED | {"quantiles": 19, "risk": 1.0},
}


@pytest.mark.parametrize("method", {**METHODS, **DISTILLATIONS})
def test_the_defaults_of_a_method(method):
    fields = {**METHODS, **DISTILLATIONS}[method].model_fields
    found = {
        name: field.get_default(call_default_factory=True)
        for name, field in fields.items()
        if not field.is_required()
    }
    assert found == DEFAULTS[method]


PAIRED = [name for name, spec in METHODS.items() if hasattr(spec, "LOSS")]
"""Also those whose loss is of a token: `LOSS` is a function of its keys."""


@pytest.mark.parametrize(
    ("method", "function"),
    [
        *((name, find_object(METHODS[name].LOSS)) for name in PAIRED),
        ("kto", preference.kto),
        ("grpo", policies.group_advantages),
        ("grpo", policies.clipped_policy_loss),
        ("grpo", policies.importance_weights),
        ("ppo", policies.gae),
        ("sppo", sppo_loss),
        ("conditional", rewards.focal_ranking),
    ],
)
def test_a_loss_by_itself_has_the_defaults_of_its_method(method, function):
    """What a notebook computes with the function alone is what an experiment would."""
    renamed = {"importance_cap": "cap", "importance_floor": "floor"}
    known = {renamed.get(name, name): value for name, value in DEFAULTS[method].items()}
    own = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and name in known
    }
    assert own == {name: known[name] for name in own}
