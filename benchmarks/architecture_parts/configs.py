"""Configs of transformers' causal language models, made small by their own fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

HEADS, KEY_HEADS, HEAD_DIM, HIDDEN, EXPERTS = 4, 2, 16, 64, 4
MOST_LAYERS = 8
NOISE = 0.1
"""Every rate of dropout, of skipped layers and of noise in a router."""
SIZES: dict[str, int] = {
    **dict.fromkeys(
        (
            *("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim"),
            *("embedding_size", "input_embedding_size", "output_embedding_size"),
            *("word_embed_proj_dim", "attention_hidden_size", "lru_width", "dim_model_base"),
            *("backbone_hidden_size", "hidden_size_global", "router_hidden_size", "input_size"),
            *("out_hidden_size", "adapter_out_dim", "ple_embed_dim"),
        ),
        HIDDEN,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"),
            *("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"),
            *("num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_heads"),
            *("linear_num_key_heads", "linear_num_value_heads", "num_query_groups"),
        ),
        HEADS,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"),
        KEY_HEADS,
    ),
    **dict.fromkeys(
        (
            *("head_dim", "d_head", "v_head_dim", "qk_nope_head_dim", "linear_key_head_dim"),
            *("linear_value_head_dim", "linear_head_dim", "dim_head", "kv_channels"),
            *("q_lora_rank", "kv_lora_rank", "index_head_dim", "swa_head_dim", "d_kv"),
            *("attention_head_size", "o_lora_rank", "mamba_d_head", "mamba_head_dim"),
            *("mamba_headdim", "global_head_dim", "swa_v_head_dim", "hidden_size_per_layer_input"),
        ),
        HEAD_DIM,
    ),
    **dict.fromkeys(
        (
            *("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
            *("zero_expert_num", "mod_num_experts"),
        ),
        EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k"),
            *("moe_top_k", "num_experts_per_topk", "num_layers_per_stack"),
        ),
        2,
    ),
    # Few would all be zero behind their rectifier, and the choice of the highest would be anyone's.
    "index_n_heads": 16,
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(
        (
            *("sliding_window", "sliding_window_size", "attention_window_size", "window_size"),
            *("attention_chunk_size", "local_attention", "local_attention_window_len"),
            *("sliding_window_pattern_size",),
        ),
        16,
    ),
    **dict.fromkeys(
        (
            *("qk_rope_head_dim", "rotary_dim", "index_topk", "mamba_d_state", "ssm_state_size"),
            *("mamba_chunk_size", "chunk_size", "mamba_dt_rank", "state_size", "time_step_rank"),
            *("laurel_rank", "hc_lowrank", "d_rel", "adapter_rank", "gated_norm_rank"),
        ),
        8,
    ),
    **dict.fromkeys(
        (
            *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
            *("max_target_positions", "model_max_length", "rel_extent"),
        ),
        512,
    ),
}
FEED_FORWARD = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "dim_ff", "dff", "d_ff")
FEED_FORWARD += ("n_inner", "d_inner", "feed_forward_size", "intermediate_size_mlp", "mlp_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")
LAYERS += ("encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
HYBRID: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {
            "sliding_attention": {**ROPE, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        }
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "rope_parameters": ROPE,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffllama": {"attention_dropout": 0.0},
    "dots3_note_audio_encoder": {"adapter_input_size": HIDDEN},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": HIDDEN},
    "dots3_note_text": {
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": HEAD_DIM,
        "swa_kv_lora_rank": HEAD_DIM,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": HEAD_DIM,
        "swa_v_head_dim": HEAD_DIM,
    },
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": KEY_HEADS},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_DIM,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": HYBRID,
    "zamba2": HYBRID,
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_embds": False, "num_buckets": 4},
}
"""By model_type what sizes that depend on one another need besides."""


class NotText(Exception):
    """Plain transformers has no model of this architecture that reads text alone."""


def small_config(kind: Any, vocabulary: int, special: dict[str, int | None]) -> Any:
    """A config of the class `kind` with `vocabulary` tokens and `special` token ids, that builds a
    model of some 100 thousand weights. Raises whatever transformers does where there is none."""
    try:
        given = kind()
    except ValueError:
        # Some classes have no defaults that their own checks would take.
        given = kind(**SPECIAL.get(kind.model_type, {}))
    return _made(given, vocabulary, special)


def _made(given: Any, vocabulary: int, special: dict[str, int | None]) -> Any:
    # What is None unless it is told follows from the rest.
    told = {f.name: f.default for f in fields(given) if f.default is not None}
    chosen: dict[str, Any] = {}
    for name, value in told.items():
        small = _small(name, value, vocabulary)
        if small is not None:
            chosen[name] = small
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            # Training must not draw: its log-probs are those of sampling.
            chosen[name] = NOISE
    heads = next((told[n] for n in ("num_attention_heads", "n_head") if n in told), None)
    if told.get("num_key_value_heads") == heads and "num_key_value_heads" in chosen:
        chosen["num_key_value_heads"] = HEADS
    layers = _layers(given)
    if "num_kv_shared_layers" in told:
        layers, chosen["num_kv_shared_layers"] = layers + 1, 1
    chosen |= {name: layers for name in LAYERS if isinstance(told.get(name), int)}
    names = {f.name for f in fields(given)}
    if "head_dim" in names - told.keys() and vars(given).get("head_dim") is None:
        chosen["head_dim"] = HEAD_DIM
    chosen |= {name: value for name, value in special.items() if name in names}
    if "is_decoder" in names:
        # Else it would see the tokens that it is to predict.
        chosen["is_decoder"] = True
    for name, value in vars(given).items():
        if hasattr(value, "to_dict"):
            chosen[name] = _made(value, vocabulary, special)
    return type(given)(**{**chosen, **SPECIAL.get(given.model_type, {})})


def _small(name: str, value: Any, vocabulary: int) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return None
    if name.endswith(("vocab_size", "group_vocab", "vocab_size_per_layer_input")):
        return vocabulary
    if name in SIZES:
        return min(value, SIZES[name])
    if name.endswith(FEED_FORWARD):
        return min(value, 32 if name.startswith(("moe_", "shared_expert", "expert_")) else 96)
    return None


def _layers(given: Any) -> int:
    """Enough layers for one of each kind."""
    kinds = getattr(given, "layer_types", None) or getattr(given, "layers_block_type", None) or []
    firsts = {str(kind): place for place, kind in reversed(list(enumerate(kinds, start=1)))}
    return min(MOST_LAYERS, max([2, *firsts.values()]))
