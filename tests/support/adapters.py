"""LoRA adapters for tests."""

from __future__ import annotations

from pathlib import Path


def adapter(model: Path, folder: Path, rank: int = 4) -> Path:
    """A folder with an adapter, of random matrices large enough to change answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    made = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    made.save_pretrained(folder / "adapter")
    return folder / "adapter"
