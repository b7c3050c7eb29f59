"""The devices and whether a model loads, as lines of JSON: `python -m rlaif.analysis.probe MODEL`.

A process of its own for `rlaif doctor`, since all of this imports torch.
"""

from __future__ import annotations

import json
import sys

import torch

from rlaif.engines.model_folders import locate
from rlaif.kernels.device import pick_device, pick_dtype


def probe_device() -> None:
    """Print what `auto` gives here, and the GPUs."""
    device = pick_device("auto")
    gpus = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        gpus.append(f"{about.name} {about.total_memory / 2**30:.0f} GiB")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    row = {"device": device, "dtype": dtype, "torch": torch.__version__, "gpus": gpus}
    print(json.dumps(row | {"threads": torch.get_num_threads()}), flush=True)


def probe_model(name: str) -> None:
    """Load a model that is on disk, run one token through it, and print its size."""
    folder = locate(name)
    if folder is None:
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)("a", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        model(ids)
    print(json.dumps({"model": sum(part.numel() for part in model.parameters())}), flush=True)


if __name__ == "__main__":
    probe_device()
    probe_model(sys.argv[1])
