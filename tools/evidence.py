"""Run the experiments of `evidence.yaml` and write experiments/EVIDENCE.md from their run folders.

    python tools/evidence.py [NAME ...] [--runs DIR] [--no-run] [--check]

Each seed of a system is a run, in DIR/NAME-SEED (default runs/evidence); a run that was interrupted
goes on. The page has a part for each system of which all seeds are done, pooled over the seeds.
A part whose run folders are not here stays as it is while its config hash is that of the file; the
other systems are listed as not run. `--no-run` only writes the page, `--check` writes nothing and
fails if the page is another one than the run folders give.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.core.records import content_hash  # noqa: E402
from rlaif.metrics.claims import answer_of  # noqa: E402
from rlaif.metrics.figure_rules import without_set  # noqa: E402
from rlaif.metrics.intervals import (  # noqa: E402
    IntervalJson,
    direction,
    prompts_of,
    show_interval,
)
from rlaif.metrics.ranking import ANCHOR  # noqa: E402
from rlaif.pipeline.plan.unroll import make_plan  # noqa: E402
from rlaif.pipeline.prepare import prepare  # noqa: E402
from rlaif.pipeline.runs import Run, load_run  # noqa: E402
from rlaif.report.arenas import (  # noqa: E402
    ArenaGroup,
    ArenaTable,
    Ends,
    RatedModel,
    make_arena_table,
)
from rlaif.report.merged import Page, make_page  # noqa: E402

TABLE = ROOT / "tools" / "evidence.yaml"
EXPERIMENTS = ROOT / "experiments"
PAGE = EXPERIMENTS / "EVIDENCE.md"
DATA = Path(os.environ.get("RLAIF_DATA") or ROOT.parent / "shared" / "data")
ON_UNIT_SCALE = ("score/", "check/", "reward_accuracy/")
"""Figures from 0 to 1 of which more is better, so that the margin applies."""
VERDICTS = {
    "better": "is better than",
    "better within": "is better than",
    "worse": "is worse than",
    "worse within": "is worse than",
    "same": "is the same within the margin as",
    "unknown": "cannot be told from",
}
OUTCOMES = {
    "better": " is better than ",
    "worse": " is worse than ",
    "the same": " is the same within the margin as ",
    "cannot tell": " cannot be told from ",
}
"""What a sentence of a score says, by its column of the table."""
OF_SCORE = re.compile(rf" in (\S+:)?({'|'.join(ON_UNIT_SCALE)})")
HEAD = """\
# Evidence

The systems of `tools/evidence.yaml` at their small size, as they came out. This page is written by
`make evidence` from run folders: no number and no sentence of a result is written by hand. Seeds,
metrics and what this size can say were fixed in the table before the first run. Intervals are 95%,
over prompts for one seed and over seeds and prompts for three. A score is called better or worse by
its interval, and the same if its 90% interval is within {margin} of no difference; otherwise the
run cannot tell. A result that shows nothing is listed like any other. A part names the machine it
was run on, and is dropped when its file changes. The table counts the scores of each part by how
they came out; the other figures are lengths, distances, and how often a judge was right.
"""


@dataclass(frozen=True, slots=True)
class System:
    """A row of the table: `metrics` of each policy against M0, `compare` of the arms, `bench` the
    judges that are measured, `arenas` the steps whose ratings are shown. `evaluations` are the
    steps whose policies are shown, against all that they are compared with; by default the last
    one's, against M0. `data` is a file of people's labels that the experiment reads, in the folder
    that RLAIF_DATA names."""

    name: str
    seeds: list[int]
    shows: str
    cannot: str
    metrics: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    bench: list[str] = field(default_factory=list)
    arenas: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    data: str | None = None

    def settings(self, seed: int) -> list[str]:
        """What is set in the file for one seed, with the place of the data."""
        return [f"seed={seed}", *([f"data={DATA / self.data}"] if self.data else [])]

    def lacks_data(self) -> bool:
        """Whether the system's data is not on this machine."""
        return self.data is not None and not (DATA / self.data).exists()

    def folders(self, runs: Path) -> dict[int, Path]:
        """The run folder of each seed."""
        return {seed: runs / f"{self.name}-{seed}" for seed in self.seeds}


@dataclass(frozen=True, slots=True)
class Pooled:
    """The runs of a system by seed, and the page of all of them."""

    runs: dict[int, Run]
    page: Page


def pool(folders: Mapping[int, Path]) -> Pooled:
    """The runs in these folders as one, their seeds merged as those of one run are."""
    runs = {seed: load_run(folder) for seed, folder in folders.items()}
    experiment = next(iter(runs.values())).experiment()
    page = make_page(
        [row for run in runs.values() for row in run.round_rows()],
        [row for run in runs.values() for row in run.comparisons()],
        lambda arm, seed, point: runs[seed].values(arm, seed, point),
        experiment.primary,
        experiment.trained_judges,
    )
    return Pooled(runs, page)


def read_table(path: Path = TABLE) -> tuple[float, list[System]]:
    """The margin and the systems. Raises TypeError for an unknown key."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data["margin"], [System(name, **row) for name, row in data["systems"].items()]


def command(system: System, settings: Sequence[str], out: Path) -> list[str]:
    """The command that runs, or goes on with, one seed of a system."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["rlaif", "run", f"experiments/{system.name}.yaml", "--out", str(out), *sets]


def run_system(system: System, runs: Path) -> bool:
    """Run what is missing of a system; whether all of it is done. The machine that each run was
    made on is noted beside its folder."""
    runs.mkdir(parents=True, exist_ok=True)
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    for seed, folder in system.folders(runs).items():
        machine = folder.with_name(f"{folder.name}.machine.json")
        if not machine.exists():
            machine.write_text(json.dumps(describe_machine()) + "\n", encoding="utf-8")
        made = command(system, system.settings(seed), folder)
        words = [sys.executable, "-m", *made, "--quiet"]
        if subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode != 0:
            return False
    return True


def describe_machine() -> dict[str, Any]:
    """The processor, its cores, and the dtype that models have on it."""
    from rlaif.kernels.device import pick_device, pick_dtype

    device = pick_device("auto")
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "device": str(device),
        "dtype": str(pick_dtype("auto", device)).removeprefix("torch."),
    }


def processor_name() -> str:
    """As the kernel calls it, where it has a name."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def is_done(system: System, runs: Path, files: Path = EXPERIMENTS) -> bool:
    """Whether every seed has been run, with all the steps that the system's file has today, which
    cannot be told without its data."""
    if system.lacks_data():
        return False
    for seed, folder in system.folders(runs).items():
        if not (folder / "manifest.json").exists():
            return False
        run = load_run(folder)
        made = sorted({step["hash"] for step in run.manifest["steps"]})
        if run.status()["state"] != "done":
            return False
        if made != step_hashes(system, files, seed, folder):
            return False
    return True


def change_sentence(name: str, metric: str, change: IntervalJson, base: str, margin: float) -> str:
    """What a difference says: better, worse, the same or unknown of a score; of another figure
    whether it rose or fell."""
    shown = f"{show_interval(change, signed=True)}, {prompts_of(change)} prompts"
    if without_set(metric).startswith(ON_UNIT_SCALE):
        verdict = answer_of(change, margin).verdict
        within = ", by less than the margin" if verdict.endswith("within") else ""
        return f"{name} {VERDICTS[verdict]} {base} in {metric}{within} ({shown})."
    side = direction(change)
    moved = "is higher than" if side > 0 else "is lower than" if side < 0 else "cannot be told from"
    return f"{metric} of {name} {moved} that of {base} ({shown})."


def policy_sentences(page: Page, system: System, margin: float) -> Iterator[str]:
    """Each arm's last policy against M0, a sentence for every metric, or the policies of
    `evaluations` against each of the others."""
    wanted = [r for r in page.rounds if r["step"] in system.evaluations and r["label"] != "M0"]
    rows = wanted or page.latest
    for row in rows:
        arms = len({other["arm"] for other in rows})
        name = row["label"] if arms == 1 else f"{row['label']} of arm {row['arm']}"
        deltas = row["metrics"]["deltas"]
        for against in deltas if wanted else ["initial"]:
            base = "M0" if against == "initial" else f"the model of {against}"
            changes = deltas.get(against, {})
            for metric in system.metrics:
                if metric in changes:
                    yield change_sentence(name, metric, changes[metric], base, margin)
                elif metric in row["metrics"]["metrics"]:
                    value = show_interval(row["metrics"]["metrics"][metric])
                    yield f"{metric} of {name} is {value}; {base} has no such figure."
                else:
                    yield f"{metric} of {name} was not measured."


def arm_sentences(page: Page, system: System, margin: float) -> Iterator[str]:
    """The other arms against the first one."""
    for row in page.comparisons:
        first = row["arms"][0]
        for other in row["arms"][1:]:
            changes = row["deltas"].get(f"{first}/{other}", {})
            for metric in system.compare:
                if metric in changes:
                    names = f"arm {other}", f"arm {first}"
                    yield change_sentence(names[0], metric, changes[metric], names[1], margin)


def bench_sentences(runs: Mapping[int, Run], system: System) -> Iterator[str]:
    """How often each judge was right with each model that it asked, by seed."""
    for seed, run in runs.items():
        for row in run.view().benches:
            for place, judge in row["result"]["judges"].items():
                if judge["judge"] not in system.bench:
                    continue
                said = [show_agreement(judge)]
                both = judge.get("right_in_both_orders")
                said += [f"right in both orders {show_interval(both)}"] if both else []
                model = row["models"].get(place, "a program")
                yield f"Seed {seed}: judge {judge['judge']} by {model}: {'; '.join(said)}."


def show_agreement(judge: Mapping[str, Any]) -> str:
    """How often a judge was right on the pairs that it decided, and how many it did not decide."""
    others = f"{judge['ties']} ties, {judge['missing']} without a verdict"
    if judge["agreement"] is None:
        return f"it decided no pair ({others})"
    agreement = show_interval({**judge, "mean": judge["agreement"]})  # type: ignore[typeddict-item]
    return f"agreement {agreement} on {judge['n']} decided pairs ({others})"


def arena_sentences(runs: Mapping[int, Run], system: System) -> Iterator[str]:
    """How each arena rates its models against its anchor, by seed: by Bradley and Terry, and at
    equal style."""
    for seed, run in runs.items():
        for row in run.view().arenas:
            if row["id"] not in system.arenas:
                continue
            table = make_arena_table(row)
            for group in table.groups:
                for model in group.models:
                    if not model.is_anchor:
                        yield f"Seed {seed}: {rating_words(table, group, model)}."
            if table.slot_one is not None:
                share = show_interval(table.slot_one)
                yield f"Seed {seed}: arena {row['id']}: the first answer shown won {share}."


def rating_words(table: ArenaTable, group: ArenaGroup, model: RatedModel) -> str:
    """A model's ratings less those of the anchor, which has the same in every rating."""
    plain = show_rating(model.rating, model.rating_ends)
    style = show_rating(model.style, model.style_ends)
    arena = f"arena {table.title.partition(',')[0]}, judge {table.judge}, {table.judged} battles"
    against = group.anchor or "the mean of its group"
    return f"{arena}: {model.name} against {against} {plain}, at equal style {style}"


def show_rating(rating: float, ends: Ends) -> str:
    """Rating points above the anchor, with the ends of their interval."""
    low, high = ("none" if end is None else f"{round(end - ANCHOR):+d}" for end in ends)
    return f"{round(rating - ANCHOR):+d} [{low}, {high}]"


def alarm_words(runs: Mapping[int, Run]) -> str:
    """The alarms that fired, each with how often."""
    fired = [alarm for run in runs.values() for alarm in run.status()["alarms"]]
    count = Counter(alarm["name"] for alarm in fired)
    return ", ".join(f"{name} ({n})" for name, n in sorted(count.items())) or "none"


def machine_words(folders: Mapping[int, Path]) -> str:
    """The machines that the runs were made on, each once."""
    notes = [folder.with_name(f"{folder.name}.machine.json") for folder in folders.values()]
    found = [json.loads(note.read_text(encoding="utf-8")) for note in notes]
    words = [f"{m['processor']}, {m['cores']} cores, {m['device']}, {m['dtype']}" for m in found]
    return "; ".join(dict.fromkeys(words))


def step_hashes(system: System, files: Path, seed: int, out: Path | None = None) -> list[str]:
    """The hashes of the steps that the system's file has today, with the prompts that models wrote
    in the run folder `out`."""
    path = files / f"{system.name}.yaml"
    inputs = prepare(path, system.settings(seed), fetch=False, out=out)
    return sorted({planned.hash for planned in make_plan(inputs)})


def config_line(system: System, files: Path) -> str:
    """The beginning of the line that says what was run: the hash covers all that decides the
    results of the first seed, and the other seeds differ in the seed alone."""
    made = step_hashes(system, files, system.seeds[0])
    return f"Config {content_hash(made)[:12]}; seeds {', '.join(map(str, system.seeds))}; "


def parts_of(page: str) -> dict[str, str]:
    """The parts of a page by system."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part for part in parts}


def keeps(part: str, system: System, files: Path) -> bool:
    """Whether a part of the page is of the system's file and seeds as they are today. Without the
    data that it is of, a part stays."""
    if system.lacks_data():
        return True
    exists = (files / f"{system.name}.yaml").exists()
    return exists and f"\n{config_line(system, files)}" in part


def section(system: System, runs: Path, margin: float, files: Path = EXPERIMENTS) -> str:
    """A system's part of the page."""
    folders = system.folders(runs)
    pooled = pool(folders)
    first = next(iter(folders.values()))
    sentences = [
        *policy_sentences(pooled.page, system, margin),
        *arm_sentences(pooled.page, system, margin),
        *bench_sentences(pooled.runs, system),
        *arena_sentences(pooled.runs, system),
    ]
    settings = [f"seed={system.seeds[0]}", *([f"data={system.data}"] if system.data else [])]
    shown = command(system, settings, Path("runs/evidence") / first.name)
    return "\n".join(
        [
            f"## {system.name}",
            "",
            f"    {' '.join(shown)}",
            "",
            f"{config_line(system, files)}{machine_words(folders)}.",
            "",
            *[f"- {sentence}" for sentence in sentences],
            f"- Alarms: {alarm_words(pooled.runs)}.",
            "",
            f"*This size can show:* {system.shows}",
            f"*It cannot show:* {system.cannot}",
            "",
        ]
    )


def make_text(
    systems: Sequence[System],
    runs: Path,
    margin: float,
    page: str = "",
    files: Path = EXPERIMENTS,
) -> str:
    """The whole page, of what the run folders hold, and of what `page` had of the others."""
    before = parts_of(page)
    parts: dict[str, str] = {}
    rest = []
    for system in systems:
        if is_done(system, runs, files):
            parts[system.name] = section(system, runs, margin, files)
        elif system.name in before and keeps(before[system.name], system, files):
            parts[system.name] = before[system.name].rstrip("\n") + "\n"
        else:
            rest.append(system)
    texts = [HEAD.format(margin=margin), *([overview(parts)] if parts else []), *parts.values()]
    if rest:
        rows = [f"| {s.name} | {len(s.seeds)} | {s.shows} | {s.cannot} |" for s in rest]
        head = ["| system | seeds | this size can show | it cannot show |", "|---|---|---|---|"]
        texts.append("\n".join(["## Not run yet", "", *head, *rows, ""]))
    return "\n".join(texts)


def overview(parts: Mapping[str, str]) -> str:
    """How many scores of each part came out how, in a table: a row for each part."""
    head = ["system", "seeds", *OUTCOMES, "other figures", "alarms"]
    rows = []
    for name, part in parts.items():
        figures = [line for line in part.splitlines() if line.startswith("- ")]
        alarms = [line for line in figures if line.startswith("- Alarms: ")]
        scores = [line for line in figures if OF_SCORE.search(line)]
        counts = [sum(words in line for line in scores) for words in OUTCOMES.values()]
        others = len(figures) - len(scores) - len(alarms)
        seeds = part.partition("; seeds ")[2].partition(";")[0].count(",") + 1
        said = "".join(alarms).removeprefix("- Alarms: ").removesuffix(".")
        rows.append([f"[{name}](#{name})", seeds, *(n or "" for n in counts), others or "", said])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(["| " + " | ".join(map(str, line)) + " |" for line in lines]) + "\n"


def chosen(systems: Sequence[System], names: Sequence[str]) -> list[System]:
    """The systems of these names; without names all. Ends the program for an unknown name."""
    known: Mapping[str, System] = {system.name: system for system in systems}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"{unknown[0]} is no system of {TABLE.name}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(systems)


def main() -> None:
    """See the module's own text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "evidence")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    margin, systems = read_table()
    wanted = chosen(systems, given.names)
    if given.check:
        page = given.page.read_text(encoding="utf-8")
        if page != make_text(systems, given.runs, margin, page):
            sys.exit(f"{given.page} is not what the run folders give: make evidence")
        return
    failed = []
    for system in [] if given.no_run else wanted:
        if system.lacks_data():
            print(f"== {system.name}: not run, {DATA / str(system.data)} is missing", flush=True)
            continue
        print(f"== {system.name}", flush=True)
        if not run_system(system, given.runs):
            failed.append(system.name)
    page = given.page.read_text(encoding="utf-8") if given.page.exists() else ""
    given.page.write_text(make_text(systems, given.runs, margin, page), encoding="utf-8")
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}; the same command goes on with them")


if __name__ == "__main__":
    main()
