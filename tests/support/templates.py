"""Chat templates in the styles of other people's models, and tokenizers of their kinds."""

from __future__ import annotations

from functools import cache
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>"
    "\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set ns = namespace(r='', c=m['content']) %}"
    "{% if m.reasoning_content is string %}{% set ns.r = m.reasoning_content %}"
    "{% elif '</think>' in m['content'] %}"
    "{% set ns.r = m['content'].split('</think>')[0].rstrip('\n').split('<think>')[-1]"
    ".lstrip('\n') %}"
    "{% set ns.c = m['content'].split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ ns.r.strip('\n') }}\n</think>\n\n"
    "{{ ns.c.lstrip('\n') }}{% else %}{{ ns.c }}{% endif %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
R1 = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}"
    "<|end_of_sentence|>{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if '<|channel|>' in m['content'] %}{{ raise_exception('channels belong into thinking') }}"
    "{% endif %}{% if loop.last and m.thinking %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ALTERNATES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ '<s>' }}" + ALTERNATES + "{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST] {{ m['content'] }}[/INST]{% else %} {{ m['content'] | trim }}</s>{% endif %}"
    "{% endfor %}"
)
MISTRAL_SYSTEM = (
    "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% if loop.last and told is defined %}[INST] {{ told }}\n\n{{ m['content'] }}[/INST]"
    "{% else %}[INST] {{ m['content'] }}[/INST]{% endif %}"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>' }}[INST] {{ m['content'] | trim }}"
    " [/INST]{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen's tokenizer and Llama 3's split a text, but for English contractions."""
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|begin|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<|start|>", "<|end|>"),
    *("<|channel|>", "<|message|>", "<|return|>", "<s>", "</s>", "<unk>", "<pad>"),
]
CORPUS = [
    "I think that a plum is a fruit, and the sky is blue.\n\nName one and think of another.",
    "<think>\n\n</think>\n\nThe answer is no. [INST] What do you think? [/INST] Nothing </s>",
    "assistant user system analysis final <|assistant|> kind and an ink in the end",
] * 20


@cache
def tokenizer(kind: str, template: str, end: str) -> Any:
    """A tokenizer of a `kind`, trained on a few lines: `byte` (byte-level BPE, as GPT-2 and later
    models), `llama` (SentencePiece's blank before every piece of text, as Llama 2's first
    conversion), `metaspace` (before the first piece only, as Mistral's and later conversions)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind != "byte", fuse_unk=True))
    alphabet: list[str] = []
    if kind == "byte":
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        # Learned within words, as SentencePiece does; used without splitting.
        raw.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
        raw.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    special = SPECIAL if kind == "byte" else [*SPECIAL, *bytes_]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    if kind == "llama":
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        raw.normalizer = normalizers.Sequence(blanks)
        raw.pre_tokenizer = None
    elif kind == "metaspace":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=end,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[t for t in SPECIAL if t not in (end, "<pad>", "<unk>")],
    )
    made.chat_template = template
    return made


STYLES = {
    "chatml": ("byte", CHATML, "<|im_end|>"),
    "llama3": ("byte", LLAMA3, "<|eot_id|>"),
    "qwen3": ("byte", QWEN3, "<|im_end|>"),
    "gpt_oss": ("byte", GPT_OSS, "<|return|>"),
    "mistral": ("metaspace", MISTRAL, "</s>"),
    "llama2": ("llama", LLAMA2, "</s>"),
    "zephyr": ("metaspace", ZEPHYR, "</s>"),
}
"""Styles whose rendered conversation begins with the rendered prompt: kind of tokenizer, template,
end token."""
