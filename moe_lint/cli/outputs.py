"""`--output FORMAT[:FILE]`: which reports a run makes, and where each goes. Files are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from msgspec import Struct

from moe_lint.cli.shared import fail

if TYPE_CHECKING:
    from moe_lint.config import Settings


class Output(Struct, frozen=True):
    """One report. ``file`` is None for standard output."""

    format: str
    file: str | None = None


def output_options(formats: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options `--output` and `--format` of a command that knows these formats."""
    names = tuple(formats)

    def parse(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> tuple[Output, ...]:
        if context.resilient_parsing:  # a shell completes: nothing may be printed
            return ()
        return tuple(_parsed(value, names) for value in values)

    def parse_one(context: click.Context, _: click.Parameter, value: str | None) -> Output | None:
        return None if value is None or context.resilient_parsing else Output(_known(value, names))

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    listed = ", ".join(names)
    several = click.option(
        "--output",
        "-o",
        "outputs",
        multiple=True,
        callback=parse,
        shell_complete=complete,
        metavar="FORMAT[:FILE]",
        help=f"A report, to a file or to standard output; repeatable. Formats: {listed}.",
    )
    one = click.option(
        "--format",
        "to_stdout",
        callback=parse_one,
        shell_complete=complete,
        metavar="FORMAT",
        help="The format of standard output.",
    )
    return lambda command: several(one(command))


def chosen(outputs: tuple[Output, ...], to_stdout: Output | None) -> tuple[Output, tuple[Output, ...]]:
    """(what standard output gets, the files). Refuses requests that collide and files that cannot be written."""
    on_stdout = [*([to_stdout] if to_stdout else []), *(one for one in outputs if one.file is None)]
    if len(on_stdout) > 1:
        fail(f"{on_stdout[0].format} and {on_stdout[1].format} both go to standard output; give one of them a file")
    files = tuple(one for one in outputs if one.file is not None)
    seen: dict[Path, str] = {}
    for one in files:
        assert one.file is not None
        _check_writable(one.file)
        target = Path(one.file).resolve()
        if target in seen and (target.is_file() or not target.exists()):  # a device takes several
            fail(f"--output: {seen[target]} and {one.format} both go to {one.file}")
        seen[target] = one.format
    return (on_stdout[0] if on_stdout else Output("text")), files


def keep_inputs(files: Iterable[str | None], settings: Settings, option: str = "--output") -> None:
    """Refuse to write in the place of what the run reads: source, the configuration, a profile, the baseline."""
    from moe_lint.api import path_of

    baseline, profile = settings.one("baseline"), settings.one("profile")
    named = [baseline] if baseline.value and option != "--baseline" else []
    named += [profile] if profile.value.endswith(".toml") else []  # else it is mostly a bundled one
    read = {os.path.realpath(file) for file in (settings.file, *map(path_of, named)) if file is not None}
    for file in filter(None, files):
        if file.endswith(".py") or os.path.realpath(file) in read:
            _would_overwrite(option, file)


def write_files(files: Iterable[Output], render: Callable[[str], str]) -> None:
    """Render every file, then write them: a report that cannot be made leaves all files as they were."""
    from moe_lint.atomic import replace_file

    texts: Mapping[Output, str] = {one: render(one.format) for one in files}
    for one, text in texts.items():
        assert one.file is not None
        try:
            replace_file(one.file, _encoded(text))
        except OSError as error:
            fail(f"--output: {one.file}: cannot be written: {error.strerror or error}")


def wants_patches(outputs: Iterable[Output]) -> bool:
    return any(one.format == "sarif" for one in outputs)


def echo_report(text: str) -> None:
    """A whole report on standard output; nothing, not even a newline, for an empty one."""
    click.echo(_encoded(text), nl=False)


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode("utf-8", "surrogateescape") if text else b""


def _parsed(value: str, names: tuple[str, ...]) -> Output:
    name, colon, file = value.partition(":")
    if colon and not file:
        fail(f"--output {value}: no file after the colon")
    return Output(_known(name, names), file or None)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        from difflib import get_close_matches

        close = get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        fail(f"unknown output format {name!r}; {hint}")
    return name


def _would_overwrite(option: str, file: str) -> NoReturn:
    fail(f"{option}: {file}: would overwrite what is read")


def _check_writable(file: str) -> None:
    """Say so before the run, not after it, when a file cannot or must not be written."""
    path = Path(file)
    if path.is_dir():
        fail(f"--output: {file}: is a folder")
    if path.suffix == ".py":
        _would_overwrite("--output", file)
    folder = path.resolve().parent
    if not folder.is_dir():
        fail(f"--output: {file}: there is no folder {folder}")
    if path.exists() and not path.is_file():
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        fail(f"--output: {file}: cannot be written: the folder is read-only")
