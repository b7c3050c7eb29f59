"""A votes database for what is asked for: made where there is none, else opened and compared.

A server that is started again on its database reads neither runs nor files, and imports nothing
that does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from rlaif.core.errors import ConfigError
from rlaif.core.resources import find
from rlaif.core.yamlio import load_yaml
from rlaif.data.vote_store import VoteStore, create_votes
from rlaif.data.votes import AskedPrinciple, Prelabels, VoteItem, VoteSettings, read_settings

if TYPE_CHECKING:
    from rlaif.constitution.model import Constitution, Principle

SCALE: Mapping[int, str] = {
    1: "of no use",
    2: "poor",
    3: "acceptable",
    4: "good",
    5: "could hardly be better",
}
"""The levels of a rating, unless others are given."""
GOLD_SHARE = 0.1
FIXED = ("source", "kind", "seed", "budget", "scale", "principles", "gold_share")
"""Settings that a database keeps: votes under others could not be read together."""


@dataclass(frozen=True)
class Study:
    """What is asked for on the command line; None where nothing is, which is the database's own
    value, or for a new one the default.

    `source` is a run folder or a file, `models` the evaluated models whose held-out answers are
    taken from a run, `principles` the ids of those asked about. `lease` is in seconds.
    """

    source: str | None = None
    from_: str | None = None
    models: Sequence[str] = ()
    rate: bool = False
    scale: Path | None = None
    constitution: str | None = None
    principles: Sequence[str] | None = None
    seed: int | None = None
    budget: int | None = None
    gold: Path | None = None
    gold_share: float | None = None
    overlap: int | None = None
    prelabels: Prelabels | None = None
    lease: float | None = None


def open_study(db: Path, study: Study) -> VoteStore:
    """The database, made from the study's items where there is none. Raises RlaifError."""
    if not db.exists():
        if study.source is None:
            raise ConfigError(
                f"{db} does not exist yet: name the run or the file of pairs that it is to be made "
                f"from, as in `rlaif annotate PAIRS --db {db}`"
            )
        create_votes(db, *make_study(study))
    else:
        _compare(db, study)
    store = VoteStore(db)
    changed = {
        name: value
        for name in ("overlap", "prelabels", "lease")
        if (value := getattr(study, name)) is not None and value != getattr(store.settings, name)
    }
    if changed:
        store.change_settings(structs.replace(store.settings, **changed))
    return store


def make_study(study: Study) -> tuple[VoteSettings, list[VoteItem]]:
    """The settings and the drawn items of a new database. Raises ConfigError."""
    from rlaif.web.annotate.items import (
        apply_principles,
        draw_items,
        load_gold,
        mark_gold,
        unique_items,
    )

    seed = study.seed or 0
    items = _load_items(study)
    settings = _settings_of(study, len(items))
    if study.gold is not None:
        known = load_gold(study.gold, study.rate)
        # A gold question that is also among the items is asked as one.
        items = unique_items([*items, *known])
    elif settings.gold_share:
        items = mark_gold(items, settings.gold_share, seed)
    drawn = draw_items(items, study.budget, seed)
    return settings, apply_principles(drawn, _principles_of(study))


def _load_items(study: Study) -> list[VoteItem]:
    assert study.source is not None, "a new database has a source"
    if _is_run(study.source):
        if study.from_ is not None:
            raise ConfigError("--from is the format of a file, and this is a run", study.source)
        from rlaif.pipeline.runs import load_run
        from rlaif.web.annotate.run_items import run_items

        return run_items(load_run(study.source), study.rate, study.models)
    if study.models:
        raise ConfigError("--evaluation takes a run folder, and this is none", study.source)
    from rlaif.web.annotate.items import file_items

    items = file_items(find(study.source), study.rate, study.from_)
    if not items:
        raise ConfigError("no pair to vote on", study.source)
    return items


def _is_run(source: str) -> bool:
    return (Path(source) / "manifest.json").is_file()


def _settings_of(study: Study, population: int) -> VoteSettings:
    given: dict[str, Any] = {
        "budget": study.budget,
        "overlap": study.overlap,
        "prelabels": study.prelabels,
        "lease": study.lease,
    }
    return VoteSettings(
        source=_describe_source(study),
        kind="rating" if study.rate else "pair",
        seed=study.seed or 0,
        population=population,
        scale=_scale_of(study),
        principles=[_asked(principle) for principle in _principles_of(study)],
        gold_share=_gold_share_of(study),
        **{name: value for name, value in given.items() if value is not None},
    )


def _describe_source(study: Study) -> str:
    parts = [str(study.source)]
    if study.models:
        parts.append(f"held-out answers of {' and '.join(study.models)}")
    if study.gold is not None:
        parts.append(f"gold questions of {study.gold}")
    return ", ".join(parts)


def _gold_share_of(study: Study) -> float:
    default = 0.0 if study.gold is None else GOLD_SHARE
    return default if study.gold_share is None else study.gold_share


def _scale_of(study: Study) -> dict[int, str]:
    if study.scale is None:
        return dict(SCALE) if study.rate else {}
    if not study.rate:
        raise ConfigError("--scale describes ratings, which --rate asks for")
    return read_scale(study.scale)


def read_scale(path: Path) -> dict[int, str]:
    """The levels of a rating by their number, from a YAML file such as `1: of no use`, in order.
    Raises ConfigError."""
    data: Any = load_yaml(path)[0]
    fits = (
        isinstance(data, dict)
        and 2 <= len(data) <= 11
        and all(type(k) is int and isinstance(v, str) and v.strip() for k, v in data.items())
    )
    if not fits:
        raise ConfigError(
            "a mapping of 2 to 11 whole numbers to what they mean was expected, such as "
            "`1: of no use`",
            path,
        )
    return dict(sorted(data.items()))


def _principles_of(study: Study) -> list[Principle]:
    """The principles that people are asked about: those with a text, of the constitution that is
    named or the run's. Raises ConfigError."""
    constitution = _constitution_of(study)
    if constitution is None:
        if study.principles:
            raise ConfigError("--principles: there is no constitution; give one (--constitution)")
        return []
    return [p for p in constitution.select(study.principles) if p.text]


def _constitution_of(study: Study) -> Constitution | None:
    if study.constitution is not None:
        from rlaif.constitution.model import load_constitution

        return load_constitution(find(study.constitution))
    if study.source is not None and _is_run(study.source):
        from rlaif.pipeline.constitutions import has_constitution, run_constitution
        from rlaif.pipeline.runs import load_run

        run = load_run(study.source)
        return run_constitution(run) if has_constitution(run) else None
    return None


def _asked(principle: Principle) -> AskedPrinciple:
    return AskedPrinciple(principle.id, principle.text, principle.scale or {})


def _compare(db: Path, study: Study) -> None:
    """Raises ConfigError where a study asks for what its database does not hold."""
    known = read_settings(db)
    asked = _settings_of(study, 0)
    given = {
        "source": study.source is not None,
        "kind": study.source is not None or study.rate,
        "seed": study.seed is not None,
        "budget": study.budget is not None,
        "scale": study.scale is not None,
        "principles": study.constitution is not None or study.principles is not None,
        "gold_share": study.gold_share is not None,
    }
    for name in FIXED:
        own, wanted = getattr(known, name), getattr(asked, name)
        if given[name] and own != wanted:
            raise ConfigError(
                f"its {name.replace('_', ' ')} is {_brief(own)}, and {_brief(wanted)} is asked "
                "for; start another database with --db, or leave "
                f"{'the pairs' if name == 'source' else 'the option'} out",
                db,
            )


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(principle.id for principle in value) or "none"
    return str(value)
