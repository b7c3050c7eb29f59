"""The weights of the moment, as a sampler in another process gets them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from rlaif.config.training import LoraOptions
from rlaif.engines.checkpoints import MASTERS, FolderWeights
from rlaif.kernels.heads import GatedHead, HeadConfig
from rlaif.train.checkpoint import export, export_head
from rlaif.train.loading import load_module
from rlaif.train.model import prepare
from rlaif.train.policy_weights import PolicyWeights

CPU = torch.device("cpu")
LORAS = [None, LoraOptions(r=4), LoraOptions(r=4, dora=True)]


@pytest.mark.parametrize("lora", LORAS, ids=["full", "lora", "dora"])
def test_weights_of_the_moment_are_those_of_the_export(tmp_path, make_model, lora):
    start = make_model(0)
    model = prepare(load_module(start, CPU), CPU, torch.float32, lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for master in model.masters.values():
            master.add_(0.1 * torch.randn(master.shape, generator=generator))
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    weights = PolicyWeights(model, tmp_path / "now")
    assert weights.write() == tmp_path / "now"
    sent, described = dict(weights.read_tensors()), weights.list_tensors()
    for name, param in model.module.named_parameters():
        assert torch.equal(param, before[name]), name
    export(model, start, tmp_path / "out", lora)
    now, masters = (
        load_file(tmp_path / "now/model.safetensors"),
        load_file(tmp_path / "out" / MASTERS),
    )
    assert now.keys() == masters.keys()
    # What is sent without a file is the same, and is described as it is.
    assert sent.keys() == now.keys()
    assert all(torch.equal(sent[name], now[name]) for name in now)
    listed = [(name, t.dtype, tuple(t.shape)) for name, t in sent.items()]
    assert described == listed
    on_disk = FolderWeights(tmp_path / "now")
    assert sorted(on_disk.list_tensors()) == sorted(listed)
    assert all(torch.equal(t, now[name]) for name, t in on_disk.read_tensors())
    untrained = dict(load_module(start, CPU).named_parameters())
    changed = [name for name in masters if not torch.equal(masters[name], untrained[name])]
    assert len(changed) >= 4
    for name, weight in masters.items():
        assert_close(now[name], weight, rtol=1e-6, atol=1e-6, msg=name)


def test_bf16_weights_of_the_moment_are_in_bf16(tmp_path, make_model):
    model = prepare(load_module(make_model(0), CPU), CPU, torch.bfloat16)
    PolicyWeights(model, tmp_path).write()
    params = dict(model.module.named_parameters())
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, params[name])


def test_transformers_4_finds_what_it_looks_for(tmp_path, make_model):
    """It knows no `rope_parameters`: without `rope_theta` it would compute with another one."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    start = tmp_path / "start"
    shutil.copytree(make_model(0), start)
    scaled = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    config = json.loads((start / "config.json").read_text()) | {"rope_parameters": scaled}
    (start / "config.json").write_text(json.dumps(config))
    model = prepare(load_module(start, CPU), CPU, torch.float32)
    export(model, start, tmp_path / "out", None)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (5e5, "bfloat16")
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    tokenizer = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer["additional_special_tokens"] == ["<|im_start|>"]
    # What is read here is the same as ever.
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == scaled
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (start, tmp_path / "out"))
    text = "<|im_start|>user\nWhy?<|im_end|>"
    assert old(text) == new(text) and old.all_special_tokens == new.all_special_tokens
    assert type(LlamaForCausalLM.from_pretrained(tmp_path / "out")) is LlamaForCausalLM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_never_trained_is_exported_as_it_was(tmp_path, make_model, dtype):
    module = load_module(make_model(0), CPU)
    name = "model.norm.weight"
    module.get_parameter(name).requires_grad_(False)
    model = prepare(module, CPU, dtype)
    assert name not in model.masters
    export(model, make_model(0), tmp_path / "out", None)
    again = load_module(tmp_path / "out", CPU).get_parameter(name)
    assert torch.equal(again, load_module(make_model(0), CPU).get_parameter(name))


def test_the_outputs_of_a_head_are_named_in_the_order_of_its_weights(tmp_path, make_model):
    config = HeadConfig("gated", 32, ("kind", "true"), quantiles=3)
    head = GatedHead(config)
    torch.nn.init.normal_(head.weight)
    export_head(make_model(0), head, tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())
    names = ["kind 1", "kind 2", "kind 3", "true 1", "true 2", "true 3"]
    assert said["id2label"] == {str(i): name for i, name in enumerate(names)}
    assert said["label2id"] == {name: i for i, name in enumerate(names)}
    # The head has the quantiles of one objective side by side.
    quantiles = torch.eye(32)[:1] @ head.weight.T
    assert torch.equal(quantiles.view(2, 3)[1], head.weight[3:, 0])
