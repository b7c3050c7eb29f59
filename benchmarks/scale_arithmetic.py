"""The arithmetic of docs/scale.md: 100M judgements and a policy of 70B on 64 GPUs.

    python benchmarks/scale_arithmetic.py [--dry-run]

Nothing is trained or sampled. The model is a folder with a config and the header of its weights, of
which the estimator of `rlaif run --dry-run` counts the parameters; memory is what that estimator
says. `--dry-run` writes the folder and an experiment, and runs that command on it.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from rlaif.config.methods import AnyTrain
from rlaif.engines.model_size import ModelSize, measure_folder
from rlaif.pipeline.flops import FORWARD, pass_flops
from rlaif.pipeline.memory import BF16, FP32, GIB, MOMENTS, trained_part

ROOT = Path(__file__).resolve().parents[1]
LAYERS, HIDDEN, INNER, KEYS, WORDS = 80, 8192, 28672, 1024, 128256
"""A dense model of 70B: 64 heads of 128, of which 8 have keys and values."""
GPUS, NODE = 64, 8
MEMORY = 80
"""GiB of a GPU."""
SPEED = 4e14
"""FLOP that a GPU computes in a second: `--flops`."""
BETWEEN, WITHIN = 50e9, 450e9
"""Bytes a second into one GPU, from another node and from another GPU of its own."""
DISK = 2e9
"""Bytes a second of the disk that all nodes see."""
PRICE = 3.00
"""Made up: of one GPU for an hour."""
JUDGEMENTS, ANSWERS = 100_000_000, 2
"""One judgement of each answer, and so many answers to a prompt."""
PROMPT, ANSWER, QUESTION = 200, 300, 200
"""Tokens of a prompt, of an answer, and of what a judge is asked besides."""
PAIRS = 2 / 3
"""Pairs of a prompt, as in benchmarks/scale.py, whose script repeats one answer in three."""
MEASURED = {
    "run": {"bytes": 2, "seconds": 129},
    "dataset": {"bytes": 14, "seconds": 116},
    "report": {"bytes": 4, "seconds": 4},
}
"""What benchmarks/scale.py printed, from 100,000 to 1,000,000 prompts (benchmarks/RESULTS.md)."""
STORED = 700
"""Bytes of a record on disk, by the same."""


def write_model(folder: Path) -> None:
    """A config, and weights of which there is only the header."""
    shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN), "lm_head.weight": (WORDS, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)  # type: ignore[assignment]
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    for number in range(LAYERS):
        shapes |= {f"model.layers.{number}.{n}.weight": s for n, s in layer.items()}  # type: ignore[misc]
    rows = {n: {"dtype": "BF16", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    header = json.dumps(rows).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": INNER,
        "vocab_size": WORDS,
    }
    (folder / "config.json").write_text(json.dumps(config))


def measure_size() -> ModelSize:
    """The model as the estimator counts it."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        size = measure_folder(Path(folder))
    assert size is not None
    return size


TRAININGS: dict[str, dict[str, Any]] = {
    "one GPU": {},
    "8 GPUs": {"sharding": "full", "processes": 8},
    "8 GPUs, 8-bit moments": {"sharding": "full", "processes": 8, "optimizer": "adamw_8bit"},
    "8 GPUs, LoRA": {"sharding": "full", "processes": 8, "lora": {}},
    "64 GPUs": {"sharding": "full", "processes": 64},
}


def list_memory(size: ModelSize) -> Iterator[tuple[str, ...]]:
    """GiB of one GPU in DPO: what stays, what a backward pass needs, both, and what it is of."""
    yield "training", "stays", "work", "GiB", "bytes a parameter"
    for name, keys in TRAININGS.items():
        step = TypeAdapter(AnyTrain).validate_python(
            {"method": "dpo", "id": "train", "gradient_checkpointing": True, **keys}
        )
        part = trained_part("policy", step, size, BF16, "cuda")
        work = part.work or 0
        lora = step.lora is not None
        copy = BF16 if step.sharding == "none" else 0
        each = copy + FP32 + FP32 + MOMENTS[step.optimizer]
        total = f"{(part.state + work) / GIB:,.1f}"
        said = "2; of the adapters 16" if lora else f"{each:.4g}"
        yield name, f"{part.state / GIB:,.1f}", f"{work / GIB:,.1f}", total, said


def list_serving(size: ModelSize) -> Iterator[tuple[str, ...]]:
    """What an engine holds on the GPUs that one copy is divided over."""
    assert size.widths is not None
    token = size.widths.cached * BF16
    yield "GPUs of a copy", "weights, GiB each", "tokens of cache", "sequences at once"
    for share in (4, 8):
        weights = size.parameters * BF16 / share
        # vLLM takes 0.9 of a GPU by default.
        room = (0.9 * MEMORY * GIB - weights) * share
        tokens = int(room / token)
        yield str(share), f"{weights / GIB:.1f}", f"{tokens:,}", f"{tokens // (PROMPT + ANSWER):,}"


def list_network(size: ModelSize) -> Iterator[tuple[str, ...]]:
    """Bytes into one GPU for one micro-batch under full sharding, and seconds beside computing."""
    yield "GPUs", "gathered twice", "gradients", "seconds of network", "seconds of computing"
    tokens = 16384
    step = TypeAdapter(AnyTrain).validate_python(
        {"method": "dpo", "id": "train", "gradient_checkpointing": True}
    )
    computing = pass_flops(step) * size.parameters * tokens / SPEED
    for count, speed in ((NODE, WITHIN), (GPUS, BETWEEN)):
        others = (count - 1) / count
        gathered, reduced = 2 * BF16 * size.parameters * others, FP32 * size.parameters * others
        seconds = (gathered + reduced) / speed
        yield (
            str(count), f"{gathered / 1e9:.0f} GB", f"{reduced / 1e9:.0f} GB",
            f"{seconds:.1f}", f"{computing:.1f}",
        )  # fmt: skip


def list_work(size: ModelSize) -> Iterator[tuple[str, ...]]:
    """FLOP, hours on all GPUs, GPU-hours and cost of what the models do."""
    prompts = JUDGEMENTS / ANSWERS
    step = TypeAdapter(AnyTrain).validate_python(
        {"method": "dpo", "id": "train", "gradient_checkpointing": True}
    )
    learned = pass_flops(step) + FORWARD
    both = PROMPT + ANSWER
    parts = {
        "sample": FORWARD * both * JUDGEMENTS,
        "judge": FORWARD * (both + QUESTION) * JUDGEMENTS,
        "train (DPO, one epoch)": learned * 2 * both * prompts * PAIRS,
    }
    parts["all"] = sum(parts.values())
    yield "step", "FLOP", "hours", "GPU-hours", "at 3.00 a GPU-hour"
    for name, each in parts.items():
        flop = each * size.parameters
        hours = flop / SPEED / GPUS / 3600
        cost = f"{hours * GPUS * PRICE:,.0f}"
        yield name, f"{flop:.2e}", f"{hours:,.0f}", f"{hours * GPUS:,.0f}", cost


def list_files(size: ModelSize) -> Iterator[tuple[str, ...]]:
    """GB of what is written of the model, and the seconds that writing takes."""
    yield "file", "bytes a parameter", "GB", "seconds"
    parts = {
        "export, which vLLM loads": BF16,
        "fp32 masters": FP32,
        "checkpoint": FP32 + MOMENTS["adamw"],
        "checkpoint, 8-bit moments": FP32 + MOMENTS["adamw_8bit"],
    }
    for name, each in parts.items():
        held = each * size.parameters
        yield name, f"{each:.4g}", f"{held / 1e9:,.0f}", f"{held / DISK:,.0f}"


def list_records() -> Iterator[tuple[str, ...]]:
    """What the records of the pipeline itself take, by what benchmarks/scale.py measured."""
    records = JUDGEMENTS * (2 + PAIRS / ANSWERS)
    yield "command", "bytes a record", "GB for all", "seconds a million", "hours for all"
    for name, row in MEASURED.items():
        grown, seconds = row["bytes"], row["seconds"]
        yield (
            name, f"{grown:.0f}", f"{grown * records / 1e9:.1f}",
            f"{seconds:.0f}", f"{seconds * records / 1e6 / 3600:.1f}",
        )  # fmt: skip
    yield "records on disk", f"{STORED:.0f}", f"{STORED * records / 1e9:,.0f}", "", ""


def make_tables() -> dict[str, list[str]]:
    """Every table of docs/scale.md as lines of Markdown, by its name."""
    size = measure_size()
    tables = {
        "memory of a training": list_memory(size),
        "memory of an engine": list_serving(size),
        "network": list_network(size),
        "models": list_work(size),
        "files of a model": list_files(size),
        "records": list_records(),
    }
    return {name: _format_table(list(rows)) for name, rows in tables.items()}


def _format_table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def run_dry(base: Path) -> int:
    """`rlaif run --dry-run` of the model, sharded over all GPUs."""
    write_model(base / "seventy")
    data = {
        "name": "seventy",
        "models": {"policy": {"path": str(base / "seventy")}},
        "constitution": str(ROOT / "constitutions" / "helpful_harmless_honest.yaml"),
        "prompts": {"path": str(ROOT / "prompts/seeds/everyday.jsonl"), "holdout": 8},
        "steps": [
            {"sample": {"n": ANSWERS, "max_new_tokens": ANSWER}},
            {"judge": {"id": "self", "kind": "yes_no", "by": "policy"}},
            {"pair": {}},
            {
                "train": {
                    "method": "dpo", "sharding": "full", "processes": GPUS,
                    "gradient_checkpointing": True,
                }
            },
        ],
    }  # fmt: skip
    (base / "seventy.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    speed = ["--flops", f"{SPEED:g}", "--device-memory", str(MEMORY)]
    words = ["run", str(base / "seventy.yaml"), "--dry-run", *speed]
    return subprocess.run([sys.executable, "-m", "rlaif", *words], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="rlaif's own plan of such a run")
    if parser.parse_args().dry_run:
        with tempfile.TemporaryDirectory(prefix="seventy-") as base:
            return run_dry(Path(base))
    for name, lines in make_tables().items():
        print(f"{name}:\n")
        print("\n".join(lines), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
