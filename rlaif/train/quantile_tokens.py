"""Quark's quantile tokens: new tokens that stand before a prompt, the first for the best quantile.

While a model is trained their embeddings are a table of their own beside the model's, with ids that
follow the model's. The output head stays as it is: no answer has such a token, and neither
likelihoods nor the KL need to leave them out. `widen_vocabulary` makes them tokens like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.core.errors import EngineError, RlaifError
from rlaif.core.records import Message, content_hash
from rlaif.train.model import TrainModel, causal
from rlaif.train.tokenise import load_tokenizer

NAME = "quantile_tokens"
"""Of the table among the masters of a model."""
VARIABLE = "quantile"
"""The chat template's variable that says which token stands before the prompt."""


def token_text(quantile: int) -> str:
    """The token of a quantile, from 1, the best."""
    return f"<|quantile_{quantile}|>"


def add_quantile_tokens(model: TrainModel, count: int, seed: int) -> None:
    """Give the model's input `count` tokens more, trained, checkpointed and resumed with its
    weights. They are drawn as its embeddings are spread. Raises EngineError for a model whose
    embedding is more than a table."""
    plain = model if model.copy is None else model.copy
    table = causal(plain.module).get_input_embeddings()
    weight = table.weight.detach()
    known = torch.arange(min(4, len(weight)), device=weight.device)
    if not isinstance(table, nn.Embedding) or not torch.equal(table(known), weight[known]):
        raise EngineError(
            f"{type(causal(plain.module)).__name__}: its input embedding is more than a table of "
            "vectors, so no token can be added to it here; quark needs another model"
        )
    key = int(content_hash(NAME, seed, length=15), 16)
    noise = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(key))
    spread, mean = torch.std_mean(weight.float(), 0)
    rows = nn.Parameter(mean + spread * noise.to(weight.device))
    # In fp32 it is its own master, with a gradient that is never None.
    rows.grad = torch.zeros_like(rows)
    model.masters[NAME] = model.params[NAME] = rows
    # The copy for sampling looks up the very rows that are trained.
    for each in {id(one): one for one in (model, plain)}.values():
        _embed_beside(causal(each.module).get_input_embeddings(), rows)


def _embed_beside(table: Any, rows: nn.Parameter) -> None:
    """Let the embedding look ids beyond its own up in `rows`."""
    embed, first = table.forward, table.num_embeddings

    def forward(ids: Tensor) -> Tensor:
        new = ids >= first
        own: Tensor = embed(ids.masked_fill(new, 0))
        added = F.embedding((ids - first).clamp(min=0), rows).to(own.dtype)
        return torch.where(new[..., None], added, own)

    table.forward = forward


def quantile_id(model: TrainModel, quantile: int) -> int:
    """The id of a quantile's token in training."""
    return int(causal(model.module).get_input_embeddings().num_embeddings) + quantile - 1


def drop_quantile_tokens(model: TrainModel) -> Tensor:
    """Take the tokens' embeddings (count, H) in fp32 out of the model's masters, before its own
    weights are exported."""
    model.params.pop(NAME)
    return model.masters.pop(NAME).detach()


def check_tokenizer(folder: Path, count: int, kept: bool) -> None:
    """Raise RlaifError where the model in `folder` cannot get `count` quantile tokens: it has some
    already or, where they are to be `kept`, a token before a prompt would change the prompt's."""
    tokenizer = load_tokenizer(folder)
    if token_text(1) in tokenizer.get_vocab():
        raise RlaifError(
            f"{folder}: its vocabulary has quantile tokens already, of an earlier quark training "
            "with `keep_tokens: true`. Start from a model without them"
        )
    if not kept:
        return
    messages: list[Message] = [{"role": "user", "content": "Hello."}]
    before, ids = _render(tokenizer, messages)
    added = _add_tokens(tokenizer, count)
    after, longer = _render(tokenizer, messages)
    if (after, longer) != (token_text(1) + before, [added[0], *ids]):
        raise RlaifError(
            f"{folder}: with a token before it, its tokenizer reads a prompt differently, so "
            "quantile tokens cannot be part of its chat template. Set `keep_tokens: false`"
        )


def _render(tokenizer: Any, messages: list[Message]) -> tuple[str, list[int]]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def _add_tokens(tokenizer: Any, count: int) -> list[int]:
    """Add the tokens to the vocabulary, and to the chat template the best one before every prompt.
    Returns their ids."""
    texts = [token_text(q) for q in range(1, count + 1)]
    tokenizer.add_tokens(texts, special_tokens=True)
    lead = "{{ '<|quantile_' ~ (" + VARIABLE + " | default(1)) ~ '|>' }}"
    tokenizer.chat_template = lead + tokenizer.chat_template
    ids: list[int] = tokenizer.convert_tokens_to_ids(texts)
    return ids


@torch.no_grad()
def widen_vocabulary(module: Any, rows: Tensor, start: Path) -> Any:
    """Make the tokens with these embeddings part of the plain `module`, in fp32; the tokenizer of
    `start` with them. An output head of its own gives them its mean logit, and a tied one what
    follows from their embeddings: neither was learned, so the generation config suppresses them."""
    tokenizer = load_tokenizer(start)
    ids = _add_tokens(tokenizer, len(rows))
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    tied, mean = head.weight is table.weight, head.weight.mean(0)
    # A vocabulary padded to a multiple may have room for them.
    if max(ids) >= table.num_embeddings:
        module.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    module.get_input_embeddings().weight[ids] = rows.to(mean.device)
    if not tied:
        module.get_output_embeddings().weight[ids] = mean
    generation = module.generation_config
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), *ids})
    return tokenizer
