"""What a DPO step needs beyond weights, gradients and optimiser state.

    python benchmarks/train_memory.py [--random-weights small|135m] [--device cpu|cuda] [--quick]
        [--json]

Two claims: it does not depend on the size of the vocabulary (the logits tensor is never made), and
at a fixed number of tokens computed at once it does not depend on the rows of a batch, while it is
linear in that number. Every figure is a process of its own with a random model, in its second
step: the peak of the resident memory (on a GPU, of allocated tensors) less what was held between
the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from train_vs_trl import ROOT, SIZES, make_data, make_model

VOCABULARIES = (49152, 262144)
BUDGETS = (512, 1024, 2048)
BATCHES = (4, 8, 16)


def reset_peak(device: str) -> int:
    """Start counting the peak anew; the bytes held now."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: str) -> int:
    """The most bytes held since `reset_peak`."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if device == "cuda" else status("VmHWM")


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}: this needs Linux")


def work(job: dict[str, Any]) -> None:
    """Two steps of DPO; prints the bytes that the second needed beyond what is held anyway."""
    import torch

    from rlaif.kernels.device import release_freed_memory
    from rlaif.pipeline.steps.load import load_preferences
    from rlaif.train.loading import load_module
    from rlaif.train.loop import _plan_batches, make_optimizer, optimiser_step
    from rlaif.train.methods.pairs import DpoTrain
    from rlaif.train.model import prepare
    from rlaif.train.preference import PreferenceTask, compute_reference
    from rlaif.train.tokenise import encode, load_tokenizer

    start, device = Path(job["model"]), torch.device(job["device"])
    options = DpoTrain.model_validate(
        {"batch_size": job["batch"], "micro_batch_tokens": job["budget"], "max_length": 512}
    )
    rows = load_preferences(Path(job["data"]))[: 2 * job["batch"]]
    encoded = encode(
        rows,
        load_tokenizer(start),
        {},
        both=True,
        max_length=512,
        overlong="truncate_left",
        train_on_eos=True,
    )
    model = prepare(load_module(start, device), device, torch.float32)
    assert model.packed, model.choice.reasons
    folder = Path(tempfile.mkdtemp())
    stored = compute_reference(model, encoded.examples, options, 0, folder / "reference.jsonl")
    task = PreferenceTask(encoded.examples, stored, options)
    plan, optimizer = _plan_batches(task, model, options, 0), make_optimizer(model, options)
    optimiser_step(task, model, optimizer, plan[0], options, 0, len(plan), folder)
    release_freed_memory()
    held = reset_peak(job["device"])
    optimiser_step(task, model, optimizer, plan[1], options, 1, len(plan), folder)
    print(json.dumps({"held_gb": held / 1e9, "extra_gb": (peak(job["device"]) - held) / 1e9}))


def measure(folder: Path, options: argparse.Namespace, **job: Any) -> dict[str, float]:
    """One row of the table."""
    model = folder / f"model-{job['vocabulary']}"
    if not model.exists():
        make_model(model, options.random_weights, job["vocabulary"])
    job |= {"model": str(model), "data": str(folder / "pairs.jsonl"), "device": options.device}
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, __file__, "--work", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    row = {k: job[k] for k in ("vocabulary", "budget", "batch")} | found
    print(
        f"vocabulary {row['vocabulary']:>6}  tokens at once {row['budget']:>4}  pairs in a batch "
        f"{row['batch']:>2}  held {row['held_gb']:6.3f} GB  beyond it {row['extra_gb']:6.3f} GB",
        flush=True,
    )
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--random-weights", choices=list(SIZES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="two vocabularies, two batches")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.work:
        work(json.loads(options.work))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="train-memory-"))
    make_data(folder / "pairs.jsonl", 2 * max(BATCHES))
    jobs = [{"vocabulary": v, "budget": 512, "batch": 4} for v in VOCABULARIES]
    jobs += [{"vocabulary": 49152, "budget": 512, "batch": b} for b in BATCHES[1:]]
    jobs += [{"vocabulary": 49152, "budget": b, "batch": 8} for b in BUDGETS[1:]]
    jobs = jobs[:3] if options.quick else jobs
    rows = [measure(folder, options, **job) for job in jobs]
    few, many = rows[0]["extra_gb"], rows[1]["extra_gb"]
    print(f"a vocabulary {VOCABULARIES[1] / VOCABULARIES[0]:.1f}x as large: {many / few:.2f}x")
    if options.json:
        print(json.dumps({"rows": rows, "vocabulary_ratio": many / few}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
