"""Commands that measure and make principles: `rlaif constitution ablate`, `infer`, `fit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.options import (
    ALLOW_CODE,
    ARM,
    COUNT,
    FILE,
    JSON,
    MODEL,
    NO_SEED,
    QUIET,
    RESAMPLES,
    SEED,
    ReadOptions,
    constitution_of,
    echo_table,
    progress_of,
    read_options,
    shown,
)
from rlaif.core.errors import EXIT_USER

if TYPE_CHECKING:
    from rlaif.analysis.inverse_constitution.rank import Ranked
    from rlaif.constitution.model import Constitution
    from rlaif.core.labelled import LabelledPair
    from rlaif.metrics.votes import FittedWeight, VotedPair, WeightFit

FEW_PROMPTS = 64
"""Fewer than these do not tell how far a coefficient is shrunk (benchmarks/coverage.py)."""


@click.command()
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--labels", type=FILE, help="Labelled pairs of this run's answers.")
@ARM
@read_options
@NO_SEED
@JSON
def ablate(
    folder: Path, labels: Path | None, arm: str | None, reading: ReadOptions, as_json: bool
) -> None:
    """Measure the effect of each principle of RUN by leaving it out.

    Counts how many preferences would flip, using stored judgements only. With --labels: agreement
    with human labels, with and without each principle.
    """
    from rlaif.analysis.whatif import ablate_principles as left_out
    from rlaif.analysis.whatif import left_out_words
    from rlaif.pipeline.runs import load_run

    pairs = None if labels is None else reading.load_pairs(labels)
    made = left_out(load_run(folder), pairs, arm)
    if as_json:
        click.echo(json.dumps(made.to_json(), ensure_ascii=False))
        return
    rows = []
    for row in made.rows:
        change = row.effect
        rows.append(
            {
                "left out": row.principle,
                "weight": f"{row.weight:g}",
                "judgements": str(row.judgements),
                "flipped": f"{change.flipped} of {change.preferences}",
                "tied": str(change.tied),
                "no score": str(change.missing),
                "flip rate": shown(change.flip_rate),
                "other pairs": shown(change.other_pairs),
            }
        )
        if pairs is not None:
            rows[-1]["agreement"] = shown(row.agreement)
            rows[-1]["change"] = shown(row.change, signed=True)
    echo_table(rows)
    if not rows:
        click.echo(
            "nothing to leave out: no counted judgement is about one principle of positive weight "
            "(a judge that sees the principles together says nothing of each)"
        )
    if pairs is not None:
        click.echo(
            f"agreement with {made.labelled} labels, nothing left out: {shown(made.agreement)}"
        )
        _warn_strange(made.strange)
    if made.arms_left_out:
        click.echo(left_out_words(made.arms_left_out), err=True)


@click.command()
@click.argument("pairs", type=FILE)
@click.option("--out", type=FILE, required=True, help="The YAML file to write.")
@click.option("--work", type=FILE, help="Folder for the model's answers [default: next to --out].")
@click.option("--pairs", "most", type=COUNT, default=200, help="Maximum pairs to vote on.")
@click.option("--propose", type=COUNT, default=50, help="Number of pairs to explain.")
@click.option("--candidates", type=COUNT, default=20, help="Candidates to vote on.")
@click.option("--keep", type=COUNT, default=10, help="Maximum principles to write.")
@MODEL
@read_options
@SEED
@QUIET
@JSON
def infer(
    pairs: Path,
    out: Path,
    work: Path | None,
    most: int,
    propose: int,
    candidates: int,
    keep: int,
    model: str,
    reading: ReadOptions,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Infer principles that explain labelled PAIRS.

    Inverse constitutional AI; the principles are written as a constitution. Run the same command
    again to resume; no question is asked twice.
    """
    from dataclasses import asdict

    from rlaif.analysis.inverse_constitution.rank import constitution_yaml
    from rlaif.analysis.inverse_constitution.run import InferOptions
    from rlaif.analysis.inverse_constitution.run import infer_principles as inferred
    from rlaif.core.store import write_atomic
    from rlaif.pipeline.single_step import asking, named_model

    labelled, asked = reading.load_pairs(pairs), named_model(model)
    options = InferOptions(most, propose, candidates, seed)
    with asking(work or out.with_suffix(".work")) as (store, engines):
        found = inferred(labelled, asked, engines, store, options, progress_of(quiet))
    kept = found.kept[:keep]
    if kept:
        about = f"Inferred from {found.pairs} labelled pairs of {pairs.name} by {Path(model).stem}."
        write_atomic(out, constitution_yaml(out.stem, about, kept))
    if as_json:
        click.echo(json.dumps({**asdict(found), "kept": [r.id for r in kept]}, ensure_ascii=False))
    else:
        echo_table([_ranked_row(row) for row in found.ranked])
        click.echo(f"{found.proposals} proposals, compared by {found.similarity}")
        click.echo(f"the longer answer was preferred in {found.longer:.1%} of {found.pairs} pairs")
        click.echo(f"{len(kept)} principles written to {out}" if kept else _NOTHING_KEPT)
    if not kept:
        sys.exit(EXIT_USER)


_NOTHING_KEPT = (
    "no principle was right more often than wrong, so nothing was written; give more pairs or a "
    "larger model"
)


def _ranked_row(row: Ranked) -> dict[str, str]:
    votes = row.votes
    return {
        "principle": row.id,
        "for": str(votes["for"]),
        "against": str(votes["against"]),
        "n/a": str(votes["not_applicable"]),
        "unread": str(votes["invalid"]),
        "accuracy": shown(row.interval),
        "relevance": f"{row.relevance:.2f}",
        "performance": f"{row.performance:+.2f}",
        "kept": "yes" if row.kept else "no",
        "text": row.text,
    }


@click.command()
@click.argument("data", metavar="RUN|PAIRS", type=FILE)
@click.option("--labels", type=FILE, help="With RUN: labelled pairs of the run's answers.")
@click.option("--constitution", "path", type=FILE, help="The file whose weights are fitted.")
@click.option("--out", type=FILE, help="Write the constitution with the fitted weights here.")
@click.option("--judge", "judges", multiple=True, help="With RUN: the judges to use.")
@ARM
@click.option(
    "--kind",
    type=click.Choice(["yes_no", "pairwise", "rating"]),
    default="yes_no",
    help="With PAIRS: the judge for principles without a check.",
)
@click.option(
    "--work", type=FILE, help="With PAIRS: folder for judgements [default: next to --out or PAIRS]."
)
@click.option("--folds", type=click.IntRange(min=2), default=5, help="Folds of prompts.")
@RESAMPLES
@MODEL
@ALLOW_CODE
@read_options
@SEED
@QUIET
@JSON
def fit(
    data: Path,
    labels: Path | None,
    path: Path | None,
    out: Path | None,
    judges: tuple[str, ...],
    arm: str | None,
    kind: str,
    work: Path | None,
    folds: int,
    model: str,
    reading: ReadOptions,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fit principle weights to human labels.

    Cross-validated over prompts. RUN with --labels needs no model. With PAIRS and --constitution,
    the pairs are judged first.
    """
    from dataclasses import asdict

    from rlaif.analysis.fit_weights import fitted, judges_of, pair_votes
    from rlaif.core.errors import ConfigError
    from rlaif.pipeline.single_step import asking, named_model

    if data.is_dir():
        if labels is None:
            raise ConfigError("a run needs --labels FILE, labelled pairs of its answers", data)
        used, voted = _votes_of_run(data, reading.load_pairs(labels), judges, arm)
    else:
        if arm is not None:
            raise ConfigError("--arm is an arm of a run, and this is a file of pairs", data)
        pairs = reading.load_pairs(data)
        if path is None:
            raise ConfigError("labelled pairs need --constitution FILE, whose weights are fitted")
        used = constitution_of(path)
        asked = judges_of(used, kind)
        spec = named_model(model) if any(judge.needs for judge in asked) else None
        with asking(work or (out or data).with_suffix(".work")) as (store, engines):
            voted = pair_votes(pairs, asked, spec, engines, store, progress_of(quiet), seed)
    made = fitted(voted, used, folds, seed)
    if as_json:
        click.echo(json.dumps(asdict(made), ensure_ascii=False))
    else:
        _show_fit(made)
    if out is not None:
        _write_weights(out, path, used, {row.principle: row.weight for row in made.weights})
        click.echo(f"weights written to {out}", err=as_json)


def _votes_of_run(
    folder: Path, pairs: Sequence[LabelledPair], judges: Sequence[str], arm: str | None
) -> tuple[Constitution, list[VotedPair]]:
    """The constitution that a run's judges used, and their votes on labelled pairs of its answers;
    warns of what is left out."""
    from rlaif.analysis.fit_weights import fitted_constitution, run_votes
    from rlaif.analysis.whatif import left_out_words, load_pairings
    from rlaif.pipeline.constitutions import arms_alike, judges_constitutions
    from rlaif.pipeline.runs import load_run

    run = load_run(folder)
    used, apart = fitted_constitution(run, judges, arm), judges_constitutions(run, arm)
    voted, strange = run_votes(load_pairings(run, arm), pairs, judges, apart)
    _warn_strange(strange)
    left_out = arms_alike(run, arm)[1]
    if left_out:
        click.echo(left_out_words(left_out), err=True)
    return used, voted


def _warn_strange(count: int) -> None:
    if count:
        click.echo(f"{count} labelled pairs are not about two answers of this run", err=True)


def _show_ends(row: FittedWeight) -> str:
    return "" if row.low is None or row.high is None else f"[{row.low:+.3f}, {row.high:+.3f}]"


def _show_fit(made: WeightFit) -> None:
    echo_table(
        [
            {
                "principle": row.principle,
                "votes": str(row.votes),
                "coefficient": f"{row.coefficient:+.3f} {_show_ends(row)}",
                "weight": f"{row.weight:.4g}",
                "was": f"{row.current:g}",
            }
            for row in made.weights
        ]
    )
    click.echo(
        f"{made.pairs} pairs of {made.prompts} prompts ({made.left_out} left out: a vote is "
        f"missing), l2 {made.l2:.3g}, held-out log loss {made.log_loss:.3f}"
    )
    if made.prompts < FEW_PROMPTS:
        click.echo(
            f"coefficients are shrunk towards 0, and of {made.prompts} prompts their intervals are "
            "too narrow for what people follow"
        )
    click.echo(f"held-out agreement:  {shown(made.agreement)}")
    click.echo(f"with the old weights: {shown(made.current_agreement)}")
    click.echo(f"difference:          {shown(made.change, signed=True)}")


def _write_weights(
    out: Path, path: Path | None, used: Constitution, weights: Mapping[str, float]
) -> None:
    """The file with its text and comments where there is one; the resolved constitution else."""
    from rlaif.constitution.edit import with_weights
    from rlaif.constitution.model import reweight_principles
    from rlaif.constitution.model import show_constitution as as_yaml
    from rlaif.core.resources import find
    from rlaif.core.store import write_atomic

    if path is None:
        text = as_yaml(reweight_principles(used, weights))
    else:
        text = with_weights(find(str(path)), weights)
    write_atomic(out, text)
