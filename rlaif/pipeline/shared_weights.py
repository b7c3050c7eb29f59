"""Models that are the same weights under several names, and where that would be silent.

Labeller, proxy and gold judge must differ, and a judge that is the evaluated model must be called
so: otherwise a rising score may be a model that likes itself (arXiv 2210.10760 on proxy and gold,
2404.13076 on models that favour their own texts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from rlaif.config.experiment import Experiment
from rlaif.config.judges import JuryJudge, MetaJudge
from rlaif.config.judging import JudgeBase
from rlaif.config.models import RESERVED_MODELS, ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.engines.build import REMOTE
from rlaif.judges.base import Judge, roles_of

KEPT_APART = frozenset({"labeller", "proxy", "gold"})


def weights_names(spec: ModelSpec, key: str) -> frozenset[str]:
    """What a model's weights go by: models that have one of these in common are the same.

    `key` is its identity. A server's weights go by its address and the model's name there, and by
    the hash that `weights` declares, which may be that of a folder here. A script has none.
    """
    if spec.engine == "fake":
        return frozenset()
    if spec.engine not in REMOTE:
        return frozenset({key})
    declared = {f"weights:{spec.weights}"} if spec.weights is not None else set()
    return frozenset({f"server:{(spec.base_url or '').rstrip('/').lower()}:{spec.path}"} | declared)


def check_same_weights(
    experiment: Experiment, keys: Mapping[str, str], judges: Mapping[str, Judge]
) -> None:
    """Refuse roles that are silently one model, and judges that are silently the policy. Raises
    ConfigError, unless the experiment says `allow_same_weights`."""
    for name, spec in experiment.all_judges().items():
        asked = roles_of(judges[name])
        silent = [own for role, own in _unnamed(spec) if role in asked]
        if silent:
            raise ConfigError(
                f"judge {silent[0]}: `by` does not say which model is asked. Set `by: policy` to "
                "have the policy judge itself, or name another one of `models`."
            )
    if experiment.allow_same_weights:
        return
    names = {n: weights_names(spec, keys[n]) for n, spec in experiment.models.items()}
    _check_roles(experiment, names)
    for judge in experiment.all_judges().values():
        for name in judge.asks().values():
            if name not in RESERVED_MODELS and names.get(name, frozenset()) & names["policy"]:
                raise ConfigError(
                    f"judge {judge.id}: model {name!r} has the policy's own weights. Ask it by the "
                    "name `policy` (or `initial`, the policy before training), name other "
                    "weights, or set `allow_same_weights: true`."
                )


def _check_roles(experiment: Experiment, names: Mapping[str, frozenset[str]]) -> None:
    roles = {n: s.role for n, s in experiment.models.items() if s.role in KEPT_APART}
    for one, other in combinations(roles, 2):
        if roles[one] != roles[other] and names[one] & names[other]:
            raise ConfigError(
                f"models {one!r} and {other!r} have different roles and the same weights. "
                "Name different models, or set `allow_same_weights: true`."
            )


def _unnamed(judge: JudgeBase, place: str = "") -> Iterator[tuple[str, str]]:
    """Role and id of each judge, those within `judge` too, whose `by` was left to its default."""
    if "by" in type(judge).model_fields and "by" not in judge.model_fields_set:
        yield f"{place}by", judge.id
    if isinstance(judge, MetaJudge):
        yield from _unnamed(judge.judge, f"{place}judge/")
    if isinstance(judge, JuryJudge):
        for juror in judge.of:
            yield from _unnamed(juror, f"{place}{juror.id}/")
