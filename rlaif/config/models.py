"""`models`: what an experiment asks and trains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlaif.config.base import Count, NameIn, PluginName, Strict
from rlaif.core.chat import MARKERS, ChatSettings

POLICY, INITIAL = "policy", "initial"
RESERVED_MODELS = frozenset({POLICY, INITIAL, "previous", "earlier", "current"})


class EngineKind(NamedTuple):
    """`load` is the "module:function" that loads an engine, and `capabilities` what it can do.

    `trainable`: it serves a checkpoint as training reads and writes it. `remote`: it asks a server,
    so it needs no folder, and what it can do depends on the model's keys. `accounted`: its calls
    are counted on the run's account, which `load` is given.
    """

    load: str
    capabilities: frozenset[str] = frozenset()
    trainable: bool = False
    remote: bool = False
    accounted: bool = False


_LOCAL = frozenset({"generate", "token_logprobs", "label_logprobs", "prefill", "user_turn"})
_OWN = _LOCAL | {"token_ids"}
_SERVED = frozenset({"generate", "label_logprobs", "prefill", "json_schema"})
ENGINES = {
    "hf": EngineKind("rlaif.engines.local.hf:load", _OWN, trainable=True),
    "vllm": EngineKind("rlaif.engines.vllm.vllm:load", _OWN | {"json_schema"}, trainable=True),
    "vllm-server": EngineKind(
        "rlaif.engines.vllm.vllm_server:load", _SERVED, trainable=True, accounted=True
    ),
    "fake": EngineKind("rlaif.engines.fake:load", _LOCAL),
    "openai": EngineKind("rlaif.engines.remote.openai:load", remote=True, accounted=True),
}
TRAINABLE = frozenset(name for name, kind in ENGINES.items() if kind.trainable)
REMOTE = frozenset(name for name, kind in ENGINES.items() if kind.remote)

LIMIT_KEYS = ("max_tokens", "max_completion_tokens")
"""The names under which servers take the most tokens of an answer."""

READ_BY = {
    "dtype": ("hf", "vllm", "vllm-server"),
    "device": ("hf", "vllm", "vllm-server"),
    "batch_tokens": ("hf",),
    "system_role": ("hf", "vllm", "vllm-server", "openai"),
    "max_context": ("hf", "vllm", "vllm-server", "fake"),
    "adapter": ("hf", "vllm", "vllm-server"),
    "parameters": ("hf", "vllm", "vllm-server"),
    "chat_template_kwargs": ("hf", "vllm", "vllm-server", "openai"),
    "engine_args": ("vllm", "vllm-server"),
    "gpus": ("vllm", "vllm-server"),
    "start_seconds": ("vllm-server",),
    "script": ("fake",),
    "base_url": ("openai",),
    "weights": ("openai",),
    "key_env": ("openai",),
    "api": ("openai",),
    "price": ("openai",),
    "limits": ("openai", "vllm-server"),
    "samples_per_call": ("openai", "vllm-server"),
    "prefill": ("openai",),
    "top_logprobs": ("openai",),
    "max_tokens_key": ("openai",),
    "extra_body": ("openai", "vllm-server"),
    "cache": ("openai", "vllm-server"),
}
"""Keys of a model that only some engines read. With another engine they are refused."""

TAKEN_ARGS = {
    "model": "`path`",
    "tokenizer": "`path`",
    "dtype": "`dtype`",
    "max_model_len": "`max_context`",
    "logprobs_mode": "what training compares with",
    "weight_transfer_config": "where the model is trained and where it runs",
    "enable_lora": "`adapter`",
    "lora_modules": "`adapter`",
    "served_model_name": "`path`",
    "override_generation_config": "each request's own sampling",
    "host": "the start of the server",
    "port": "the start of the server",
    "api_key": "the start of the server",
    "middleware": "the start of the server",
}
"""Arguments of vLLM and of its server that are not the user's."""

RENDERING_ARGS = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages"}
    | {"documents", "tools", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "processor_kwargs"}
)
"""Arguments of `apply_chat_template` that are no variables of a template."""

PARALLEL_ARGS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Arguments of vLLM whose product is the number of GPUs that it uses."""


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SECRET_KEY = re.compile(
    r"(x[-_])?api[-_]?key|authorization|(default_|extra_)?headers|password|passwd|secret"
    r"|(access|auth|api)[-_]?token|credentials?",
    re.IGNORECASE,
)
"""Keys of a request under which a secret stands."""


class Price(Strict):
    """Money for a million tokens, in any one currency. `cached_input`: `input` when absent."""

    input: NonNegativeFloat
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None


class ApiLimits(Strict):
    """Limits on the calls to a server, and how long to wait for it."""

    concurrency: Count = Field(
        32, description="Maximum concurrent calls; fewer while the server answers 429."
    )
    retries: NonNegativeInt = Field(8, description="Attempts after the first one.")
    connect_seconds: PositiveFloat = 10.0
    read_seconds: PositiveFloat = Field(120.0, description="Longest silence within an answer.")
    total_seconds: PositiveFloat = Field(600.0, description="Longest time for one attempt.")


class ThinkingSpec(Strict):
    """How a reasoning model's thinking is told from its answer, where both come as one text."""

    markers: list[tuple[str, str]] = Field(
        list(MARKERS),
        description="Pairs of markers that open and close thinking; the channels of gpt-oss are "
        "known besides.",
    )
    opened: bool = Field(
        False,
        description="The prompt's template opens the thinking, so that the text has a closing "
        "marker alone. Engines in this process see it in the prompt.",
    )

    @model_validator(mode="after")
    def _markers_mark(self) -> ThinkingSpec:
        if any(not marker.strip() for pair in self.markers for marker in pair):
            raise ValueError("`markers` must be pairs of texts that are not blank")
        return self


THINKING = ThinkingSpec()
"""What is known of a model that says nothing of its thinking."""


_SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?(?:[eE]\+?\d{1,2})?)\s*([KMBT]?)")


def read_quantity(value: Any) -> Any:
    """A whole number from how people write large ones: 8B, 350M, 8.0e9. Anything else as it is."""
    if isinstance(value, float) and math.isfinite(value):
        return round(value)
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    return value if found is None else round(float(found[1]) * _SCALES[found[2]])


Quantity = Annotated[
    int,
    Field(ge=1, le=10**15),
    BeforeValidator(
        read_quantity,
        json_schema_input_type=Annotated[float, Field(gt=0)]
        | Annotated[str, Field(pattern=f"^{_QUANTITY.pattern}$")],
    ),
]


def check_template_variables(given: Iterable[str]) -> None:
    """Raise ValueError for names that are no variables of a chat template."""
    for key in given:
        if key in RENDERING_ARGS:
            raise ValueError(
                f"chat_template_kwargs: `{key}` is no variable of a chat template; it is set "
                "where conversations are rendered"
            )


class ModelSpec(Strict):
    """One model, named once. `path` is builtin/NAME, a local folder, a hub id, or with engine
    openai the name that the server knows it by."""

    path: str
    engine: Annotated[str, NameIn((*ENGINES,))] | PluginName = "hf"
    role: Literal["policy", "labeller", "proxy", "gold"] | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 if the device has fast bfloat16, else float32."
    )
    device: str = "auto"
    batch_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Tokens in one engine batch: prompts, each once, and all that may be written. "
        "auto: by the device's memory.",
    )
    max_context: PositiveInt | None = Field(
        None, description="Maximum prompt plus answer; default: the model's own limit."
    )
    system_prompt: str = Field(
        "keep",
        description="keep: the chat template's default; drop: none; anything else: that text.",
    )
    thinking: ThinkingSpec = THINKING
    system_role: Literal["keep", "merge", "drop"] = Field(
        "keep",
        description="For models without a system role, or whose roles must alternate. merge: a "
        "system turn begins the next user turn, and neighbours of one role are one turn; drop: "
        "system turns are left out.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="Variables of the chat template, such as {enable_thinking: false}; nothing is "
        "set when absent.",
    )
    adapter: str | None = Field(
        None, description="A folder with a LoRA adapter in peft's format, for the model in `path`."
    )
    parameters: Quantity | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="The number of parameters, such as 8B, of a model that is not on this "
        "machine, for a dry run's estimates of memory and time; those of a model in a folder are "
        "counted.",
    )
    engine_args: dict[str, Any] = Field(
        {},
        description="For engines vllm and vllm-server: arguments of vllm.LLM and of `vllm serve`, "
        "such as tensor_parallel_size.",
    )
    gpus: list[NonNegativeInt] | None = Field(
        None,
        description="For engines vllm and vllm-server: the GPUs that are the model's, by number "
        "(from 0) among those that CUDA_VISIBLE_DEVICES leaves.",
    )
    start_seconds: PositiveFloat = Field(
        900.0, description="For engine vllm-server: longest time until the server answers."
    )
    script: str | None = Field(None, description="For engine fake: a YAML file of answers.")
    base_url: str | None = Field(
        None,
        description="For engine openai: where the server is, such as http://127.0.0.1:8000/v1.",
    )
    weights: str | None = Field(
        None,
        description="For engine openai: which weights the server has, in words or as a hash; "
        "changing it invalidates everything that is stored or cached for this model.",
    )
    key_env: str | None = Field(
        None, description="The environment variable that holds the server's key; never the key."
    )
    api: Literal["chat", "completions"] = "chat"
    price: Price | None = None
    limits: ApiLimits = ApiLimits()
    samples_per_call: Count = Field(1, description="Samples of one prompt per call (`n`).")
    prefill: bool = Field(
        False, description="The chat server continues a final assistant turn, as vLLM does."
    )
    top_logprobs: Annotated[int, Field(ge=1, le=20)] = Field(
        20, description="Number of most likely tokens to read label probabilities from."
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = Field(
        {}, description="Additional keys of every request; null removes a default key."
    )
    cache: bool = Field(True, description="Store answers in the request cache and reuse them.")

    @model_validator(mode="after")
    def _keys_reach_something(self) -> ModelSpec:
        for key, engines in READ_BY.items():
            if ":" in self.engine or self.engine in engines:
                continue
            if getattr(self, key) != type(self).model_fields[key].default:
                named = " or ".join(sorted(engines))
                raise ValueError(f"`{key}` is read by engine {named}, not by {self.engine}")
        self._check_engine_args()
        self._check_gpus()
        self._check_template_kwargs()
        if self.engine == "openai":
            self._check_address()
            if self.api == "completions" and self.prefill:
                raise ValueError("`prefill` is for `api: chat`; plain completions always continue")
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            raise ValueError(
                "`key_env` is the name of an environment variable that holds the key, such as "
                "OPENAI_API_KEY, and never the key"
            )
        if self.engine in ("openai", "vllm-server"):
            self._check_extra_body(self.extra_body)
            if self.system_prompt == "drop":
                raise ValueError("`system_prompt: drop`: the server renders the prompt; use keep")
            self._check_limit()
        return self

    def _check_engine_args(self) -> None:
        for key, instead in TAKEN_ARGS.items():
            if key in self.engine_args:
                raise ValueError(f"engine_args: `{key}` is set from {instead}")
        sizes = {key: self.engine_args.get(key, 1) for key in PARALLEL_ARGS}
        wrong = [key for key, size in sizes.items() if type(size) is not int or size < 1]
        if wrong:
            raise ValueError(f"engine_args: `{wrong[0]}` must be a whole number from 1")

    def _check_template_kwargs(self) -> None:
        check_template_variables(self.chat_template_kwargs)
        if not self.chat_template_kwargs:
            return
        if self.engine == "openai" and self.api == "completions":
            raise ValueError("`chat_template_kwargs` is for `api: chat`; plain texts have none")
        if "chat_template_kwargs" in self.extra_body:
            raise ValueError("give `chat_template_kwargs` here or in `extra_body`, not in both")

    @property
    def chat(self) -> ChatSettings:
        """What the model's conversations are rendered with."""
        thinking = self.thinking
        return ChatSettings(
            self.system_prompt,
            self.chat_template_kwargs,
            self.system_role,
            thinking.markers,
            thinking.opened,
        )

    def _check_gpus(self) -> None:
        if self.gpus is None:
            return
        if not self.gpus or len(set(self.gpus)) < len(self.gpus):
            raise ValueError("`gpus` must be numbers of different GPUs, such as [0, 1]")
        if self.processes != len(self.gpus):
            raise ValueError(
                f"`gpus` names {len(self.gpus)} GPUs and the model uses {self.processes}: the "
                f"product of {', '.join(PARALLEL_ARGS)} in `engine_args` must be {len(self.gpus)}"
            )

    @property
    def processes(self) -> int:
        """How many processes vLLM computes with: one for each GPU that it uses."""
        return math.prod(self.engine_args.get(key, 1) for key in PARALLEL_ARGS)

    def _check_limit(self) -> None:
        """Without a number that bounds an answer, no budget could be kept."""
        given = {k: v for k, v in self.extra_body.items() if k in LIMIT_KEYS}
        for key, value in given.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`extra_body`: {key} must be a number of tokens, or null")
        left = {self.max_tokens_key: 1} | given
        if self.price is not None and not any(left.values()):
            raise ValueError(
                "`extra_body` takes the limit of an answer's tokens out, and with a `price` the "
                f"budget needs one: give one of {', '.join(LIMIT_KEYS)} a number"
            )
        count = self.extra_body.get("n")
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError("`extra_body`: n must be a number of choices")

    def _check_extra_body(self, value: Any) -> None:
        """What is sent is written into the run folder and the cache: no key may be in it."""
        if isinstance(value, dict):
            if "stream" in value and value["stream"] not in (None, False):
                raise ValueError("`extra_body`: `stream` is not read; leave it out")
            named = next((key for key in value if _SECRET_KEY.fullmatch(str(key))), None)
            if named is not None:
                raise ValueError(
                    f"`extra_body`: `{named}` would be written into the run folder and the request "
                    "cache; put the server's key into an environment variable and name that with "
                    "`key_env`"
                )
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                self._check_extra_body(inner)

    def _check_address(self) -> None:
        if self.base_url is None:
            raise ValueError("engine openai needs `base_url`")
        if "@" in self.base_url:
            # Wherever it stands: a password may hold any character.
            raise ValueError("`base_url` may hold no key or password; name one with `key_env`")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("`base_url` must begin with http:// or https:// and name a host")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port is not None and port < 1:
            raise ValueError("`base_url`: a port must be a number from 1 to 65535")
        if parts.query or parts.fragment:
            raise ValueError("`base_url` may hold no key or password; name one with `key_env`")


def thinking_of(models: Iterable[ModelSpec]) -> ThinkingSpec:
    """How thinking is told in a text that any of `models` may have written: by the markers of all.
    Without a model, by the usual ones."""
    specs = [model.thinking for model in models] or [THINKING]
    found = {pair for spec in specs for pair in spec.markers}
    return THINKING if found == set(MARKERS) else ThinkingSpec(markers=sorted(found))
