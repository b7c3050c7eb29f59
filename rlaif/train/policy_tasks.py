"""What is learned from a rollout: a task of the training loop for each kind of loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rlaif.config.on_policy import RolloutTrain
from rlaif.core.resources import find_object
from rlaif.kernels.batching import Layout, sequence_sums
from rlaif.train.critic import Critic
from rlaif.train.loop import Sums
from rlaif.train.losses import policy as losses
from rlaif.train.losses import preference
from rlaif.train.methods.sppo import win_rates
from rlaif.train.model import TrainModel
from rlaif.train.preference import pair_logprobs
from rlaif.train.rollout import Rollout, lay_out
from rlaif.train.tokenise import Example


class PolicyTask:
    """The clipped policy loss on a rollout, with what GRPO, RLOO and PPO add to it."""

    def __init__(
        self,
        rollout: Rollout,
        options: RolloutTrain,
        beta: float,
        critic: Critic | None = None,
        ptx: Sequence[Example] = (),
        number: int = 0,
    ):
        self.number = number
        self.ptx_tokens = 1
        self.rollout = rollout
        self.options = options
        self.beta = beta
        self.critic = critic
        self.ptx = ptx
        self.examples: Sequence[Example] = [group.example for group in rollout.groups]

    def total(self, batch: Sequence[int]) -> losses.GlobalBatch:
        """Answers and tokens that are learned from."""
        lengths = [
            length
            for i in batch
            for length, keep in zip(
                self.rollout.lengths(i), self.rollout.active[i].tolist(), strict=True
            )
            if keep
        ]
        if self.ptx:
            # `loss` sees one micro-batch; the mixed-in NLL is normalised over the whole batch.
            self.ptx_tokens = sum(len(self._mixed_example(i).completions[0]) for i in batch)
        # A batch without any has a gradient of 0.
        return losses.GlobalBatch(max(1, len(lengths)), max(1, sum(lengths)))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: losses.GlobalBatch, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        terms = self.options.policy_terms()
        layout = lay_out(model, [self.rollout.groups[i] for i in micro])
        # [tokens, width], [tokens], [tokens]
        hidden, logprobs, entropy = model.compute(partial(self._read_tokens, model, layout))
        old = self._gather_tokens(self.rollout.old, micro, logprobs)
        # Without stored ones a rollout is learned from in one step: the policy is still the old
        # one.
        old = logprobs.detach() if old is None else old
        keep = self._learned_tokens(micro, layout, logprobs.device)
        weight, metrics = self._importance_weights(micro, old, layout)
        advantages = self._gather_tokens(self.rollout.advantages, micro, logprobs)
        assert advantages is not None
        values, clipped = self._policy_losses(logprobs, old, advantages, layout, weight)
        metrics |= clipped | {"entropy": entropy.detach().mean()}
        pulled = self.beta > 0 and self.rollout.reference is not None
        if terms.kl is not None and pulled:
            reference = self._gather_tokens(self.rollout.reference, micro, logprobs)
            assert reference is not None
            kl = losses.kl_estimate(logprobs, reference, terms.kl)
            if self.rollout.old is not None:
                # Old answers: without the ratio the estimate would be of another policy
                # (DeepSeek-V3.2).
                kl = kl * (logprobs - old).exp()
            if self.options.lag and weight is not None:
                kl = kl * weight
            metrics["kl"] = kl.detach()[keep].mean() if bool(keep.any()) else kl.new_zeros(())
            values = values + self.beta * kl
        # Masked and not left out, since the reduction goes by the lengths of all answers.
        loss = losses.token_reduction(
            values.masked_fill(~keep, 0.0), layout.lengths, terms.reduction, total, terms.constant
        )
        # The first steps are the critic's alone: no gradient reaches the policy.
        alone = step < self.options.critic_steps
        if alone:
            loss, hidden = loss.detach() * 0, hidden.detach()
        if self.critic is not None:
            value_losses = self._value_losses(hidden, layout, micro, terms.value_clip, metrics)
            value_losses = value_losses.masked_fill(~keep, 0.0)
            metrics["value_loss"] = value_losses.detach().sum() / keep.sum().clamp(min=1)
            # The critic learns per token, whatever reduction the policy's loss has.
            share = losses.token_reduction(value_losses, layout.lengths, "token", total)
            loss = loss + terms.value_weight * share
        if terms.ptx_weight and self.ptx and not alone:
            nll = self._mixed_nll(model, micro, metrics)
            loss = loss + terms.ptx_weight * nll / self.ptx_tokens
        return loss, self._weigh_metrics(metrics, layout, micro, keep), layout.tokens

    def _read_tokens(self, model: TrainModel, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden states before the target tokens, these tokens' log-probs, the entropies."""
        hidden = model.predicting(layout)
        read = model.read_logprobs_and_entropy(hidden, layout, self.options.temperature)
        return hidden, *read

    def _policy_losses(
        self,
        logprobs: Tensor,
        old: Tensor,
        advantages: Tensor,
        layout: Layout,
        weight: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(N,) the method's own loss of each token, or the clipped one."""
        own = getattr(self.options, "LOSS", None)
        if own is not None:
            loss: tuple[Tensor, dict[str, Tensor]] = find_object(own)(
                logprobs,
                old,
                advantages,
                layout.lengths,
                weight=weight,
                **self.options.loss_options,
            )
            return loss
        terms = self.options.policy_terms()
        return losses.clipped_policy_loss(
            logprobs, old, advantages, terms.clip_low, terms.clip_high, terms.two_sided, weight
        )

    def _weigh_metrics(
        self, metrics: dict[str, Tensor], layout: Layout, micro: Sequence[int], keep: Tensor
    ) -> Sums:
        """The metrics with what each of them is a mean over: tokens, unless it says otherwise."""
        learned = float(keep.sum())
        counts = {"kl": learned, "value_loss": learned}
        if self.options.importance.endswith("_sequence"):
            # Weights of whole answers are means over answers.
            answers = float(len(layout.lengths))
            counts |= {"weight_mean": answers, "weight_cut_fraction": answers}
        if self.ptx:
            mixed = sum(len(self._mixed_example(i).completions[0]) for i in micro)
            counts["ptx_nll"] = float(mixed)
        sums: Sums = {}
        for name, value in metrics.items():
            # An extreme is no mean: `join_sums` takes the smallest or largest by its name.
            extreme = name.endswith(("_min", "_max"))
            count = 1.0 if extreme else counts.get(name, float(len(layout.targets)))
            sums[name] = (float(value) * count, count)
        return sums

    def _gather_tokens(
        self, values: Sequence[Tensor] | None, micro: Sequence[int], like: Tensor
    ) -> Tensor | None:
        if values is None:
            return None
        return torch.cat([values[i] for i in micro]).to(like.device)

    def _learned_tokens(self, micro: Sequence[int], layout: Layout, device: torch.device) -> Tensor:
        """(N,) bool: the tokens of answers that are learned from."""
        active = torch.cat([self.rollout.active[i] for i in micro])
        return losses.to_tokens(active, layout.lengths).to(device)

    def _importance_weights(
        self, micro: Sequence[int], old: Tensor, layout: Layout
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        if self.options.importance == "none":
            return None, {}
        # The weight is the ratio of `old`, by the trained module, to what the sampler computed.
        sampler = [
            value for i in micro for a in self.rollout.groups[i].answers for value in a.logprobs
        ]
        mode, level = self.options.importance.split("_")
        return losses.importance_weights(
            old,
            torch.tensor(sampler, dtype=old.dtype, device=old.device),
            layout.lengths,
            level,  # type: ignore[arg-type]
            mode,  # type: ignore[arg-type]
            self.options.importance_cap,
            self.options.importance_floor,
        )

    def _value_losses(
        self,
        hidden: Tensor,
        layout: Layout,
        micro: Sequence[int],
        clip: float | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """(N,) the critic's loss of each token: of the reward's values and of each cost's, weighed
        as their advantages are."""
        assert self.critic is not None
        rollout = self.rollout
        assert rollout.values is not None
        assert rollout.returns is not None
        values = self.critic.values(layout, hidden)  # [tokens, 1 + costs]
        stored = [(rollout.values, rollout.returns)]
        stored += zip(rollout.cost_values, rollout.cost_returns, strict=True)
        shares = [1.0, *rollout.multipliers]
        parts: list[Tensor] = []
        for head, (share, (old, returns)) in enumerate(zip(shares, stored, strict=True)):
            own_old = self._gather_tokens(old, micro, values)
            own_returns = self._gather_tokens(returns, micro, values)
            assert own_old is not None
            assert own_returns is not None
            loss, clipped = losses.value_loss(values[:, head], own_old, own_returns, clip)
            parts.append(share * loss)
            if head == 0:
                metrics |= clipped
        return torch.stack(parts).sum(0) / sum(shares)

    def _mixed_nll(
        self, model: TrainModel, micro: Sequence[int], metrics: dict[str, Tensor]
    ) -> Tensor:
        """InstructGPT's pretraining mix: the NLL of as many chosen answers, summed over tokens."""
        chosen = [self._mixed_example(i) for i in micro]
        layout = model.layout([(e.prompt_ids, e.completions[:1]) for e in chosen])
        nll = -model.token_logprobs(layout).sum()
        metrics["ptx_nll"] = nll.detach() / len(layout.targets)
        return nll

    def _mixed_example(self, index: int) -> Example:
        """The preference that goes with group `index`: over the rollouts, all of them in turn."""
        return self.ptx[(self.number * len(self.examples) + index) % len(self.ptx)]


class OnlinePairs:
    """The best answer of each group against the worst, as a pair; equal rewards make none
    (`is_flat`)."""

    def __init__(self, rollout: Rollout, options: RolloutTrain):
        assert options.pair_loss is not None
        self.beta = options.kl_weight
        self.pair_loss = find_object(options.pair_loss)
        self.options = options
        self.reference: dict[str, tuple[Tensor, Tensor]] = {}
        self.wins: dict[str, Tensor] = {}
        examples: list[Example] = []
        for number, group in enumerate(rollout.groups):
            # An answer without a reward is neither the best nor the worst.
            rewards = rollout.rewards[number].nan_to_num(-torch.inf)
            low = rollout.rewards[number].nan_to_num(torch.inf)
            best, worst = int(rewards.argmax()), int(low.argmin())
            if losses.is_flat(rollout.rewards[number]):
                continue
            answers = group.answers
            example = Example(
                f"{group.prompt_id}:{number}",
                group.prompt_id,
                group.prompt_ids,
                (answers[best].ids, answers[worst].ids),
            )
            examples.append(example)
            self.wins[example.example_id] = win_rates(rollout.rewards[number])[[best, worst]]
            if rollout.reference is not None:
                sums = [
                    p.sum() for p in torch.split(rollout.reference[number], rollout.lengths(number))
                ]
                self.reference[example.example_id] = (sums[best], sums[worst])
        self.examples: Sequence[Example] = examples

    def total(self, batch: Sequence[int]) -> float:
        """Pairs in the batch."""
        return float(len(batch))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        logprobs = model.token_logprobs(layout, self.options.temperature)
        policy = sequence_sums(logprobs, layout.lengths)  # [branches], chosen and rejected in turns
        stored = torch.stack([x for e in rows for x in self.reference[e.example_id]])
        pairs = pair_logprobs(policy, stored.to(policy.device), layout)
        metrics = preference.pair_metrics(pairs, self.beta)
        if self.options.takes_win_rates:
            wins = torch.stack([self.wins[e.example_id] for e in rows]).to(policy.device)
            loss = self.pair_loss(pairs, wins, beta=self.beta)
            metrics |= {"win_rate_chosen": wins[:, 0], "win_rate_rejected": wins[:, 1]}
        else:
            loss = self.pair_loss(pairs, beta=self.beta)
        found = {k: (float(v.sum()), float(len(rows))) for k, v in metrics.items()}
        return loss.sum() / total, found, layout.tokens
