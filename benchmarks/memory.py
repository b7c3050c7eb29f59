"""The memory that a dry run estimates, next to what trainings and engines take.

    python benchmarks/memory.py [--model FOLDER] [--device cpu|cuda] [--quick] [--json]

Every row is a process of its own with a random Llama, or with --model a given model: DPO of all
weights and of adapters, with 8-bit moments where bitsandbytes is installed, layers recomputed, a
policy with its reference beside it, and an engine's weights. `state` is what stays between the
steps: the bytes of all weights, masters, gradients and moments. `work` is what a backward pass
keeps, by its saved tensors, and the estimate for the same tokens, which has what is recomputed of
one layer as well. `resident` and `peak` are above what was held before the model was loaded, once
the same was done with a tiny model: on a GPU of tensors, on a CPU with what the allocator keeps and
with the copies of layers on which fast paths are proved.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from train_memory import peak, reset_peak
from train_vs_trl import ROOT, make_data, make_model

MODELS = ("small", "135m")
VOCABULARY = 49152
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dpo", {}),
    ("dpo, bf16", {"dtype": "bf16"}),
    ("dpo, recomputed", {"gradient_checkpointing": True}),
    ("dpo, lora", {"lora": {}}),
    ("dpo, lora, bf16", {"lora": {}, "dtype": "bf16"}),
    ("dpo, 8-bit moments", {"optimizer": "adamw_8bit"}),
    ("grpo's reference", {"reference": True}),
    ("engine", {"engine": True}),
)
QUICK = ("dpo", "dpo, lora", "engine")


def measure_row(job: dict[str, Any]) -> dict[str, Any]:
    """One training of two steps, or one engine, in this process."""
    import torch

    from rlaif.config.models import ModelSpec
    from rlaif.engines.local.hf import load
    from rlaif.engines.model_size import measure_folder
    from rlaif.kernels.device import release_freed_memory
    from rlaif.train.loading import load_module
    from rlaif.train.model import prepare

    if "warm" in job:
        # What libraries load when they are first used is there before anything is counted.
        measure_row({key: job[key] for key in job if key != "warm"} | {"model": job["warm"]})
    torch.zeros(64, 64, device=job["device"]).matmul(torch.zeros(64, 64, device=job["device"]))
    folder, device = Path(job["model"]), torch.device(job["device"])
    size = measure_folder(folder)
    assert size is not None
    release_freed_memory()
    before = reset_peak(job["device"])
    if job.get("engine"):
        engine = load(
            ModelSpec(path=str(folder), dtype="float32", device=job["device"]), folder, ""
        )
        held = live_bytes(engine.model)
        estimate = {"state": size.parameters * 4}
        return {"state": held, "estimate": estimate, **resident(before, job["device"])}
    held_by: list[Any] = []
    if job.get("reference"):
        dtype = torch.float32
        held_by = [
            prepare(load_module(folder, device), device, dtype, trainable=flag)
            for flag in (True, False)
        ]
        held = sum(live_bytes(one.module) for one in held_by)
        held += sum(m.grad.nbytes for m in held_by[0].masters.values())
        estimate = {"state": size.parameters * (4 + 4 + 4)}
        return {"state": held, "estimate": estimate, **resident(before, job["device"])}
    return train_row(job, size, before)


def live_bytes(module: Any) -> int:
    """Of a module's parameters and buffers, each once."""
    tensors = {t.data_ptr(): t.nbytes for t in [*module.parameters(), *module.buffers()]}
    return sum(tensors.values())


def resident(before: int, device: str) -> dict[str, int]:
    """What the process holds above `before`, and the most that it held."""
    from rlaif.kernels.device import release_freed_memory

    most = peak(device) - before
    gc.collect()
    release_freed_memory()
    return {"resident": reset_peak(device) - before, "peak": most}


def train_row(job: dict[str, Any], size: Any, before: int) -> dict[str, Any]:
    """Two steps of DPO: what stays, and what a backward pass keeps of its tokens."""
    import torch

    from rlaif.pipeline.memory import token_memory, trained_part
    from rlaif.pipeline.steps.load import load_preferences
    from rlaif.train.loading import load_module
    from rlaif.train.loop import _plan_batches, make_optimizer, optimiser_step
    from rlaif.train.methods.pairs import DpoTrain
    from rlaif.train.model import prepare
    from rlaif.train.preference import PreferenceTask, compute_reference
    from rlaif.train.tokenise import encode, load_tokenizer

    keys = {k: job[k] for k in ("gradient_checkpointing", "lora", "optimizer") if k in job}
    options = DpoTrain.model_validate(
        {"batch_size": 1, "micro_batch_tokens": 512, "max_length": 512, **keys}
    )
    folder, device = Path(job["model"]), torch.device(job["device"])
    dtype = torch.bfloat16 if job.get("dtype") == "bf16" else torch.float32
    rows = load_preferences(Path(job["data"]))[:2]
    tokenizer = load_tokenizer(folder)
    encoded = encode(
        rows, tokenizer, {}, both=True, max_length=512, overlong="truncate_left", train_on_eos=True
    )
    model = prepare(
        load_module(folder, device), device, dtype, options.lora, options.gradient_checkpointing
    )
    work = Path(tempfile.mkdtemp())
    stored = compute_reference(model, encoded.examples, options, 0, work / "reference.jsonl")
    task = PreferenceTask(encoded.examples, stored, options)
    plan, optimizer = _plan_batches(task, model, options, 0), make_optimizer(model, options)
    kept, tokens = saved_bytes(model, task, plan[0][0])
    for number in (0, 1):
        optimiser_step(task, model, optimizer, plan[number], options, number, 2, work)
    # In fp32 the parameters are their own masters, and the weights of the module are counted once.
    known = {p.data_ptr(): p.nbytes for p in model.module.parameters()}
    known |= {m.data_ptr(): m.nbytes for m in model.masters.values()}
    state = sum(known.values()) + sum(m.grad.nbytes for m in model.masters.values())
    state += sum(
        v.nbytes
        for own in optimizer.state.values()
        for v in own.values()
        if isinstance(v, torch.Tensor) and v.numel() > 1
    )
    width = dtype.itemsize
    part = trained_part("", options, size, width, device.type)
    assert size.widths is not None
    each = token_memory(size.widths, width, options.gradient_checkpointing)
    return {
        "state": state,
        "work": kept,
        "estimate": {"state": part.state, "work": tokens * each},
        **resident(before, job["device"]),
    }


def saved_bytes(model: Any, task: Any, micro: list[int]) -> tuple[int, int]:
    """Bytes that a backward pass of one micro-batch keeps beside weights, and its tokens."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _, _ = task.loss(model, micro, task.total(micro), 0)
    del loss
    return sum(found.values()), sum(model.size(task.examples[i].branches) for i in micro)


def run_row(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """A row in a process of its own, printed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, __file__, "--work", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    row |= {"model": job["named"], "row": name}
    row["ratio"] = {k: v / row[k] for k, v in row["estimate"].items()}
    shown = "  ".join(
        f"{kind} {row['estimate'][kind] / 1e6:8.1f} of {row[kind] / 1e6:8.1f} MB "
        f"({row['ratio'][kind]:.3f})"
        for kind in row["estimate"]
    )
    print(
        f"{row['model']:6} {name:20} {shown}  resident {row['resident'] / 1e6:.1f}, "
        f"peak {row['peak'] / 1e6:.1f} MB ({sum(row['estimate'].values()) / row['peak']:.2f})",
        flush=True,
    )
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a folder, in place of random models")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="the small model, three rows")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.work:
        print(json.dumps(measure_row(json.loads(options.work))))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    make_data(folder / "pairs.jsonl", 2)
    models = {"given": options.model}
    if options.model is None:
        models = {name: folder / name for name in MODELS[: 1 if options.quick else 2]}
        for name, path in models.items():
            make_model(path, name, VOCABULARY)
    make_model(folder / "tiny", "tiny", 512)
    print("estimate of what was measured (its share):")
    rows = []
    for named, path in models.items():
        for row, keys in ROWS:
            missing = "optimizer" in keys and find_spec("bitsandbytes") is None
            # A CPU emulates bf16, which takes minutes for a larger model.
            slow = keys.get("dtype") == "bf16" and options.device == "cpu" and named == "135m"
            if missing or slow or (options.quick and row not in QUICK):
                continue
            job = {"named": named, "model": str(path), "warm": str(folder / "tiny"), **keys}
            job |= {"data": str(folder / "pairs.jsonl"), "device": options.device}
            rows.append(run_row(row, job))
    off = max(abs(row["ratio"]["state"] - 1) for row in rows)
    print(f"the estimated state is off by {off:.1%} at most")
    if options.json:
        print(json.dumps({"rows": rows, "state_off": off}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
