"""Parts 7 to 9 of `correct`: generation, resuming, the quickstart."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gpu_parts.plan import ROOT, empty_folder
from gpu_parts.setting import (
    TOKENIZER_FILES,
    Checks,
    Setting,
    llama,
    load_tokenizer,
    make_module,
    tokenizer_folder,
)
from rlaif.config.models import ModelSpec
from rlaif.core.chat import KEEP
from rlaif.core.records import Preference
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.local.encoding import Encoding
from rlaif.engines.local.hf import HfEngine
from rlaif.engines.local.weights import Weights
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.run import train

WIDE, NARROW = torch.float32, torch.bfloat16


# 7. Generation --------------------------------------------------------------------------------


def generation(setting: Setting, checks: Checks) -> None:
    """What `hf` samples, greedy and not, rescored by a plain forward pass."""
    tokenizer = load_tokenizer()
    size = {"hidden_size": setting.pick(512, 64), "initializer_range": 0.1}
    config = llama("tiny", len(tokenizer), **size, num_hidden_layers=setting.pick(4, 2))
    plain = make_module(copy.deepcopy(config), setting.device, WIDE, seed=8).eval()
    module = make_module(copy.deepcopy(config), setting.device, WIDE, seed=8).eval()
    spec = ModelSpec(path="random", device=setting.device.type, dtype="float32")
    engine = HfEngine(Weights(module, "w"), Encoding(tokenizer, KEEP, 2048, "policy"), spec)
    checks.add("samples share their prompt", engine.weights.branches)
    questions = ["Why is the sky blue?", "Name three rivers.", "How do I keep bread fresh?"]
    new = setting.pick(48, 8)
    made: dict[float, list[tuple[list[int], Any]]] = {}
    for temperature in (0.0, 1.0):
        requests = [
            GenerateRequest(
                f"{q}/{i}",
                [{"role": "user", "content": text}],
                Sampling(new, temperature, seed=10 * q + i),
            )
            for q, text in enumerate(questions)
            for i in range(3)
        ]
        prompts = {r.request_id: engine.render(r.messages)[1] for r in requests}
        results = [r for batch in engine.generate(requests) for r in batch]
        made[temperature] = [(prompts[r.request_id], r) for r in results]
    for temperature, answers in made.items():
        name = "greedy" if temperature == 0.0 else "sampled"
        with checks.attempt(name):
            gap, regret = _rescored(plain, answers)
            ok = gap <= 1e-3 and (temperature > 0.0 or regret <= 1e-3)
            tokens = sum(len(r.token_ids) for _, r in answers)
            checks.add(
                name,
                ok and tokens > 0,
                gap=gap,
                tokens=tokens,
                **({"regret": regret} if temperature == 0.0 else {}),
            )


@torch.no_grad()
def _rescored(plain: Any, answers: Sequence[tuple[list[int], Any]]) -> tuple[float, float]:
    """The largest difference of a token's log-prob, and how much likelier another token was."""
    gap = regret = 0.0
    for prompt, result in answers:
        ids = torch.tensor([[*prompt, *result.token_ids]], device=plain.device)
        logs = plain(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        logs = logs[len(prompt) - 1 : -1]
        picked = logs.gather(1, ids[0, len(prompt) :, None])[:, 0]
        said = torch.tensor(result.logprobs, device=plain.device)
        gap = max(gap, float((picked - said).abs().max()))
        regret = max(regret, float((logs.max(-1).values - picked).max()))
    return gap, regret


# 8. Killed and resumed ------------------------------------------------------------------------


def resumed(setting: Setting, checks: Checks) -> None:
    """A DPO run that was killed with SIGKILL and resumed ends where an uninterrupted one does."""
    from safetensors.torch import load_file

    folder = empty_folder(setting.out, "resumed")
    start = save_model(setting, folder / "start")
    request = {"start": str(start), "root": str(folder / "killed"), "device": setting.device.type}
    environment = os.environ | {"PYTHONPATH": _path()}
    done = subprocess.run(
        [sys.executable, "-m", "gpu_parts.runs", json.dumps(request)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    rows = (folder / "killed" / "work" / "metrics.jsonl").read_text().count("\n")
    killed = done.returncode == -signal.SIGKILL and rows == 3
    error = {} if killed else {"error": done.stderr.strip()[-300:]}
    checks.add("killed after three of six steps", killed, **error)
    train_pairs(start, folder / "killed", setting.device)
    train_pairs(start, folder / "whole", setting.device)
    steps = (folder / "killed" / "work" / "metrics.jsonl").read_text().count("\n")
    weights = [
        load_file(folder / name / "model" / "masters" / "model.safetensors")
        for name in ("killed", "whole")
    ]
    before = load_file(start / "model.safetensors")
    gap = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    moved = max(
        float((weights[1][key] - value.float()).abs().max()) for key, value in before.items()
    )
    ok = gap <= 1e-4 and moved > 1e-3 and steps == 6
    checks.add("resumed as uninterrupted", ok, gap=gap, moved=moved, steps=steps)
    shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    own = f"{ROOT}:{ROOT / 'benchmarks'}"
    return f"{own}:{os.environ['PYTHONPATH']}" if os.environ.get("PYTHONPATH") else own


def save_model(setting: Setting, folder: Path, **options: Any) -> Path:
    """A checkpoint of random weights with the embedded model's tokenizer."""
    tokenizer = load_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    # Heads of 64 on a GPU: kernels want more than the tiny model's 16.
    size = {"hidden_size": setting.pick(256, 64), "initializer_range": 0.1}
    config = llama("tiny", len(tokenizer), **{**size, **ids, **options})
    make_module(config, setting.device, NARROW, seed=9).cpu().save_pretrained(folder)
    source = tokenizer_folder()
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)
    return folder


def train_pairs(start: Path, root: Path, device: torch.device, kill_after: int = 0) -> None:
    """Six DPO steps in fp32 with a checkpoint after each; killed after so many, where that is not
    0."""

    def told(progress: Any) -> None:
        if kill_after and progress.step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    options = DpoTrain(
        batch_size=4, learning_rate=1e-3, precision="fp32", checkpoint_every=1, max_length=256
    )
    root.mkdir(parents=True, exist_ok=True)
    train(options, pairs(24), {}, start, None, root / "model", root / "work", 0, device.type, told)


def pairs(count: int) -> list[Preference]:
    """Pairs of short texts."""
    words = [
        "river",
        "stone",
        "cloud",
        "bread",
        "music",
        "paper",
        "window",
        "garden",
        "winter",
        "engine",
    ]

    def text(i: int, length: int) -> str:
        return " ".join(words[(i * 7 + k * k) % len(words)] for k in range(length))

    return [
        Preference(
            preference_id=f"r{i}",
            prompt_id=f"p{i}",
            round=1,
            prompt=[{"role": "user", "content": text(i, 4 + i % 5)}],
            chosen=[{"role": "assistant", "content": text(i + 3, 3 + i % 7)}],
            rejected=[{"role": "assistant", "content": text(i + 5, 2 + i % 6)}],
            score_chosen=1.0,
            score_rejected=0.0,
            margin=1.0,
            prob=1.0,
            weight=1.0,
            reason="",
            source="check",
            judgement_ids=[],
            chosen_id=f"c{i}",
            rejected_id=f"d{i}",
        )
        for i in range(count)
    ]


# 9. The quickstart ----------------------------------------------------------------------------


def quickstart(setting: Setting, checks: Checks) -> None:
    """Two rounds of the quickstart from end to end, on random weights, without its own judge."""
    from rlaif import load_run, run_experiment

    folder = empty_folder(setting.out, "quickstart")
    start = save_model(setting, folder / "start", num_hidden_layers=setting.pick(4, 2))
    config = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text())
    model = config["models"]["policy"]
    model |= {"path": str(start), "device": setting.device.type}
    config["prompts"] = {"path": str(ROOT / "prompts/seeds/everyday.jsonl")}
    config["prompts"]["holdout"] = setting.pick(16, 4)
    config["constitution"] = str(ROOT / config["constitution"])
    steps = {next(iter(step)): step for step in config["steps"]}
    del steps["judge"]
    rules = next(step for step in config["steps"] if step.get("judge", {}).get("kind") == "rules")
    steps["sample"]["sample"] |= setting.pick(
        {"prompts": 16, "max_new_tokens": 32}, {"prompts": 4, "max_new_tokens": 8}
    )
    steps["pair"]["pair"] |= {"weights": {"checks": 1.0}, "min_margin": 0.0}
    order = ("sample", "pair", "train", "evaluate")
    config["steps"] = [steps["sample"], rules, *(steps[name] for name in order[1:])]
    path = folder / "quickstart.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    result = run_experiment(path, folder / "run")
    run = load_run(result.out)
    rounds = sorted(set(run.rounds["round"]))
    trained = [row for row in run.status()["steps"] if row.get("kind") == "train"]
    checks.add("two rounds", rounds == [0, 1, 2], steps=result.ran, rounds=str(rounds))
    preferences = len(run.preferences)
    checks.add("pairs to learn from", preferences > 0, pairs=preferences, trained=len(trained))
    again = run_experiment(path, folder / "run")
    checks.add("nothing left to run", again.ran == 0, reused=again.reused)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    train_pairs(
        Path(asked["start"]), Path(asked["root"]), torch.device(asked["device"]), kill_after=3
    )
