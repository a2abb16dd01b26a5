"""The options that a configuration file can set too, and what the two add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from moe_lint.model import UsageError

if TYPE_CHECKING:
    from moe_lint.config import Settings, Value

_GIVEN = "moe_lint.given"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put an option aside, with its name, if the user gave it."""
    if parameter.name is None or context.get_parameter_source(parameter.name) is ParameterSource.DEFAULT:
        return
    if value == "":  # as with an empty variable: to a path it would be the working directory
        raise click.BadParameter("it is empty")
    key = parameter.name.replace("_", "-")
    option = f"--{key}" if value is not False else f"--no-{key}"
    context.meta.setdefault(_GIVEN, {})[key] = (option, value)


def _keep_list(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    _keep(context, parameter, tuple(item.strip() for part in value for item in part.split(",") if item.strip()))


def _keep_rules(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    if not all(part.strip(" ,") for part in value):  # as with an empty variable: not what the default would select
        raise click.BadParameter("it names no rule")
    _keep_list(context, parameter, value)


def _keep_table(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    """`PATTERN:CODE,CODE`, as often as one likes."""
    table: dict[str, tuple[str, ...]] = {}
    for item in value:
        pattern, colon, codes = item.rpartition(":")
        found = tuple(code.strip() for code in codes.split(",") if code.strip())
        if not colon or not pattern or not found:
            raise click.BadParameter(f"{item!r} is not PATTERN:CODE")
        table[pattern] = (*table.get(pattern, ()), *found)
    _keep(context, parameter, tuple(table.items()))


def complete_rules(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Rule codes, the last of those that commas join."""
    from moe_lint.rules import all_rules

    head, comma, last = incomplete.rpartition(",")
    codes = [(rule.code, rule.name) for rule in all_rules() if rule.code.startswith(last.upper())]
    return [CompletionItem(f"{head}{comma}{code}", help=name) for code, name in codes]


def _complete_profiles(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from moe_lint.profile import bundled_profiles

    found = [CompletionItem(name) for name in bundled_profiles() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _option(name: str, **arguments: Any) -> Callable[[_Function], _Function]:
    return click.option(name, expose_value=False, **{"callback": _keep, **arguments})


def _switch(key: str, help_: str) -> Callable[[_Function], _Function]:
    return _option(f"--{key}/--no-{key}", default=None, help=help_)


_profile = _option(
    "--profile",
    shell_complete=_complete_profiles,
    metavar="NAME|FILE",
    help="The engine's vocabulary.  [default: sglang]",
)
_rules = (
    _option(
        "--select",
        multiple=True,
        callback=_keep_rules,
        shell_complete=complete_rules,
        metavar="CODE",
        help="Only these rules (code or name).",
    ),
    _option(
        "--extend-select",
        multiple=True,
        callback=_keep_rules,
        shell_complete=complete_rules,
        metavar="CODE",
        help="These rules too.",
    ),
    _option(
        "--ignore",
        multiple=True,
        callback=_keep_rules,
        shell_complete=complete_rules,
        metavar="CODE",
        help="Not these rules.",
    ),
    _option(
        "--per-path-ignores",
        multiple=True,
        callback=_keep_table,
        metavar="PATTERN:CODE",
        help="Not these rules below matching paths; the files still tell what the tree's helper means.",
    ),
)
_files = (
    _option(
        "--exclude",
        multiple=True,
        callback=_keep_list,
        metavar="PATTERN",
        help="Files and folders that are no part of the tree, as .gitignore writes them, instead of the usual ones.",
    ),
    _option("--extend-exclude", multiple=True, callback=_keep_list, metavar="PATTERN", help="The same, besides them."),
    _switch("respect-gitignore", "Leave out what git ignores.  [default: respect]"),
)
_fixes = (
    _switch("safe-only", "Only fixes that keep the behaviour in every state."),
    _switch("unsafe-fixes", "Also fixes that could lose a reduction."),
)
_adoption = (
    _switch("force-exclude", "Leave excluded files out even when they are named one by one, as pre-commit does."),
    _option(
        "--baseline",
        type=click.Path(readable=False),
        metavar="FILE",
        help="Report only findings that this file does not list.",
    ),
)
_source = (
    _option(
        "--config", type=click.Path(readable=False), metavar="FILE", help="Read this configuration file, and no other."
    ),
    _option("--isolated", is_flag=True, default=None, help="Read no configuration file."),
)


def check_options(function: _Function) -> _Function:
    """Everything that can be configured."""
    return _decorated(function, (*_fixes, *_rules, _profile, *_files, *_adoption, *_source))


def tree_options(function: _Function) -> _Function:
    """What tells how a tree is read."""
    return _decorated(function, (_profile, *_files, *_source))


def _decorated(function: _Function, options: tuple[Callable[[_Function], _Function], ...]) -> _Function:
    for option in reversed(options):
        function = option(function)
    return function


def repeated(context: click.Context) -> list[str]:
    """The options that were given, as the next command needs them."""
    words: list[str] = []
    for option, value in context.meta.get(_GIVEN, {}).values():
        for one in value if isinstance(value, tuple) else (value,):
            words += [option] if isinstance(one, bool) else [option, one]
    return words


def settings_for(context: click.Context, paths: tuple[str, ...]) -> Settings:
    """The settings of a run on these paths. Raises ``UsageError``."""
    from moe_lint.config import read_settings

    given: dict[str, tuple[str, Value]] = dict(context.meta.get(_GIVEN, {}))
    _, config = given.pop("config", ("", None))
    _, isolated = given.pop("isolated", ("", False))
    return read_settings(paths, str(config) if config is not None else None, bool(isolated), given)


def fix_level(settings: Settings) -> str:
    """Which fixes are allowed: a key of `fixing.ALLOWED`. The command line beats the file here too."""
    safe_only, unsafe = settings.one("safe-only"), settings.one("unsafe-fixes")
    if safe_only.value and unsafe.value:
        given = [setting.origin.startswith("--") for setting in (safe_only, unsafe)]
        if given[0] == given[1]:
            place = "" if given[0] else f"{safe_only.origin}: "
            raise UsageError(f"{place}safe-only and unsafe-fixes exclude each other")
        return "safe" if given[0] else "unsafe"
    return "safe" if safe_only.value else "unsafe" if unsafe.value else "default"
