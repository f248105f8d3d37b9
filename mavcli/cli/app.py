"""`mav`: the table of commands, and what happens when one of them fails.

A command's module is imported when the command is called, so that `mav --help` costs nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import gc
import importlib
import importlib.metadata
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
import typer.core
import typer.main

from mavcli import stopping
from mavcli.cli import signals
from mavcli.cli.console import Failure, failure_of, save_traceback, show_failure
from mavcli.errors import Interrupted, UsageError


class Verb(NamedTuple):
    """One command: `attribute` of `module` is a function, or a Typer application with commands of its own."""

    section: str
    name: str
    module: str
    attribute: str
    help: str


_MAKE, _TRAIN, _LOOK = "Make video", "Train and measure", "Look and prepare"

# One line a command, in the order of `mav --help`. A command stands here when it works.
VERBS = (
    Verb(_MAKE, "generate", "mavcli.cli.generate", "generate", "Make a video from a text."),
    Verb(_MAKE, "animate", "mavcli.cli.animate", "animate", "Make a picture move."),
    Verb(
        _MAKE,
        "interpolate",
        "mavcli.cli.interpolate",
        "interpolate",
        "Join pictures, or raise a clip's frame rate.",
    ),
    Verb(_MAKE, "extrapolate", "mavcli.cli.extrapolate", "extrapolate", "Make a clip longer."),
    Verb(_MAKE, "vary", "mavcli.cli.vary", "vary", "Make another video that means the same."),
    Verb(_TRAIN, "train-stage", "mavcli.cli.train_stage", "train_stage", "Train one stage on your own data."),
    Verb(_TRAIN, "estimate", "mavcli.cli.estimate", "estimate", "Say what a recipe's training will cost."),
    Verb(_TRAIN, "runs", "mavcli.cli.runs", "runs", "List trainings: how far, how good, how long still."),
    Verb(_TRAIN, "eval", "mavcli.cli.eval", "app", "Measure what a family makes."),
    Verb(_LOOK, "recipe", "mavcli.cli.recipe", "app", "List, show, copy and check recipes."),
    Verb(
        _LOOK,
        "weights",
        "mavcli.cli.weights",
        "app",
        "List weights, and what a weight file says about itself.",
    ),
    Verb(_LOOK, "gallery", "mavcli.cli.gallery", "gallery", "Write a page of a folder's videos."),
    Verb(
        _LOOK,
        "inflate",
        "mavcli.cli.inflate",
        "inflate",
        "Make image weights into video weights, with proof.",
    ),
    Verb(_LOOK, "data", "mavcli.cli.data", "app", "Check, preview and prepare training data."),
    Verb(_LOOK, "doctor", "mavcli.cli.doctor", "doctor", "Check this machine and this installation."),
)


class LazyGroup(typer.core.TyperGroup):
    """The commands of `VERBS`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for verb in VERBS:
            if verb.name == cmd_name:
                return _command(verb)
        if ctx.resilient_parsing or cmd_name.startswith("-"):
            return None
        near = difflib.get_close_matches(cmd_name, [verb.name for verb in VERBS], n=1)
        meant = f", did you mean `mav {near[0]}`" if near else ""
        raise UsageError(f"there is no command `{cmd_name}`{meant}", hint="mav --help")

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section in dict.fromkeys(verb.section for verb in VERBS):
            with formatter.section(section):
                formatter.write_dl([(verb.name, verb.help) for verb in VERBS if verb.section == section])


def _command(verb: Verb) -> Any:
    found = getattr(importlib.import_module(verb.module), verb.attribute)
    if isinstance(found, typer.Typer):
        built = found
        built.info.name = verb.name
    else:
        built = typer.Typer(add_completion=False)
        built.command(verb.name, no_args_is_help=False)(found)
    # Plain help: it reads at any width, without colour, and comes three times as fast.
    built.rich_markup_mode = None
    command = typer.main.get_command(built)
    command.name = verb.name
    return command


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mav {importlib.metadata.version('mavcli')}")
        raise typer.Exit


@app.callback()
def _mav(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make-A-Video: text to video, from captioned pictures and videos without captions."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing escapes but a wish for a traceback."""
    try:
        with signals.raising():
            outcome = typer.main.get_command(app).main(
                list(arguments), prog_name="mav", standalone_mode=False
            )
            sys.stdout.flush()
        if outcome == 130:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        return outcome if isinstance(outcome, int) else 0
    except BrokenPipeError:
        # The reader has gone: say nothing, not even when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        wish = stopping.asked()
        if wish is not None and not isinstance(error, Interrupted):
            error = wish  # foreign code made something else of it
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error))
            return 2
        if isinstance(error, typer.Abort):
            error = KeyboardInterrupt()
        failure = failure_of(error)
        if failure.bug:
            failure = _with_traceback(failure, error)
        elif os.environ.get("MAV_DEBUG"):
            traceback.print_exception(error)
        show_failure(failure, json="--json" in arguments)
        return failure.exit_code


def _with_traceback(failure: Failure, error: BaseException) -> Failure:
    if os.environ.get("MAV_DEBUG"):
        traceback.print_exception(error)
        return failure
    path = save_traceback(error)
    hint = f"the traceback is in {path}" if path else "MAV_DEBUG=1 shows the traceback"
    return Failure(failure.exit_code, failure.message, hint)


def _collect_less() -> None:
    """PyTorch and open_clip make many objects that stay: looking through them all, again and again while they are imported
    (and once more at the end: `_end_at_once`), takes a second of every command that needs both."""
    gc.set_threshold(10_000, 20, 50)


def _end_at_once(codes: Sequence[int]) -> None:
    """The last thing at exit, with the command's exit code if it came to one: taking PyTorch down object by object takes a
    third of a second, and the process frees it all at once. A GPU's driver is left to end in its own way,
    only without one more look through all objects."""
    torch = sys.modules.get("torch")
    if codes and torch is not None and not torch.cuda.is_initialized():
        with contextlib.suppress(OSError, ValueError):  # a reader that has gone, a stream that is closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(codes[0])
    gc.freeze()


def _spin_less() -> None:
    """A thread of PyTorch's that waits for the others spins for 10,000 rounds before it sleeps, not 300,000 (libgomp's).

    Where another program wants the same cores the others cannot run meanwhile: of two commands at once each took twelve times
    as long as alone, and so it takes twice. Alone it costs 5 %. Before PyTorch is imported; what the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main() -> NoReturn:
    """The `mav` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    signals.listen()
    _collect_less()
    _spin_less()
    codes: list[int] = []
    atexit.register(_end_at_once, codes)  # first of all, so that it runs last
    codes.append(run(sys.argv[1:]))
    signals.end_by_default()
    sys.exit(codes[0])
