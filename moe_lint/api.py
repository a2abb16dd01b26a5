"""The Python interface: `check`, and what turns settings into the options of a run. Import it from `moe_lint`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from moe_lint.config import Setting, Settings, Value, read_settings
from moe_lint.engine import Options, run
from moe_lint.ignored import FileFilter, Patterns, fault_of, is_plain
from moe_lint.model import Report, UsageError, display_path
from moe_lint.profile import load_profile

if TYPE_CHECKING:
    from moe_lint.baseline import Baseline
    from moe_lint.changes import Changes
    from moe_lint.selection import PathIgnore

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def check(
    paths: Paths,
    *,
    profile: str | os.PathLike[str] | None = None,
    select: Iterable[str] | None = None,
    extend_select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    per_path_ignores: Mapping[str, Iterable[str]] | None = None,
    exclude: Iterable[str] | None = None,
    extend_exclude: Iterable[str] | None = None,
    respect_gitignore: bool | None = None,
    baseline: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    isolated: bool = False,
    since: str | None = None,
) -> Report:
    """Judge every all-reduce after the experts below the given files and folders, as `moe-lint check` does.

    Reads files, writes none, prints nothing. What is left out (None) comes from the configuration file nearest to the
    paths, or from ``config``; with ``isolated`` no such file is read. Patterns are relative to the working directory.

    With ``since`` (a git revision) the report has only findings that a change since then touches.

    The report has the findings, what could not be judged (``problems``), what comments silence (``suppressed``), and
    ``exit_code``, the command line's exit status. A broken file of the tree is a problem in the report, no exception.

    Raises ``UsageError`` for a request that cannot be carried out: a path that does not exist, an unknown rule or
    profile, a bad configuration or baseline. Its text is one line for the user.
    """
    arguments: dict[str, Value | None] = {
        "profile": _text(profile),
        "select": _tuple(select),
        "extend-select": _tuple(extend_select),
        "ignore": _tuple(ignore),
        "per-path-ignores": None
        if per_path_ignores is None
        else tuple((pattern, _tuple(codes) or ()) for pattern, codes in per_path_ignores.items()),
        "exclude": _tuple(exclude),
        "extend-exclude": _tuple(extend_exclude),
        "respect-gitignore": respect_gitignore,
        "baseline": _text(baseline),
    }
    given = {key: (key.replace("-", "_"), value) for key, value in arguments.items() if value is not None}
    names = (paths,) if isinstance(paths, str | os.PathLike) else tuple(paths)
    shown = tuple(os.fspath(path) for path in names)
    return run(options_of(shown, read_settings(shown, _text(config), isolated, given), since=since))


def options_of(
    paths: tuple[str, ...], settings: Settings, *, baseline: bool = True, since: str | None = None
) -> Options:
    """The options of a run. ``baseline=False`` leaves the baseline aside. Raises ``UsageError``."""
    exclude = [_patterns("exclude", settings.one("exclude"))]
    exclude += [_patterns("extend-exclude", setting) for setting in settings.all("extend-exclude")]
    profile, known = settings.one("profile"), settings.one("baseline")
    return Options(
        paths,
        load_profile(_profile(profile), f"{_place('profile', profile)}: "),
        select=_codes("select", settings.all("select")),
        ignore=_codes("ignore", settings.all("ignore")),
        extend_select=_codes("extend-select", settings.all("extend-select")),
        path_ignores=_path_ignores(settings.all("per-path-ignores")),
        files=FileFilter(tuple(exclude), settings.one("respect-gitignore").value, settings.one("force-exclude").value),
        baseline=_baseline(path_of(known)) if baseline and known.value is not None else None,
        changes=None if since is None else _changes(since, paths, settings),
    )


# What a plain run has no use for is loaded where it is used: a run that the cache answers takes milliseconds.


def _profile(setting: Setting) -> str:
    """The name of a bundled profile as it is; a path so that it cannot be taken for one."""
    if not (setting.value.endswith(".toml") or "/" in setting.value):
        return str(setting.value)
    path = path_of(setting)
    return path if path.endswith(".toml") or "/" in path else os.path.join(os.curdir, path)


def _baseline(file: str) -> Baseline:
    from moe_lint.baseline import read_baseline

    return read_baseline(file)


def _path_ignores(settings: Iterable[Setting]) -> tuple[PathIgnore, ...]:
    key = "per-path-ignores"
    found = [(replace(s, value=(pattern,)), replace(s, value=codes)) for s in settings for pattern, codes in s.value]
    if not found:
        return ()
    from moe_lint.selection import PathIgnore

    return tuple(PathIgnore(_patterns(key, pattern), frozenset(_codes(key, [codes]))) for pattern, codes in found)


def _changes(revision: str, paths: tuple[str, ...], settings: Settings) -> Changes:
    from moe_lint.changes import changes_since

    changes = changes_since(revision, paths)
    own = [settings.file] if settings.file is not None else []
    own += [path_of(settings.one("profile"))]
    return replace(changes, everything=any(os.path.realpath(file) in changes.files for file in own))


def _codes(key: str, settings: Iterable[Setting]) -> tuple[str, ...]:
    """The rules that are named. Raises ``UsageError`` for one that is unknown."""
    found: dict[str, None] = {}
    for setting in settings:
        for wanted in setting.value:
            from moe_lint.selection import find_codes

            try:
                found.update(dict.fromkeys(find_codes(wanted)))
            except UsageError as error:
                raise _fault(key, setting, str(error)) from None
    return tuple(found)


def _patterns(key: str, setting: Setting) -> Patterns:
    for line in setting.value:
        fault = None if is_plain(line) else fault_of(line)
        if fault is not None:
            raise _fault(key, setting, fault)
    return Patterns(setting.folder, tuple(setting.value))


def _fault(key: str, setting: Setting, what: str) -> UsageError:
    return UsageError(f"{_place(key, setting)}: {what}")


def _place(key: str, setting: Setting) -> str:
    """Where a value comes from: an option, or a key of a file."""
    option = key in setting.origin.replace("_", "-")
    return setting.origin if option else f"{setting.origin}: {key}"


def path_of(setting: Setting) -> str:
    """The path that a setting gives (relative to its folder), as the user would type it."""
    return display_path(os.path.join(setting.folder, setting.value))


def _text(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)


def _tuple(values: Iterable[str] | None) -> tuple[str, ...] | None:
    if isinstance(values, str):
        return (values,)
    return None if values is None else tuple(values)
