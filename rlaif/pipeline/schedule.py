"""Which steps of a plan run at once: what servers judge goes beside what this process computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from rlaif.engines.build import REMOTE
from rlaif.pipeline.plan import Planned

TOGETHER = ("sample", "judge")


def stretches(plan: Sequence[Planned]) -> Iterator[list[Planned]]:
    """The plan in pieces that run one after the other: sample and judge steps that follow one
    another, and every other step alone. A judge step may need samples of its own piece, and no
    step needs anything else of it."""
    for together, run in groupby(plan, key=lambda planned: planned.kind in TOGETHER):
        steps = list(run)
        yield from [steps] if together else ([planned] for planned in steps)


def lanes(steps: Sequence[Planned]) -> tuple[list[Planned], list[Planned]]:
    """The steps of a piece that run here, and those that run beside them, in the plan's order.

    Beside go judges that only servers answer, unless a step here asks one of these too: its limits
    are for all calls to it. Where nothing is left to run here, all do.
    """
    far = [planned for planned in steps if _is_remote_judge(planned)]
    while True:
        here = [planned for planned in steps if planned not in far]
        shared = _servers(here)
        alone = [planned for planned in far if not _servers([planned]) & shared]
        if len(alone) == len(far):
            return (here, far) if here else (far, [])
        far = alone


def _is_remote_judge(planned: Planned) -> bool:
    engines = {model.spec.engine for model in planned.models.values()}
    return planned.kind == "judge" and bool(engines) and engines <= REMOTE


def _servers(steps: Iterable[Planned]) -> set[tuple[str | None, str]]:
    """Address and name of the models on servers that are asked."""
    models = [model.spec for planned in steps for model in planned.models.values()]
    return {(spec.base_url, spec.path) for spec in models if spec.engine in REMOTE}


def at_once(
    here: Callable[[Callable[[], None]], None],
    far: Callable[[], None],
    end_far: Callable[[], None],
) -> None:
    """Run `here` in this thread and `far` in another one. The first error of either ends both and
    is raised, once both have ended.

    `here` is given a function that raises what `far` failed with, to be called now and then;
    `end_far` makes `far` end soon.
    """
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(far)

        def check() -> None:
            if working.done():
                working.result()

        try:
            here(check)
            working.result()
        except BaseException:
            end_far()
            raise
