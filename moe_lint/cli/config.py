"""`moe-lint config`: the settings of a run, and where each comes from."""

from __future__ import annotations

import json
import os

import click

from moe_lint.cli.settings import check_options, fix_level, settings_for
from moe_lint.cli.shared import fail
from moe_lint.config import Setting, Settings


@click.command("config")
@click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="[PATH…]")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text")
@check_options
@click.pass_context
def command(context: click.Context, paths: tuple[str, ...], output: str) -> None:
    """Show the settings of a run, and where each value comes from.

    The run is one on PATH (default: the working directory). Takes the options of `check`, to show what they change. The
    text is TOML.
    """
    from moe_lint.api import options_of

    for path in paths:
        if not os.path.exists(path):
            fail(f"{path}: no such file or directory")
    paths = paths or (".",)
    settings = settings_for(context, paths)
    fix_level(settings)
    options_of(paths, settings, baseline=False)  # a value that a run would refuse is refused here too
    click.echo(_json(settings) if output == "json" else _text(settings))


def _text(settings: Settings) -> str:
    rows = [(_line(key, setting), setting.origin) for key, found in settings.settings.items() for setting in found]
    width = max(len(line) for line, _ in rows if len(line) <= 60)
    head = f"# configuration file: {settings.file or 'none'}"
    return "\n".join([head, *(f"{line:{width}}  # {origin}" for line, origin in rows)])


def _line(key: str, setting: Setting) -> str:
    value = setting.value
    if value is None:
        return f"# {key} is not set"
    if key == "per-path-ignores":
        inner = ", ".join(f"{json.dumps(pattern)} = {json.dumps(list(codes))}" for pattern, codes in value)
        return f"{key} = {{ {inner} }}"
    if key == "select" and not value:
        return "# select is not set: the rules that are on by default"
    return f"{key} = {json.dumps(list(value) if isinstance(value, tuple) else value)}"


def _json(settings: Settings) -> str:
    rows = {
        key: [{"value": dict(s.value) if key == "per-path-ignores" else s.value, "origin": s.origin} for s in found]
        for key, found in settings.settings.items()
    }
    return json.dumps({"version": 1, "file": settings.file, "settings": rows}, indent=2)
