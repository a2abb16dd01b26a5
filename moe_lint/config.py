"""Configuration: keys and kinds, the file nearest to the paths, and what the command line says on top of it.

One run has one configuration file: `moe-lint.toml`, `[tool.moe-lint]` in pyproject.toml or `[moe-lint]` in setup.cfg
(in this order within a folder), in the nearest folder at or above the paths.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeGuard

from msgspec import Struct

from moe_lint.ignored import DEFAULT_EXCLUDE
from moe_lint.model import UsageError, display_path

Kind = Literal["text", "path", "flag", "list", "table"]
Value = str | bool | tuple[str, ...] | tuple[tuple[str, tuple[str, ...]], ...]

#: Every key of a configuration file and its kind. A key is also the long option of the command line.
KEYS: Mapping[str, Kind] = {
    "profile": "text",
    "select": "list",
    "extend-select": "list",
    "ignore": "list",
    "per-path-ignores": "table",
    "exclude": "list",
    "extend-exclude": "list",
    "respect-gitignore": "flag",
    "force-exclude": "flag",
    "baseline": "path",
    "safe-only": "flag",
    "unsafe-fixes": "flag",
}
#: What holds where nobody says anything. No `select`: the rules that are on by default.
DEFAULTS: Mapping[str, Value | None] = {
    "profile": "sglang",
    "select": (),
    "ignore": (),
    "exclude": DEFAULT_EXCLUDE,
    "respect-gitignore": True,
    "force-exclude": False,
    "baseline": None,
    "safe-only": False,
    "unsafe-fixes": False,
}
#: Of these, the file's and the command line's values both hold.
ADDITIVE = frozenset({"extend-select", "extend-exclude", "per-path-ignores"})

#: In the order in which one folder is searched.
_FILES = ("moe-lint.toml", "pyproject.toml", "setup.cfg")
#: What a shared file holds if it has a section for moe-lint; the others are not parsed.
_MENTIONS = re.compile(rb"(?im)tool\s*\.\s*[\"']?moe[-_]?lint|^\[\s*(?:tool:)?moe[-_]?lint|^\s*\[?\s*tool\s*[]=]")
_WANTED: Mapping[Kind, str] = {
    "text": "a string",
    "path": "a string",
    "flag": "true or false",
    "list": "a list of strings",
    "table": "a table of patterns, each with a list of rules",
}
_TRUTH = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}


class Setting(Struct, frozen=True):
    """A value, who gave it (in the user's words) and the folder that its paths and patterns are relative to."""

    value: Any
    origin: str
    folder: str


class Settings(Struct, frozen=True):
    """Every key's settings, and the file that was read (None: no file)."""

    file: str | None
    #: one setting for each key; for an additive key the file's and the command line's, or none
    settings: Mapping[str, tuple[Setting, ...]]

    def one(self, key: str) -> Setting:
        """The setting of a key that is not additive."""
        return self.settings[key][0]

    def all(self, key: str) -> tuple[Setting, ...]:
        return self.settings[key]


def settle(file: str | None, from_file: Mapping[str, Value], given: Mapping[str, tuple[str, Value]]) -> Settings:
    """Put together the defaults, the file's values and those ``given`` on the command line: key -> (option, value)."""
    here = os.getcwd()
    found: dict[str, tuple[Setting, ...]] = {}
    for key in KEYS:
        parts: list[Setting] = []
        if key in given:
            option, value = given[key]
            parts.append(Setting(value, option, here))
        if key in from_file and (not parts or key in ADDITIVE) and file is not None:
            parts.insert(0, Setting(from_file[key], file, os.path.dirname(os.path.realpath(file))))
        if not parts and key in DEFAULTS:
            parts.append(Setting(DEFAULTS[key], "default", ""))
        found[key] = tuple(parts)
    return Settings(file, found)


def read_settings(
    paths: Sequence[str], config: str | None, isolated: bool, given: Mapping[str, tuple[str, Value]]
) -> Settings:
    """The settings for a run on these paths. Raises ``UsageError``."""
    if isolated and config is not None:
        raise UsageError("--isolated reads no configuration, --config names one: give one of the two")
    if isolated:
        return settle(None, {}, given)
    if config is not None:
        named = read_config(config)
        if named is None:
            section = "[moe-lint]" if config.endswith(".cfg") else "[tool.moe-lint]"
            raise UsageError(f"{config}: has no {section}")
        return settle(config, named, given)
    file, values = find_config(paths)
    return settle(file, values, given)


def find_config(paths: Iterable[str]) -> tuple[str | None, Mapping[str, Value]]:
    """The file nearest to the paths, as a user would type it, and its values.

    Raises ``UsageError`` when the paths lead to different files, or a file on the way cannot be understood.
    """
    folders: dict[str, str] = {}
    for path in paths:
        absolute = os.path.realpath(path)
        folders.setdefault(absolute if os.path.isdir(absolute) else os.path.dirname(absolute), path)
    found: dict[str, tuple[str, Mapping[str, Value]]] = {}
    for folder, path in folders.items():
        file, values = _nearest(folder)
        found.setdefault(file, (path, values))
    if len(found) > 1:
        (one, (first, _)), (other, (second, _)), *_ = found.items()
        raise UsageError(
            f"{first} is configured by {_named(one)}, {second} by {_named(other)}: "
            "run them one by one, or name a file with --config"
        )
    for file, (_, values) in found.items():
        return display_path(file) if file else None, values
    return None, {}


def _named(file: str) -> str:
    return display_path(file) if file else "no file"


def _nearest(folder: str) -> tuple[str, Mapping[str, Value]]:
    """The nearest file at or above a folder, empty when there is none, and its values."""
    while True:
        for name in _FILES:
            file = os.path.join(folder, name)
            values = read_config(file) if os.path.isfile(file) else None
            if values is not None:
                return file, values
        parent = os.path.dirname(folder)
        if parent == folder:
            return "", {}
        folder = parent


def read_config(file: str) -> dict[str, Value] | None:
    """The values in a file, None when it has no section for moe-lint. Raises ``UsageError``."""
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None
    own = os.path.basename(file) not in _FILES[1:] and not file.endswith(".cfg")
    if not own and not _MENTIONS.search(data):
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{display_path(file)}: not valid UTF-8: {error.reason} at byte {error.start}") from None
    return parse_config(display_path(file), text)


def parse_config(file: str, text: str) -> dict[str, Value] | None:
    """The values in the text of a file; its name tells the language. Raises ``UsageError``."""
    if file.endswith(".cfg"):
        return _from_ini(file, text)
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    try:
        document: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply to be read") from None
    if os.path.basename(file) == "pyproject.toml" or ("tool" in document and os.path.basename(file) != _FILES[0]):
        tools = document.get("tool", {})
        if not isinstance(tools, dict):
            return None
        _refuse_misspelt(file, "tool.moe-lint", [f"tool.{name}" for name in tools])
        document = tools.get("moe-lint")
        if document is None:
            return None
        if not isinstance(document, dict):
            raise UsageError(f"{file}: tool.moe-lint must be a table")
    return {key: _typed(file, key, value) for key, value in document.items()}


def _from_ini(file: str, text: str) -> dict[str, Value] | None:
    import configparser

    parser = configparser.RawConfigParser(strict=True)
    try:
        parser.read_string(text, file)
    except configparser.Error as error:
        raise UsageError(f"{file}: not valid: {' '.join(str(error).split())}") from None
    _refuse_misspelt(file, "moe-lint", parser.sections())
    if not parser.has_section("moe-lint"):
        return None
    return {key: _typed(file, key, _from_text(file, key, value)) for key, value in parser.items("moe-lint")}


def _from_text(file: str, key: str, text: str) -> object:
    """The value that a line (or several) of an INI file stands for."""
    kind = KEYS.get(key)
    if kind == "flag":
        if text.strip().lower() not in _TRUTH:
            raise UsageError(f"{file}: {key} must be true or false, not {text.strip()!r}")
        return _TRUTH[text.strip().lower()]
    if kind == "list":
        return _items(text)
    if kind == "table":
        table: dict[str, list[str]] = {}
        for line in filter(str.strip, text.splitlines()):
            pattern, _, codes = line.rpartition(":")
            if not pattern.strip() or not _items(codes):
                raise UsageError(f"{file}: {key} must have one `pattern: RULE, RULE` on each line")
            table.setdefault(pattern.strip(), []).extend(_items(codes))
        return table
    return text.strip()


def _items(text: str) -> list[str]:
    return [item.strip() for line in text.splitlines() for item in line.split(",") if item.strip()]


def _typed(file: str, key: str, value: object) -> Value:
    """The value of a key, checked. Raises ``UsageError`` for an unknown key or a wrong type."""
    if key not in KEYS:
        from difflib import get_close_matches

        close = get_close_matches(key.replace("_", "-").lower(), KEYS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(KEYS)}"
        raise UsageError(f"{file}: unknown key {key!r}{hint}")
    kind = KEYS[key]
    if kind == "flag" and isinstance(value, bool):
        return value
    if kind in ("text", "path") and _is_text(value):
        return value
    if kind == "list" and _is_list(value):
        return tuple(value)
    if kind == "table" and isinstance(value, dict) and _is_list([*value]) and all(map(_is_list, value.values())):
        return tuple((pattern, tuple(codes)) for pattern, codes in value.items())
    raise UsageError(f"{file}: {key} must be {_WANTED[kind]}, not {_told(value)}")


def _is_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value  # no path holds a null character


def _told(value: object) -> str:
    if isinstance(value, list) and (wrong := [item for item in value if not _is_text(item)]):
        return f"a list with {wrong[0]!r} in it"
    return "an empty string" if value == "" else repr(value)


def _refuse_misspelt(file: str, name: str, found: Iterable[str]) -> None:
    """A section whose name is nearly right would be passed over in silence."""
    for other in found:
        if other != name and _plain(other) == _plain(name):
            raise UsageError(f"{file}: unknown section [{other}]; did you mean [{name}]?")


def _plain(section: str) -> str:
    return re.sub(r"^tool[.:]|[-_]", "", section.strip().lower())
