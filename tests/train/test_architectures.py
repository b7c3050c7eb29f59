"""Other people's architectures from start to export: DPO, a reward model, and what plain
transformers reads from the folders. `benchmarks/architectures.py` tries all that there are."""

from __future__ import annotations

import pytest
import torch
import transformers

from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import RewardRequest
from rlaif.engines.local.reward import load as load_reward
from rlaif.train.loading import load_module
from rlaif.train.run import train
from tests.engines.test_proof import OTHERS, SMALL
from tests.support.architectures import CPU

pytestmark = pytest.mark.usefixtures("nothing_proved")
OPTIONS = {"batch_size": 2, "precision": "fp32", "learning_rate": 1e-2, "schedule": "constant"}


@pytest.fixture(params=OTHERS)
def start(request, tmp_path, tokenizer):
    kind, options, *_ = OTHERS[request.param]
    torch.manual_seed(0)
    sizes = {**SMALL, **options, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, kind)(**{**sizes, **ids})
    folder = tmp_path / request.param
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_dpo_moves_the_weights_and_transformers_loads_them(start, tmp_path, make_preferences):
    options = METHODS["dpo"].model_validate({"method": "dpo", **OPTIONS})
    out = tmp_path / "out"
    outcome = train(options, make_preferences(2), {}, start, None, out, tmp_path / "work", seed=0)
    assert outcome.kernels["packed"] == OTHERS[start.name][2]
    before = dict(load_module(start, CPU).named_parameters())
    masters = dict(load_module(out, CPU).named_parameters())
    assert any(not torch.equal(before[name], param) for name, param in masters.items())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    for name, param in loaded.named_parameters():
        assert torch.equal(param, masters[name].bfloat16().float()), name


def test_a_reward_model_means_the_same_to_transformers(start, tmp_path, make_preferences):
    options = DISTILLATIONS["bradley_terry"].model_validate({"method": "bradley_terry", **OPTIONS})
    out = tmp_path / "out"

    def distil():
        return train(options, make_preferences(4), {}, start, None, out, tmp_path / "work", seed=0)

    if start.name in ("mamba", "llama4"):
        with pytest.raises(EngineError, match="transformers has no sequence classifier of"):
            distil()
        return
    distil()
    engine = load_reward(ModelSpec(path=str(out), dtype="float32", device="cpu"), out, "reward")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, dtype=torch.float32
    )
    writer = transformers.AutoTokenizer.from_pretrained(out)
    asked = {"role": "user", "content": "Why?"}
    said = [{"role": "assistant", "content": text} for text in ("yes 1", "nonono", "n")]
    requests = [RewardRequest(str(i), [asked], answer) for i, answer in enumerate(said)]
    found = {r.request_id: r.reward for batch in engine.reward(requests) for r in batch}
    wanted = []
    for answer in said:
        row = writer.apply_chat_template([asked, answer], return_tensors="pt", return_dict=True)
        with torch.no_grad():
            wanted.append(float(model.eval()(**row).logits[0, 0]))
    assert len(set(wanted)) == 3
    assert [found[str(i)] for i in range(3)] == pytest.approx(wanted, abs=1e-5)
