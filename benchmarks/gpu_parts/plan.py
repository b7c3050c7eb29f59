"""Which parts there are, and their results in a file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "gpu.jsonl"


@dataclass(frozen=True)
class Part:
    """One part: parts of a group share a process. `seconds` is its own limit."""

    name: str
    group: str
    seconds: int
    function: str
    title: str


PARTS = {
    "correct": [
        Part("graphs", "graphs", 120, "kernels:graphs", "one graph of FlexAttention"),
        Part("flex", "flex", 140, "kernels:flex", "FlexAttention, values and gradients"),
        Part("logprobs", "passes", 80, "kernels:token_logprobs", "log-probs and entropy"),
        Part("elementwise", "passes", 60, "kernels:elementwise", "norm, gate, rotary"),
        Part("model", "models", 130, "models:whole_model", "whole models, packed and fused"),
        Part("agree", "models", 60, "models:devices_agree", "CPU and GPU agree"),
        Part("generation", "runs", 60, "runs:generation", "generation, rescored"),
        Part("resume", "runs", 90, "runs:resumed", "killed and resumed"),
        Part("quickstart", "runs", 100, "runs:quickstart", "two rounds of the quickstart"),
    ],
    "speed": [
        Part("rates", "ours", 30, "speed:rates", "matmul and copy rate"),
        Part("dpo_1b", "ours", 120, "speed:dpo_1b", "DPO 1B, full"),
        Part("reward_1b", "ours", 60, "speed:reward_1b", "reward model 1B"),
        Part("grpo_1b", "ours", 80, "speed:grpo_1b", "GRPO 1B, 8 x 8 x 256"),
        Part("trl_dpo_1b", "trl", 70, "trl_side:dpo_1b", "DPO 1B by TRL"),
        Part("trl_reward_1b", "trl", 50, "trl_side:reward_1b", "reward model 1B by TRL"),
        Part("trl_grpo_1b", "trl", 80, "trl_side:grpo_1b", "GRPO 1B by TRL"),
        Part("labels_1b", "more", 60, "speed:labels_1b", "10,000 label questions at 1B"),
        Part("generate_135m", "more", 50, "speed:generate_135m", "hf generation at 135M"),
        Part("generate_1b", "more", 50, "speed:generate_1b", "hf generation at 1B"),
        Part("dpo_8b_lora", "more", 80, "speed:dpo_8b_lora", "DPO 8B, LoRA, checkpointing"),
        Part("dpo_135m", "more", 60, "speed:dpo_135m", "DPO 135M"),
        Part("dpo_8b_full", "more", 80, "speed:dpo_8b_full", "DPO 8B, full, checkpointing"),
    ],
}


def code_hash(device: str, tiny: bool) -> str:
    """A hash of the package, of this check, and of where and at what size it runs."""
    digest = hashlib.sha256(f"{device} {tiny}".encode())
    files = [*(ROOT / "rlaif").rglob("*.py"), *Path(__file__).parent.glob("*.py")]
    for path in sorted([*files, Path(__file__).parents[1] / "gpu.py"]):
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def scratch(out: Path) -> Path:
    """Where files go that nobody wants back: not among the results, of which few may come back."""
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"rlaif-gpu-{name}"


def empty_folder(out: Path, name: str) -> Path:
    """An empty folder of that name among the scratch files."""
    folder = scratch(out) / "parts" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def read_results(out: Path, code: str) -> dict[str, dict[str, Any]]:
    """The last result of every part that this code gave. Torn lines are passed over."""
    path = out / RESULTS
    found = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.get("code") == code:
            found[row["part"]] = row
    return found


def write_result(
    out: Path,
    code: str,
    part: str,
    ok: bool | None,
    seconds: float,
    figures: dict[str, Any],
    error: str | None = None,
) -> None:
    """Add one line, at once and whole; after a torn line it begins a new one."""
    row = {"part": part, "ok": ok, "seconds": round(seconds, 2), "figures": figures}
    line = json.dumps({**row, "error": error, "code": code}, default=str) + "\n"
    path = out / RESULTS
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (b"\n" if torn else b"") + line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
