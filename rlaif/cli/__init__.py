"""The command line. Nothing heavy is imported before a command that needs it runs.

Results go to stdout, progress to stderr. Exit codes: 0 success, 2 user error, 3 stopped by a gate,
the budget or a server's rate limit, 4 the run is complete and its mirror is not, 130 interrupted
(run the same command again to resume).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import warnings

import click

from rlaif.cli import (
    annotate,
    arena,
    bench,
    cache,
    compare,
    constitution,
    data,
    dataset,
    doctor,
    explain,
    launch,
    new,
    principles,
    runs,
    serve,
    steps,
    texts,
    train,
    ui,
    winrate,
)
from rlaif.core.errors import EXIT_INTERRUPTED, EXIT_USER, RlaifError

COMMANDS = (
    *(runs.run, runs.pull, launch.launch, explain.explain, runs.status, ui.ui, runs.report),
    runs.export,
    *(texts.init, new.new, texts.schema, texts.prompt, doctor.doctor, constitution.constitution),
    *(dataset.build, dataset.prompts, dataset.data, data.convert),
    *(bench.judge_bench, bench.reward_bench, winrate.winrate),
    *(arena.arena, compare.compare),
    *(steps.sample, steps.judge, steps.score, steps.pair, steps.rbr_weights),
    *(train.distill, train.average, train.train, steps.evaluate),
    *(annotate.annotate, annotate.votes, serve.serve, cache.cache),
)

USERS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
"""Errors of the system that a user's path or disk makes; any other is a defect of ours."""


def main() -> None:
    """The entry point: user errors become one message and an exit code, never a traceback."""
    # The tokenizer library forks nothing here; its warning would land among the results.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Such as a server that is started, or given other weights: the package's own lines alone.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rlaif").setLevel(logging.INFO)
    # It warns of an optional kernel on every import, on processors that could use it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # A job scheduler's SIGTERM is an interruption like Ctrl-C: the next run resumes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _heard_again
    try:
        cli.main(standalone_mode=False)
    except RlaifError as error:
        _exit_with(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        # One that struck in code made from text (a dataclass in the making) has Python end `-m` by
        # the signal and not by our exit code, unless more such code has run since.
        exec("")
        _exit_with("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USER)
    except BrokenPipeError:
        sys.exit(EXIT_USER)
    except OSError as error:
        if error.errno in USERS:
            _exit_with(f"{error.filename or 'writing'}: {error.strerror}", EXIT_USER)
        raise


def _heard_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python prints and forgets what is raised in a finaliser: a Ctrl-C there is sent once more,
    as SIGTERM, which `main` hears also where a shell's background job ignores SIGINT."""
    if unraisable.exc_type is KeyboardInterrupt:
        main_thread = threading.main_thread().ident
        threading.Timer(0.1, signal.pthread_kill, (main_thread, signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _exit_with(message: str, code: int) -> None:
    click.echo(f"rlaif: {message}", err=True)
    sys.exit(code)


class _InOrder(click.Group):
    """Lists the commands as they were added, the first steps first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    epilog="Results go to stdout, progress to stderr. Exit codes: 0 success, 2 user error, 3 "
    "stopped by an alarm, a gate, the budget or a server's rate limit, 4 the run is complete and "
    "its mirror is not, 130 interrupted.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(package_name="rlaif")
def cli() -> None:
    """Run experiments that train a language model on AI feedback."""


for _command in COMMANDS:
    cli.add_command(_command)
for _command in (principles.ablate, principles.infer, principles.fit):
    constitution.constitution.add_command(_command)
