"""Commands on constitutions: lint, show, diff, import, ablate, infer, fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import JSON, MODEL, QUIET, SEED, progress_of
from rlaif.errors import EXIT_USER

if TYPE_CHECKING:
    from rlaif.constitution import Constitution
    from rlaif.data.labelled import LabelledPair

FILE = click.Path(path_type=Path)
FROM = click.option("--from", "from_", help="The format of the labelled pairs [default: found].")
COLUMNS = click.option("--columns", type=FILE, help="A YAML column map of the labelled pairs.")


@click.group()
def constitution() -> None:
    """Check, show, compare, import, ablate, infer and fit constitutions."""


@constitution.command("lint")
@click.argument("paths", nargs=-1, required=True, type=FILE)
@click.option("--prompts", type=FILE, help="Report what applies to none of these prompts.")
@click.option("--revise", is_flag=True, help="Every principle must have a critique and a revision.")
@JSON
def lint(paths: tuple[Path, ...], prompts: Path | None, revise: bool, as_json: bool) -> None:
    """Problems in constitution files: exit code 2 when one is an error."""
    from dataclasses import asdict

    from rlaif.constitution import load_with_places
    from rlaif.lint import lint as doubts
    from rlaif.resources import find

    asked = []
    if prompts is not None:
        from rlaif.data.sources import every_prompt

        asked = every_prompt(prompts)
    found = []
    for path in paths:
        place = find(str(path))
        loaded, places = load_with_places(place)
        found += [(place, f) for f in doubts(loaded, places, asked, revise)]
    if as_json:
        rows = [{"file": str(p), **asdict(f)} for p, f in found]
        click.echo(json.dumps(rows, ensure_ascii=False, default=str))
    else:
        for path, finding in found:
            where = f"{finding.path or path}:{finding.line or 1}"
            name = f"{finding.principle}: " if finding.principle else ""
            click.echo(f"{where}: {finding.level}: {name}{finding.message}")
        click.echo(f"{len(paths)} files, {len(found)} findings")
    if any(f.level == "error" for _, f in found):
        sys.exit(EXIT_USER)


@constitution.command("show")
@click.argument("path", type=FILE)
@click.option("--table", is_flag=True, help="One line per principle instead of the YAML.")
@JSON
def show(path: Path, table: bool, as_json: bool) -> None:
    """The constitution as it is after `extends`."""
    from rlaif.constitution import show as as_yaml
    from rlaif.constitution import summary

    loaded = _load(path)
    if as_json:
        click.echo(json.dumps(loaded.model_dump(mode="json"), ensure_ascii=False))
    elif table:
        click.echo(f"{loaded.name}, version {loaded.version}: {len(loaded.principles)} principles")
        if loaded.description:
            click.echo(loaded.description)
        _table(summary(loaded))
    else:
        click.echo(as_yaml(loaded))


@constitution.command("diff")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--run", "folder", type=FILE, help="A run by FIRST: the effect on its records.")
@JSON
def diff(first: Path, second: Path, folder: Path | None, as_json: bool) -> None:
    """What changed from FIRST to SECOND, principle by principle."""
    from dataclasses import asdict

    from rlaif.changes import changes

    before, after = _load(first), _load(second)
    found = changes(before, after)
    reach = None
    if folder is not None:
        from rlaif.reach import reach as reach_of
        from rlaif.runs import load_run

        reach = reach_of(load_run(folder), before, after)
    if as_json:
        rows: dict[str, Any] = {"changes": [asdict(change) for change in found]}
        if reach is not None:
            rows["run"] = asdict(reach)
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    click.echo("\n".join(map(str, found)) or "no difference")
    if reach is not None:
        click.echo("\n".join(reach.lines()))


@constitution.command("import")
@click.argument("path", type=FILE)
@click.option("--out", type=FILE, required=True, help="The YAML file to write.")
@click.option("--name", help="The constitution's name [default: the file's].")
def import_(path: Path, out: Path, name: str | None) -> None:
    """A constitution in another project's JSON as a YAML file of ours.

    Read are {"NAME": {"prompt": [...], "edit_request": ...}} and {"constitutions": [{"critic",
    "revision"}]}.
    """
    from rlaif.constitution import show as as_yaml
    from rlaif.data.constitutions import import_constitution

    made, left = import_constitution(path, name)
    _write(out, as_yaml(made))
    click.echo(f"{len(made.principles)} principles written to {out}")
    for line in left:
        click.echo(f"left out: {line}")


@constitution.command("ablate")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--labels", type=FILE, help="Labelled pairs of answers of this run.")
@FROM
@COLUMNS
@SEED
@JSON
def ablate(
    folder: Path,
    labels: Path | None,
    from_: str | None,
    columns: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Leave out one principle at a time: how many preferences of RUN would flip?

    From its stored judgements alone. With --labels: agreement with people, with and without each
    principle.
    """
    from rlaif.ablate import ablate as left_out
    from rlaif.runs import load_run

    pairs = None if labels is None else _labelled(labels, from_, columns)
    made = left_out(load_run(folder), pairs, seed)
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
                "flip rate": _interval(change.flip_rate),
                "other pairs": _interval(change.other_pairs),
            }
        )
        if pairs is not None:
            rows[-1]["agreement"] = _interval(row.agreement)
            rows[-1]["change"] = _interval(row.change, signed=True)
    _table(rows)
    if pairs is not None:
        click.echo(
            f"agreement with {made.labelled} labels, nothing left out: {_interval(made.agreement)}"
        )


@constitution.command("infer")
@click.argument("pairs", type=FILE)
@click.option("--out", type=FILE, required=True, help="The YAML file to write.")
@click.option("--work", type=FILE, help="Folder for what the model said [default: beside --out].")
@click.option("--pairs", "most", default=200, show_default=True, help="Pairs to vote on, at most.")
@click.option("--propose", default=50, show_default=True, help="Of these, pairs to explain.")
@click.option("--candidates", default=20, show_default=True, help="Principles to vote on.")
@click.option("--keep", default=10, show_default=True, help="Principles to write, at most.")
@MODEL
@FROM
@COLUMNS
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
    from_: str | None,
    columns: Path | None,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Principles that explain labelled PAIRS (inverse constitutional AI), as a constitution.

    The same command goes on where it was stopped, and asks nothing twice.
    """
    from dataclasses import asdict

    from rlaif.files import asking, named_model
    from rlaif.infer.rank import constitution_yaml
    from rlaif.infer.run import InferOptions
    from rlaif.infer.run import infer as inferred

    with asking(work or out.with_suffix(".work")) as (store, engines):
        options = InferOptions(most, propose, candidates, seed)
        found = inferred(
            _labelled(pairs, from_, columns),
            named_model(model),
            engines,
            store,
            options,
            progress_of(quiet),
        )
    kept = found.kept[:keep]
    if kept:
        about = f"Inferred from {found.pairs} labelled pairs of {pairs.name} by {Path(model).stem}."
        _write(out, constitution_yaml(out.stem, about, kept))
    if as_json:
        click.echo(json.dumps({**asdict(found), "kept": [r.id for r in kept]}, ensure_ascii=False))
    else:
        _table([_ranked_row(row) for row in found.ranked])
        click.echo(f"{found.proposals} proposals, compared by {found.similarity}")
        click.echo(f"the longer answer was preferred in {found.longer:.1%} of {found.pairs} pairs")
        click.echo(f"{len(kept)} principles written to {out}" if kept else _NOTHING_KEPT)
    if not kept:
        sys.exit(EXIT_USER)


_NOTHING_KEPT = (
    "no principle was right more often than wrong, so nothing was written; give more pairs or a "
    "larger model"
)


def _ranked_row(row: Any) -> dict[str, str]:
    votes = row.votes
    return {
        "principle": row.id,
        "for": str(votes["for"]),
        "against": str(votes["against"]),
        "n/a": str(votes["not_applicable"]),
        "unread": str(votes["invalid"]),
        "accuracy": _interval(row.interval),
        "relevance": f"{row.relevance:.2f}",
        "performance": f"{row.performance:+.2f}",
        "kept": "yes" if row.kept else "no",
        "text": row.text,
    }


@constitution.command("fit")
@click.argument("data", metavar="RUN|PAIRS", type=FILE)
@click.option("--labels", type=FILE, help="With RUN: labelled pairs of its answers.")
@click.option("--constitution", "path", type=FILE, help="The file whose weights are fitted.")
@click.option("--out", type=FILE, help="Write the constitution with the fitted weights here.")
@click.option("--judge", "judges", multiple=True, help="With RUN: the judges that count.")
@click.option(
    "--kind",
    type=click.Choice(["yes_no", "pairwise", "rating"]),
    default="yes_no",
    show_default=True,
    help="With PAIRS: the judge of principles that no check decides.",
)
@click.option(
    "--work", type=FILE, help="With PAIRS: folder for judgements [default: beside --out or PAIRS]."
)
@click.option("--folds", default=5, show_default=True, help="Folds of prompts.")
@click.option("--resamples", default=500, show_default=True, help="Bootstrap draws.")
@MODEL
@FROM
@COLUMNS
@SEED
@QUIET
@JSON
def fit(
    data: Path,
    labels: Path | None,
    path: Path | None,
    out: Path | None,
    judges: tuple[str, ...],
    kind: str,
    work: Path | None,
    folds: int,
    resamples: int,
    model: str,
    from_: str | None,
    columns: Path | None,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Principle weights by which people's labels are met best, cross-validated over prompts.

    RUN with --labels needs no model. PAIRS with --constitution judges the pairs first.
    """
    from dataclasses import asdict

    from rlaif.errors import ConfigError
    from rlaif.fit import fitted, judges_of, pair_votes, run_votes

    if data.is_dir():
        from rlaif.runs import load_run
        from rlaif.whatif import load_pairings, run_constitution

        if labels is None:
            raise ConfigError("a run needs --labels FILE, labelled pairs of its answers", data)
        run = load_run(data)
        used = run_constitution(run)
        voted = run_votes(load_pairings(run), _labelled(labels, from_, columns), judges)
    else:
        from rlaif.files import asking, named_model

        if path is None:
            raise ConfigError("labelled pairs need --constitution FILE, whose weights are fitted")
        used = _load(path)
        pairs = _labelled(data, from_, columns)
        with asking(work or (out or data).with_suffix(".work")) as (store, engines):
            voted = pair_votes(
                pairs,
                judges_of(used, kind),
                named_model(model),
                engines,
                store,
                progress_of(quiet),
                seed,
            )
    made = fitted(voted, used, folds, seed, resamples)
    if as_json:
        click.echo(json.dumps(asdict(made), ensure_ascii=False))
    else:
        _show_fit(made)
    if out is not None:
        _write_weights(out, path, used, {row.principle: row.weight for row in made.weights})
        click.echo(f"weights written to {out}", err=as_json)


def _show_fit(made: Any) -> None:
    _table(
        [
            {
                "principle": row.principle,
                "votes": str(row.votes),
                "coefficient": f"{row.coefficient:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
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
    click.echo(f"held-out agreement:  {_interval(made.agreement)}")
    click.echo(f"with the old weights: {_interval(made.current_agreement)}")
    click.echo(f"difference:          {_interval(made.change, signed=True)}")


def _write_weights(
    out: Path, path: Path | None, used: Constitution, weights: Mapping[str, float]
) -> None:
    """The file with its text and comments where there is one; the resolved constitution else."""
    from rlaif.amend import with_weights
    from rlaif.constitution import reweighted
    from rlaif.constitution import show as as_yaml
    from rlaif.resources import find

    if path is None:
        _write(out, as_yaml(reweighted(used, weights)))
    else:
        _write(out, with_weights(find(str(path)), weights))


def _load(path: Path) -> Constitution:
    from rlaif.constitution import load_constitution
    from rlaif.resources import find

    return load_constitution(find(str(path)))


def _labelled(path: Path, from_: str | None, columns: Path | None) -> list[LabelledPair]:
    from rlaif.data.readers import load_columns, read_labelled

    return list(read_labelled(path, from_, load_columns(columns) if columns else None))


def _write(path: Path, text: str) -> None:
    from rlaif.store import write_atomic

    write_atomic(path, text)


def _interval(value: Any, signed: bool = False) -> str:
    from rlaif.compare.bootstrap import show_interval

    return "-" if value is None else show_interval(value.to_json(), signed)


def _table(rows: Sequence[Mapping[str, str]]) -> None:
    """Columns under their names; the last one is not padded."""
    if not rows:
        return
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    for line in [dict(zip(names, names, strict=True)), *rows]:
        cells = [line[name].ljust(width) for name, width in zip(names, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
