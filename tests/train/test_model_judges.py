"""Judges that ask small real models: DPO's implicit reward, reward models and ensembles of them,
also where the models have other tokenizers than the one that wrote."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import pvariance
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError
from rlaif.core.records import Completion, Judgement, content_hash, make_prompt
from rlaif.engines.base import Model
from rlaif.engines.build import load_engine
from rlaif.judges.base import roles_of
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.kernels.heads import HeadConfig, LinearHead
from rlaif.pipeline.steps.asking import Kept, verdicts
from rlaif.train.checkpoint import export_head
from rlaif.train.tokenise import encode, load_tokenizer
from tests.support.memory import Memory

PROMPT = make_prompt([{"role": "user", "content": "Say yes lazily"}])
TEXTS = ["yes yes", "no, lazy zebra", "maybe"]


def completions(texts: list[str]) -> list[Completion]:
    return [
        Completion(
            f"k{i}", PROMPT.prompt_id, i, [{"role": "assistant", "content": text}], "m", "w", {},
            "stop", digest=content_hash(text),
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


class Loaded:
    """Engines as a step has them."""

    def __init__(self) -> None:
        self.engines: dict[str, Any] = {}

    def get(self, model: Model) -> Any:
        if model.key not in self.engines:
            self.engines[model.key] = load_engine(model.spec, Path(model.spec.path), model.label)
        return self.engines[model.key]


def judged(spec: dict[str, Any], folders: Mapping[str, Path]) -> dict[str, Judgement]:
    """The judgements of `TEXTS` by text; `folders` are the models by role."""
    judge = build_judge(TypeAdapter(JudgeStep).validate_python(spec), None)
    asked = {
        role: Model(role, role, ModelSpec(path=str(folders[role]), dtype="float32"))
        for role in roles_of(judge)
    }
    answers = completions(TEXTS)
    found = verdicts(judge, asked, Loaded(), [(PROMPT, answers)], 0, Kept(Memory()))  # type: ignore[arg-type]
    return {TEXTS[int(j.subject.removeprefix("k"))]: j for j in found}


def logprob(folder: Path, text: str) -> tuple[float, int]:
    """The summed log-prob of an answer by transformers alone, and its tokens by the model's own
    tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = tokenizer.apply_chat_template(
        PROMPT.messages, add_generation_prompt=True, tokenize=False
    )
    start = tokenizer(given, add_special_tokens=False)["input_ids"]
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([start + own])).logits[0]
    logprobs = logits.log_softmax(-1)[len(start) - 1 : -1]
    return float(logprobs[torch.arange(len(own)), torch.tensor(own)].sum()), len(own)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_implicit_reward_is_that_of_transformers_with_either_tokenizer(
    make_model, other_vocabulary, per_token
):
    folders = {"by": make_model(0), "reference": other_vocabulary}
    spec = {"kind": "implicit_reward", "beta": 0.3, "per_token": per_token}
    found = judged(spec, folders)
    assert len(found) == 3
    for text, judgement in found.items():
        parts = [logprob(folder, text) for folder in folders.values()]
        by, reference = (total / (count if per_token else 1) for total, count in parts)
        assert judgement.status == "ok"
        kept = judgement.distribution or {}
        assert kept["reward"] == pytest.approx(0.3 * (by - reference), abs=1e-4)
        assert kept["logprob_reference"] == pytest.approx(parts[1][0], abs=1e-3)
        assert judgement.score == pytest.approx(1 / (1 + math.exp(-kept["reward"])))


def linear(start: Path, out: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    head = LinearHead(HeadConfig("linear", 32))
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 32))
    export_head(start, head, out)
    return out


def test_members_with_other_tokenizers_each_read_the_text_in_their_own(
    make_model, other_vocabulary, tmp_path
):
    folders = {
        "own": linear(make_model(1), tmp_path / "own", 1),
        "mixed": linear(other_vocabulary, tmp_path / "mixed", 1),
        "other": linear(make_model(0), tmp_path / "other", 2),
    }
    alone = {n: judged({"kind": "reward_model", "by": n}, {"by": f}) for n, f in folders.items()}
    for how in ("mean", "worst", "uncertainty"):
        spec = {"kind": "reward_ensemble", "members": list(folders), "combine": how, "penalty": 9}
        for text, judgement in judged(spec, folders).items():
            kept = judgement.distribution or {}
            rewards = [(alone[n][text].distribution or {})["reward"] for n in folders]
            assert [kept[f"member/{n}"] for n in folders] == pytest.approx(rewards, abs=1e-5)
            wanted = min(rewards) if how == "worst" else sum(rewards) / 3
            wanted -= 9 * pvariance(rewards) if how == "uncertainty" else 0
            assert kept["reward"] == pytest.approx(wanted, abs=1e-5)
    # The two differ in which token y and z are, and in nothing else.
    first, second = alone["own"], alone["mixed"]
    differs = [(first[t].distribution or {}) != (second[t].distribution or {}) for t in TEXTS]
    assert differs == [True, True, True]


def test_an_ensemble_of_adapters_is_all_of_its_members(make_model, make_preferences, tmp_path):
    from rlaif.train.methods.reward_models import BradleyTerryDistill
    from rlaif.train.run import train

    keys = {"learning_rate": 1e-2, "batch_size": 4, "precision": "fp32", "lora": {"r": 2}}
    step = BradleyTerryDistill.model_validate({**keys, "members": 2})
    out = tmp_path / "rm"
    train(step, make_preferences(4), {}, make_model(0), None, out, tmp_path / "w", 0, "cpu")
    one = linear(make_model(1), tmp_path / "one", 1)
    folders = {"rm": out, "one": one}
    plain = judged({"kind": "reward_model", "by": "rm"}, {"by": out})
    worst = judged({"kind": "reward_ensemble", "members": ["rm"], "combine": "worst"}, folders)
    three = judged({"kind": "reward_ensemble", "members": ["rm", "one"]}, folders)
    for text in TEXTS:
        parts = plain[text].distribution or {}
        rewards = [parts["member/0"], parts["member/1"]]
        assert (worst[text].distribution or {})["reward"] == min(rewards)
        assert (worst[text].distribution or {})["spread"] == pytest.approx(parts["spread"])
        kept = three[text].distribution or {}
        assert [kept["member/rm/0"], kept["member/rm/1"]] == rewards and "member/one" in kept
    with pytest.raises(RlaifError, match="is no ensemble of adapters"):
        judged({"kind": "reward_ensemble", "members": ["one"]}, folders)


def test_a_reward_model_says_how_far_an_answer_is_from_its_training(
    make_model, make_preferences, tmp_path
):
    from rlaif.train.methods.reward_models import BradleyTerryDistill
    from rlaif.train.run import train

    step = BradleyTerryDistill.model_validate({"batch_size": 8, "precision": "fp32"})
    preferences = make_preferences(40)
    train(step, preferences, {}, make_model(0), None, tmp_path / "rm", tmp_path / "w", 0, "cpu")
    judge = {"kind": "reward_model", "by": "rm"}
    away = {
        text: (j.distribution or {})["distance"]
        for text, j in judged(judge, {"by": tmp_path / "rm"}).items()
    }
    assert away["yes yes"] < 1.5 and away["no, lazy zebra"] > 1.2 * away["yes yes"]
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path / "rm", bare, ignore=shutil.ignore_patterns("reward_region*"))
    assert all(
        "distance" not in (j.distribution or {}) for j in judged(judge, {"by": bare}).values()
    )


def test_tokens_that_another_tokenizer_sampled_are_not_taken_for_our_own(
    make_model, other_vocabulary, make_preferences
):
    pairs = make_preferences(2)
    sampled = load_tokenizer(other_vocabulary)
    text = pairs[0].chosen[0]["content"]
    ids = {pairs[0].chosen_id: sampled(text, add_special_tokens=False)["input_ids"]}
    keys: dict[str, Any] = {"both": True, "max_length": 99, "overlong": "refuse"}
    own = load_tokenizer(make_model(1))
    plain = encode(pairs, own, {}, **keys, train_on_eos=True, always_end=True)
    mixed = encode(pairs, own, ids, **keys, train_on_eos=True, always_end=True)
    assert mixed.counts["retokenised"] == 1 and plain.counts["retokenised"] == 0
    assert [e.branches for e in mixed.examples] == [e.branches for e in plain.examples]
