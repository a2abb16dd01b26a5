"""The command line: arguments -> Options -> report -> output -> exit code. The one place that exits.

One module per command, each with a click command called `command`; a module is imported when its command runs.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from errno import ENOENT, EPIPE
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from moe_lint.cli.shared import EPILOG, fail
from moe_lint.model import UsageError

_DEPTH = 5000
#: What shells give for a program that an interrupt ended.
_INTERRUPTED = 130
#: Where the first argument is kept when it is taken for a path or an option of `check`.
_FIRST = "moe_lint.first"
#: Command -> its module in this package, in the order of the help text.
COMMANDS = {
    "check": "check",
    "matrix": "matrix",
    "rule": "rule",
    "init": "init",
    "verify": "verify",
    "clean": "clean",
    "config": "config",
    "lsp": "lsp",
    "completion": "completion",
}


class _Commands(click.Group):
    """Loads a command when it is asked for. `check` is the default: `moe-lint --fix x` is `moe-lint check --fix x`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"{__name__}.{COMMANDS[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, and what `check` takes: it needs no name."""
        check = self.get_command(ctx, "check")
        assert check is not None
        inside = check.make_context("check", [], parent=ctx, resilient_parsing=True)
        found = super().shell_complete(ctx, incomplete) + check.shell_complete(inside, incomplete)
        words = {item.value: item for item in found if item.type == "plain"}
        # files only where no word fits: beside an item for files, click's script for bash drops the words
        return list(words.values()) or [CompletionItem(incomplete, type="file")]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            fail(_one_line(error))
        except KeyboardInterrupt:  # to click, that is exit status 1: findings
            sys.exit(_INTERRUPTED)
        except OSError as error:  # `--help` is printed while the arguments are read
            if error.errno == EPIPE:
                raise
            fail(_of_the_system(error))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # one line, where click would print its usage text
            fail(_one_line(error))
        except UsageError as error:
            fail(f"{error}{_meant(str(error), ctx.meta.get(_FIRST, ''))}")
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own ways to end
        except OSError as error:
            fail(_of_the_system(error))
        except RecursionError:  # where it is not known in which file
            fail("a condition in a tree is nested too deeply to be judged")
        except Exception as error:  # 1 would mean findings
            import traceback

            traceback.print_exc()
            fail(f"internal error: {type(error).__name__}: {error}; please report it with the lines above")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # click's versions differ: help, or an error with the help in it
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        if args and args[0] not in COMMANDS and args[0] not in ("--help", "-h", "--version"):
            ctx.meta[_FIRST] = args[0]
            args = ["check", *args]
        return super().parse_args(ctx, args)


def _one_line(error: click.UsageError) -> str:
    return " ".join(error.format_message().split())


def _meant(message: str, first: str) -> str:
    """Whether the path that is not there is a command: a misspelt one, or one behind options."""
    from difflib import get_close_matches

    word, _, why = message.partition(": ")
    if why != "no such file or directory":
        return ""
    if word in COMMANDS:
        return f"; a command comes first: moe-lint {word} …"
    close = get_close_matches(word, COMMANDS, 1) if word == first else []
    return f"; did you mean the command {close[0]!r}?" if close else ""


def _of_the_system(error: OSError) -> str:
    # of what has no name, only the working directory can be missing
    nameless = "the working directory" if error.errno == ENOENT else "standard output"
    return f"{error.filename or nameless}: {error.strerror or error}"


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moe-lint", prog_name="moe-lint")
def main() -> None:
    """Find, judge and fix all-reduces after the experts of mixture-of-experts models.

    `check` is the default command: `moe-lint --fix python/`.
    """
    # Generated code nests deeper than Python's default lets a reader of its tree go.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEPTH))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text


def program() -> NoReturn:
    """The console script: `main`, then out at once. Taking apart all that a run has built takes a tenth of its time."""
    status: object = 0
    # a run builds what it needs and drops it all at the end: the collector would walk it in vain
    gc.disable()
    # a stream that the caller closed is None
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - it lives as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        main()
    except SystemExit as done:
        status = 0 if done.code is None else done.code
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:  # the language server closes them at its end
                stream.flush()
        except OSError:
            status = status or 2
    os._exit(status if isinstance(status, int) else 1)
