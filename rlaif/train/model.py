"""The model that is trained: fp32 masters and the low-precision working copy.

With bf16 compute the module holds a bf16 copy that runs forward and backward; the optimiser works
on fp32 masters, and the copy is refreshed from them after each step. So the copy has the very bits
that the exported bf16 checkpoint has. With fp32 compute the parameters are their own masters. Of a
model that is split over the ranks the masters are this rank's parts; see `rlaif.train.parallel`.

`kernels_in_use` lists what a training was computed with: the facts that a speed or a difference can
be explained by.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlaif.config.training import LoraOptions, TextStep
from rlaif.core.errors import EngineError
from rlaif.engines.checkpoints import is_reward
from rlaif.engines.local.forward import PLAIN as PLAIN_FORMS
from rlaif.engines.local.forward import Choice, body_of, fast_paths, hidden_states
from rlaif.engines.local.proof import choose, versions
from rlaif.engines.local.weights import PLAIN, Head
from rlaif.kernels.attention import flex_failure, uses_flex
from rlaif.kernels.batching import Branches, Layout, packed_layout, padded_layout, sequence_sums
from rlaif.kernels.device import has_fast_bf16
from rlaif.kernels.fused import embed_into, multiply_into
from rlaif.kernels.logprobs import (
    token_logprobs,
    token_logprobs_and_entropy,
    uses_cut_cross_entropy,
)
from rlaif.train import parallel
from rlaif.train.loading import compute_as_sampling, proved_head, recompute_layers

log = logging.getLogger(__name__)
T = TypeVar("T")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of forward and backward: fp32 where that is asked for, else (`auto`, `bf16`) bf16
    where the hardware has it.

    A CPU without bf16 instructions emulates them ten to fifty times slower than it computes fp32.
    """
    wanted = precision != "fp32" and has_fast_bf16(device.type)
    return torch.bfloat16 if wanted else torch.float32


@dataclass(slots=True)
class TrainModel:
    """A module in its compute dtype and the fp32 masters of its trainable parameters by name.

    `choice` says which faster forms the module computes in until `changes` are closed; `packed`
    whether examples are packed rows (each prompt once) or padded ones, which `attention` is the
    implementation for, as for generating. The output head's gradient is added to `head_grad`, its
    master's, where it has one.

    Of a module that is split over the ranks, `root` runs it, `other_roots` are those of modules
    that are trained with it, and `copy` is the whole model on this rank for sampling, where that is
    wanted, with the weights that it was last given by `refresh_copy`.
    """

    module: Any
    masters: dict[str, Tensor]
    params: dict[str, nn.Parameter]
    device: torch.device
    dtype: torch.dtype
    head: Head = PLAIN
    choice: Choice = PLAIN_FORMS
    attention: str = "sdpa"
    head_grad: Tensor | None = None
    root: Any = None
    other_roots: list[Any] = field(default_factory=list)
    copy: TrainModel | None = None
    changes: ExitStack = field(default_factory=ExitStack)

    @property
    def packed(self) -> bool:
        """Whether examples are computed as packed rows, each prompt once, or as padded ones."""
        return self.choice.packed

    @property
    def sharded(self) -> bool:
        """Whether the module is split over the ranks, which must then run it equally often."""
        return self.root is not None

    def layout(self, examples: Sequence[Branches]) -> Layout:
        """The examples' tokens on this model's device, in the way it computes them."""
        made = packed_layout(examples) if self.packed else padded_layout(examples)
        return made.to(self.device)

    def size(self, example: Branches) -> int:
        """Tokens that are computed for the example, its padding to its own longest row included."""
        prompt, branches = example
        lengths = [len(branch) for branch in branches]
        if self.packed:
            return len(prompt) + sum(lengths)
        # Padded rows of one example are as wide as its longest.
        return len(lengths) * (len(prompt) + max(lengths))

    def token_budget(self, options: TextStep) -> int:
        """How many tokens to compute at once."""
        if options.micro_batch_tokens != "auto":
            return options.micro_batch_tokens
        if self.device.type == "cuda":
            return 16384
        # Few enough for the activations of a layer to stay in a CPU's cache.
        return 768 if self.dtype == torch.float32 else 1024

    def logprobs(self, layout: Layout) -> Tensor:
        """(S,) fp32 log-probabilities of the layout's completions, summed over their tokens."""
        return sequence_sums(self.token_logprobs(layout), layout.lengths)

    def token_logprobs(self, layout: Layout, temperature: float = 1.0) -> Tensor:
        """(N,) fp32 log-probabilities of the layout's target tokens, in nats."""
        return self.compute(
            lambda: self.read_logprobs(self.predicting(layout), layout, temperature)
        )

    def compute(self, function: Callable[[], T]) -> T:
        """What `function` makes of the module: one tensor or several. Of a split module its weights
        are there meanwhile, and all ranks must compute equally often."""
        result: T = function() if self.root is None else self.root(function)
        return result

    def predicting(self, layout: Layout) -> Tensor:
        """(N, H) the hidden states that predict the layout's target tokens."""
        return self.hidden(layout).index_select(0, layout.predict)

    def read_logprobs(self, hidden: Tensor, layout: Layout, temperature: float = 1.0) -> Tensor:
        """(N,) fp32 log-probabilities of the target tokens from `predicting`'s hidden states."""
        result: Tensor = self._read_logprobs(token_logprobs, hidden, layout, temperature)
        return result

    def read_logprobs_and_entropy(
        self, hidden: Tensor, layout: Layout, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`read_logprobs`, and (N,) the entropy in nats of what each target was drawn from."""
        both: tuple[Tensor, Tensor] = self._read_logprobs(
            token_logprobs_and_entropy, hidden, layout, temperature
        )
        return both

    def _read_logprobs(self, read: Any, hidden: Tensor, layout: Layout, temperature: float) -> Any:
        output = causal(self.module).get_output_embeddings()
        return read(
            hidden * self.head.scale if self.head.scale != 1.0 else hidden,
            output.weight,
            layout.targets,
            output.bias,
            temperature=temperature,
            softcap=self.head.softcap,
            weight_grad_into=self.head_grad,
        )

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return int(causal(self.module).get_output_embeddings().weight.shape[0])

    def read_vocabulary(self, temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
        """A function from `predicting`'s hidden states (N, H) to the log-probabilities (N, V) of
        the whole vocabulary, in fp32 from the product on."""
        output = causal(self.module).get_output_embeddings()
        weight = output.weight.float()
        bias = None if output.bias is None else output.bias.float()

        def read(hidden: Tensor) -> Tensor:
            """See `read_vocabulary`."""
            logits = nn.functional.linear(hidden.float() * self.head.scale, weight, bias)
            if self.head.softcap is not None:
                logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
            return torch.log_softmax(logits / temperature, -1)

        return read

    def rewards(self, layout: Layout) -> Tensor:
        """(S,) fp32 rewards: the head's number at each sequence's last token."""
        return self.compute(lambda: self._compute_rewards(layout))

    def ends(self, layout: Layout) -> Tensor:
        """(S, H) fp32 hidden states at each sequence's last token."""
        return self.compute(lambda: self._end_states(layout))

    def _end_states(self, layout: Layout) -> Tensor:
        return self.hidden(layout).index_select(0, layout.last).float()

    def _compute_rewards(self, layout: Layout) -> Tensor:
        head = causal(self.module).score
        # In fp32: bf16 would round rewards to steps of a hundredth.
        weight = getattr(head, "weight", None)
        if weight is None:
            # peft keeps the head that is trained in a copy of its own.
            weight = head.modules_to_save["default"].weight
        return nn.functional.linear(self._end_states(layout), weight.float())[:, 0]

    def hidden(self, layout: Layout) -> Tensor:
        """(R*T, H) last hidden states of the layout's rows."""
        return hidden_states(body_of(causal(self.module)), layout)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The module as a plain transformers model for sampling, with the very weights it has; of a
        split one its copy, with those that this was last given."""
        if self.copy is not None:
            with self.copy.generating() as whole:
                yield whole
            return
        plain = causal(self.module)
        trained = plain.config._attn_implementation
        plain.set_attn_implementation(self.attention)
        self.module.eval()
        try:
            yield plain
        finally:
            compute_as_sampling(self.module)
            plain.set_attn_implementation(trained)

    @contextmanager
    def without_adapter(self) -> Iterator[TrainModel]:
        """This model with its adapters off: the model that it started from."""
        with self.module.disable_adapter():
            yield self

    @torch.no_grad()
    def sync(self) -> None:
        """Refresh the working copy from the masters."""
        if self.root is not None:
            # What is gathered next has the new values.
            for root in (self.root, *self.other_roots):
                root.reshard()
            return
        for name, param in self.params.items():
            # With fp32 compute a parameter is its own master.
            if param is not self.masters[name]:
                param.copy_(self.masters[name])

    def sum_gradients(self) -> None:
        """The gradients of all ranks' micro-batches into the masters."""
        if self.root is None:
            parallel.sum_gradients(self.masters.values())
            return
        # FSDP has summed those of its parts over the ranks in the backward pass already.
        split, whole = self._divide_names()
        for name in split:
            grad = self.params[name].grad
            if grad is not None:
                self.masters[name].grad = parallel.part(grad)
        parallel.sum_gradients(self.masters[name] for name in whole)

    def clip_gradients(self, limit: float) -> float:
        """Scale the gradients down to a norm of `limit`; their norm before."""
        if self.root is None:
            norm = self._gradient_norm(self.masters)
        else:
            split, whole = self._divide_names()
            norm = parallel.whole_norm(self._gradient_norm(split))
            norm = torch.hypot(norm, self._gradient_norm(whole))
        nn.utils.clip_grads_with_norm_(list(self.masters.values()), limit, norm)
        return float(norm)

    def _gradient_norm(self, names: Iterable[str]) -> Tensor:
        grads = (self.masters[name].grad for name in names)
        return nn.utils.get_total_norm([grad for grad in grads if grad is not None])

    def _divide_names(self) -> tuple[list[str], list[str]]:
        """The parameters that are split over the ranks, and those that each has whole, such as a
        value head."""
        split = [name for name, param in self.params.items() if parallel.is_split(param)]
        return split, [name for name in self.params if name not in set(split)]

    @torch.no_grad()
    def refresh_copy(self) -> None:
        """Give the copy for sampling the weights of this moment. All ranks must call it."""
        if self.root is None:
            return
        whole = {} if self.copy is None else dict(self.copy.module.named_parameters())
        for name, param in self.module.named_parameters():
            # What is frozen was loaded as it is.
            if not param.requires_grad:
                continue
            full = parallel.whole(param, self.dtype)
            if name in whole:
                whole[name].copy_(full)

    def gather(self) -> None:
        """Make the first rank's masters whole, in main memory. All ranks must call it; the model
        can only be exported afterwards."""
        if self.root is None:
            return
        for name in self._divide_names()[0]:
            full = parallel.whole(self.params[name])
            if parallel.rank() == 0:
                self.masters[name] = full.cpu()


def prepare(
    module: Any,
    device: torch.device,
    dtype: torch.dtype,
    lora: LoraOptions | None = None,
    gradient_checkpointing: bool = False,
    trainable: bool = True,
    sharded: bool = False,
) -> TrainModel:
    """A module with fp32 parameters made ready: adapters, masters, no dropout, compute dtype.

    With `sharded` each rank keeps its part on `device`; the module itself may lie in main memory.
    """
    # Proved on the model's own code, before any of it is replaced.
    head = proved_head(module)
    attention = module.config._attn_implementation
    # Before adapters wrap it, since forms are chosen by the class.
    choice = choose(module, dtype, device)
    changes = ExitStack()
    changes.enter_context(fast_paths(module, choice))
    if lora is not None:
        module = add_lora(module, lora)
    if gradient_checkpointing:
        recompute_layers(causal(module))
    # After both: the adapters' dropout and recomputed layers stay in training mode.
    compute_as_sampling(module)
    model = TrainModel(module, {}, {}, device, dtype, head, choice, attention, changes=changes)
    if sharded:
        _shard_model(model, trainable)
        return model
    for name, param in module.named_parameters():
        # Each fp32 tensor is let go before the next is cast, so there is never a second full copy.
        keep = trainable and param.requires_grad
        if dtype == torch.float32:
            if keep:
                model.masters[name] = model.params[name] = param
        else:
            if keep:
                # The master keeps the fp32 memory; the parameter gets a new one in the compute
                # dtype below.
                model.masters[name] = param.detach()
                model.params[name] = param
            param.data = param.data.to(dtype)
        if not trainable:
            param.requires_grad_(False)
    for name, master in model.masters.items():
        # Made now: `embed_into` and `multiply_into` add to these very tensors.
        master.grad = torch.zeros_like(master)
        param = model.params[name]
        if param is not master:
            working: Any = param
            working.register_post_accumulate_grad_hook(_move_gradient_into(master))
    _gradients_into_masters(model)
    return model


def _gradients_into_masters(model: TrainModel) -> None:
    """Let the gradients of matrices and tables be added to their masters' where they are made."""
    # By identity, so that a head that is the embedding finds the same gradient.
    grads = {id(model.params[name]): master.grad for name, master in model.masters.items()}
    output = causal(model.module).get_output_embeddings()
    if output is not None:
        # Log-probs are read from the head's weight, without a call of its forward.
        model.head_grad = grads.get(id(output.weight))
    for part in model.module.modules():
        into = grads.get(id(getattr(part, "weight", None)))
        # A subclass may do more than its base.
        if into is not None and type(part) is nn.Embedding:
            embed_into(part, into)
        elif into is not None and type(part) is nn.Linear and part is not output:
            multiply_into(part, into)


def _shard_model(model: TrainModel, trainable: bool) -> None:
    for param in model.module.parameters():
        param.requires_grad_(trainable and param.requires_grad)
        # Trainable ones stay in fp32: FSDP casts what it gathers, and keeps its parts as they are.
        if not param.requires_grad:
            param.data = param.data.to(model.dtype)
    layers = set(causal(model.module)._no_split_modules or ())
    model.root = parallel.shard(model.module, layers, model.device, model.dtype)
    for name, param in model.module.named_parameters():
        if param.requires_grad:
            param.grad = torch.zeros_like(param)
            model.params[name] = param
            # Views of FSDP's own memory: an optimiser's step on them reaches the module.
            model.masters[name] = parallel.part(param)
            model.masters[name].grad = parallel.part(param.grad)


def _move_gradient_into(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that moves a working parameter's gradient into its master's, and frees it."""

    def move_gradient(param: Tensor) -> None:
        """Called by autograd when the gradient is whole."""
        if master.grad is not None and param.grad is not None:
            master.grad.add_(param.grad)
        param.grad = None

    return move_gradient


def causal(module: Any) -> Any:
    """The module without the wrapper of its adapters."""
    return module.get_base_model() if hasattr(module, "peft_config") else module


def add_lora(module: Any, options: LoraOptions) -> Any:
    """The module with fresh low-rank adapters (arXiv 2106.09685); only they are trainable."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise EngineError("`lora` needs peft. Run: pip install peft") from None
    reward = is_reward(module)
    config = LoraConfig(
        r=options.r,
        # peft declares int, as do those that read what it saves, and only divides it by r.
        lora_alpha=int(options.alpha) if options.alpha.is_integer() else options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
        use_dora=options.dora,
        # For SEQ_CLS peft keeps the new head whole and learns all of it.
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(module, config)
    except ValueError as error:
        raise EngineError(f"lora.target_modules: {error}") from None
    if not reward and type(causal(wrapped).get_output_embeddings()) is not nn.Linear:
        raise EngineError("lora.target_modules must leave out the output head")
    return wrapped


def kernels_in_use(model: TrainModel) -> dict[str, Any]:
    """By part what computes it, with versions; `left_out` says what the model could not take, and
    why. To be asked when training is over: a kernel may be given up on the way."""
    torch_version, transformers_version = versions()
    named = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
    left_out = list(model.choice.reasons)
    failure = flex_failure()
    if failure is not None and model.device.type == "cuda":
        left_out.append(f"FlexAttention: {failure}")
    return {
        "packed": model.packed,
        "attention": _name_attention(model),
        "fused": dict(sorted(model.choice.parts.items())),
        "logprobs": _name_logprobs(model),
        "left_out": left_out,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": named,
        "torch": torch_version,
        "transformers": transformers_version,
    }


def _name_attention(model: TrainModel) -> str:
    if not model.packed:
        return f"{model.attention} (transformers)"
    return "FlexAttention" if uses_flex(model.device) else "group by group"


def _name_logprobs(model: TrainModel) -> str:
    if model.device.type == "cuda" and uses_cut_cross_entropy(model.dtype):
        return f"cut-cross-entropy {_package_version('cut-cross-entropy')}"
    return "tiles"


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"
