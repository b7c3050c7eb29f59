"""What all parts share: where they run, what they found, models made on the device, errors."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / ".gpu" / "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
BUILTIN = "builtin/smollm2-135m-instruct"
NEEDS_GPU = "skipped: needs a GPU"

SIZES = {
    # hidden, feed-forward, layers, heads, key heads
    "tiny": (64, 128, 2, 4, 2),
    "135m": (576, 1536, 30, 9, 3),
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14336, 32, 32, 8),
}


@dataclass(frozen=True)
class Setting:
    """Where the parts run. `tiny` shrinks every size until a CPU is fast enough."""

    device: torch.device
    tiny: bool
    out: Path

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def pick(self, full: Any, tiny: Any) -> Any:
        """The value for this size."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def peak_gb(self) -> float | None:
        """The most memory that tensors have held since `free`, in GB; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None


@dataclass
class Checks:
    """What a part found, check by check; one that fails does not end the part."""

    setting: Setting
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, ok: bool, **figures: Any) -> None:
        """A claim that holds for the device the part ran on."""
        self.rows[name] = {"ok": bool(ok), **figures}

    def gpu(self, name: str, ok: bool, **figures: Any) -> None:
        """A claim about a GPU's own code: on a CPU it can fail, and never pass."""
        if self.setting.cuda or not ok:
            self.add(name, ok, **figures)
        else:
            self.skip(name, **figures)

    def skip(self, name: str, **figures: Any) -> None:
        """A claim that cannot be shown without a GPU."""
        self.rows[name] = {"ok": None, "error": NEEDS_GPU, **figures}

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """An exception inside is this check's failure alone."""
        try:
            yield
        except Exception as error:
            self.add(name, False, error=describe(error))

    @property
    def ok(self) -> bool | None:
        """False when a check failed, None when nothing could be shown here."""
        found = [row["ok"] for row in self.rows.values()]
        if False in found or not found:
            return False
        return True if True in found else None


def describe(error: BaseException) -> str:
    """The exception in one line, with the place in this repository that it came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if str(ROOT) in f.filename and "site-packages" not in f.filename]
    place = f" [{Path(own[-1].filename).name}:{own[-1].lineno}]" if own else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}{place}"


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, L2 over all elements."""
    gap = (found.detach().float() - wanted.detach().float()).norm()
    return float(gap / wanted.detach().float().norm().clamp(min=1e-12))


def worst(
    ours: Sequence[Tensor], plain: Sequence[Tensor] | None, exact: Sequence[Tensor]
) -> tuple[bool, dict[str, float]]:
    """Whether ours is as near to fp32 as the plain computation is, and the largest errors.

    In bf16 (`plain` is given) err(ours) <= 2 err(plain) + 1e-5, in fp32 err(ours) <= 1e-5; each
    tensor for itself, as relative L2.
    """
    errors = [relative(a, b) for a, b in zip(ours, exact, strict=True)]
    finite = all(bool(torch.isfinite(t).all()) for t in ours)
    if plain is None:
        return finite and max(errors) <= 1e-5, {"worst": max(errors)}
    theirs = [relative(a, b) for a, b in zip(plain, exact, strict=True)]
    pairs = list(zip(errors, theirs, strict=True))
    ratio = max(a / (2 * b + 1e-5) for a, b in pairs)
    figures = {"worst": max(errors), "plain": max(theirs), "of_allowed": ratio}
    return finite and ratio <= 1.0, figures


def llama(size: str, vocabulary: int, **options: Any) -> Any:
    """A Llama's configuration of one of SIZES, with tied embeddings."""
    from transformers import LlamaConfig

    width, inner, layers, heads, groups = SIZES[size]
    values = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return LlamaConfig(**{**values, **options})


def make_module(
    config: Any, device: torch.device, dtype: torch.dtype, seed: int = 0, reward: bool = False
) -> Any:
    """A module of random weights, made on the device; the same seed gives the same weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from rlaif.engines.local.forward import plain_attention

    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    if reward:
        config.num_labels = 1
    torch.manual_seed(seed)
    attention = plain_attention(config)
    with torch.device(device):
        module = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    return module.to(device)


def refuse_slow_paths(model: Any) -> None:
    """Raise AssertionError where the model pads its rows or FlexAttention was given up: neither may
    pass for the packed path."""
    from rlaif.kernels.attention import flex_failure

    if not model.packed:
        raise AssertionError("the model was not packed; see gpu.log for why")
    if flex_failure() is not None:
        raise AssertionError(f"FlexAttention was given up: {flex_failure()}")


def load_tokenizer() -> Any:
    """The embedded model's tokenizer: the exported one, else where the model is installed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder())


def tokenizer_folder() -> Path:
    """Where the tokenizer's files are. Raises FileNotFoundError where it was not exported."""
    from rlaif.engines.model_folders import locate, resolve

    if all((TOKENIZER / name).exists() for name in TOKENIZER_FILES):
        return TOKENIZER
    found = locate(BUILTIN)
    if found is not None:
        return found
    try:
        return resolve(BUILTIN)
    except Exception as error:
        raise FileNotFoundError(
            f"{TOKENIZER} has no tokenizer, and the embedded model is not here: run "
            f"`make gpu-wheels` where it is, and carry .gpu along ({error})"
        ) from None


def examples_of_random_tokens(
    count: int,
    prompt: tuple[int, int],
    answer: tuple[int, int],
    vocabulary: int,
    seed: int = 0,
    branches: int = 2,
) -> list[Any]:
    """Examples for training: lengths uniform in the two ranges, ends included."""
    from rlaif.train.tokenise import Example

    draw = torch.Generator().manual_seed(seed)

    def ids(span: tuple[int, int]) -> list[int]:
        length = int(torch.randint(span[0], span[1] + 1, (1,), generator=draw))
        found: list[int] = torch.randint(3, vocabulary, (length,), generator=draw).tolist()
        return found

    return [
        Example(f"e{i}", f"p{i}", ids(prompt), tuple(ids(answer) for _ in range(branches)))
        for i in range(count)
    ]


def free(setting: Setting) -> None:
    """Give back what the last model held."""
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds(setting: Setting, work: Callable[[], Any]) -> float:
    """How long the work takes, the device included."""
    setting.wait()
    began = time.perf_counter()
    work()
    setting.wait()
    return time.perf_counter() - began


def kernel_seconds(setting: Setting, work: Callable[[], Any]) -> tuple[float | None, float]:
    """The time that the device's kernels took, None where the profiler gives none, and the wall
    time of another call without the profiler."""
    from torch.profiler import ProfilerActivity, profile

    wall = seconds(setting, work)
    activity = ProfilerActivity.CUDA if setting.cuda else ProfilerActivity.CPU
    try:
        with profile(activities=[activity]) as profiler:
            seconds(setting, work)
        busy = [
            event.self_device_time_total
            for event in profiler.key_averages()
            if str(event.device_type).endswith("CUDA")
        ]
    except Exception as error:
        print(f"no kernel times: {describe(error)}", flush=True)
        return None, wall
    return (sum(busy) / 1e6 if busy else None), wall
