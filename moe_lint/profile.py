"""Profiles: which names to look for in an engine's tree, loaded from TOML and validated.

A profile holds vocabulary only. The meaning of the names is read from the tree under judgement.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from moe_lint.launch import Choice, ExpressionError, Size, Space, Switch
from moe_lint.model import Axis, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib


#: `importlib.resources` would find it, too, and load a dozen modules for that.
_BUNDLED = Path(__file__).with_name("profiles")


class ProfileError(UsageError):
    """A profile that cannot be used; the text names the file and the key."""


#: Who sums where a profile does not say it.
_SOMEBODY = "an absorber downstream"
#: What a helper that `init` writes, and its axis parameter, are called where a profile does not say it.
_UNNAMED_HELPER, _UNNAMED_AXIS = "experts_are_summed_elsewhere", "is_tp"


class Flag(Struct, frozen=True):
    """A layer-context flag: its name, other spellings, the question that computes it, who sums when it is set.

    ``permit`` is the keyword with which an absorber's constructor allows the flag to be set at all; ``last`` the one
    that tells it that no further layer will take the sum. ``sums`` are the functions that then sum instead.
    """

    name: str
    aliases: tuple[str, ...] = ()
    predicate: str = ""
    absorber: str = _SOMEBODY
    permit: str = ""
    last: str = ""
    sums: tuple[str, ...] = ()


class Profile(Struct, frozen=True, dict=True):
    """The vocabulary of one engine. Pattern lists are ``fnmatch`` patterns over single identifiers."""

    name: str
    collectives: Mapping[str, Axis]
    #: the helper's names, the one to propose first: releases rename it, and the tree says which it has
    helpers: tuple[str, ...]
    axis_parameter: str
    wrappers: tuple[str, ...]
    flags: tuple[Flag, ...]
    #: what sums in place of a block, whichever flags a tree spells
    summing: tuple[str, ...]
    skip_predicates: tuple[str, ...]
    publishers: tuple[str, ...]
    markers: tuple[str, ...]
    ownership: tuple[str, ...]
    absorber_constructors: tuple[str, ...]
    scatters: tuple[str, ...]
    #: what hands each rank its tokens and sums nothing
    plain_scatters: tuple[str, ...]
    combines: tuple[str, ...]
    #: who sums where the helper skips, when no flag says so
    absorber: str
    last_stage: tuple[str, ...]
    send: tuple[str, ...]
    captures: tuple[str, ...]
    #: what a model of a single layer holds that stands behind all the others
    heads: tuple[str, ...]
    pipeline_option: str
    reducing: tuple[str, ...]
    replicating: tuple[str, ...]
    expert_attributes: tuple[str, ...]
    expert_functions: tuple[str, ...]
    expert_constructors: tuple[str, ...]
    expert_exclude: tuple[str, ...]
    #: which element is the shared experts' output where the experts return a pair; None: they return no pair
    shared_element: int | None
    shared: tuple[str, ...]
    barriers: tuple[str, ...]
    other_layers: tuple[str, ...]
    sizes: tuple[str, ...]
    backend_getter: str
    backend_enum: str
    launch: Space = field(default_factory=Space)

    @property
    def helper(self) -> str:
        return self.helpers[0]

    @property
    def names_no_helper(self) -> bool:
        """Whether it leaves open who decides: the engine has nobody, or whoever writes it is not there yet."""
        return self.helpers == (_UNNAMED_HELPER,)

    @cached_property
    def flag_names(self) -> Mapping[str, str]:
        """Every spelling of a flag -> its name."""
        return {spelling: flag.name for flag in self.flags for spelling in (flag.name, *flag.aliases)}

    def within(self, mentions: Callable[[str], bool]) -> Profile:
        """What a tree knows of the profile's flags, markers and collectives: of a fork's base, what it has not renamed.

        A question that two flags share is asked for the one that the tree spells. A tree that spells none hands its
        sums on in another way than by flags: they stay, so that this is seen.
        """
        spelled = [flag for flag in self.flags if any(map(mentions, (flag.name, *flag.aliases)))]
        taken = {flag.predicate for flag in spelled} | {""}
        known = tuple(f for f in self.flags if f in spelled or (f.predicate not in taken and mentions(f.predicate)))
        return replace(
            self,
            flags=known or self.flags,
            markers=tuple(filter(mentions, self.markers)),
            collectives={name: axis for name, axis in self.collectives.items() if mentions(name)},
        )

    def is_size(self, text: str) -> bool:
        """Whether ``text`` (``self.tp_size``, ``get_parallel().tp_size``, ``world_size()``) is a group's size."""
        last = text.rsplit(".", 1)[-1]
        return matches(last, self.sizes)

    def is_expert_attribute(self, name: str) -> bool:
        return matches(name, self.expert_attributes) and not matches(name, self.expert_exclude)

    def is_expert_function(self, name: str) -> bool:
        return matches(name, self.expert_functions) and not matches(name, self.expert_exclude)

    def is_expert_constructor(self, name: str) -> bool:
        return matches(name, self.expert_constructors)

    def is_scatter(self, name: str) -> bool:
        return matches(name, self.scatters)

    def is_barrier(self, name: str) -> bool:
        return matches(name, self.barriers)

    def is_shared(self, name: str) -> bool:
        """Whether an attribute holds shared experts. What decides about them (a gate) is none of their output."""
        return matches(name, self.shared) and not self.is_barrier(name) and "gate" not in name


@lru_cache(maxsize=10_000)
def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name matches one of the ``fnmatch`` patterns (case counts)."""
    return _pattern(patterns).match(name) is not None


def longest_part(pattern: str) -> str:
    """The longest text that whatever matches an ``fnmatch`` pattern holds."""
    return max(re.split(r"[*?]|\[[^]]*\]", pattern), key=len)


@lru_cache(maxsize=64)
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns) or "(?!)")


#: section -> key -> kind. ``None`` as a section holds the top level.
_SCHEMA: dict[str, dict[str, str]] = {
    "helper": {"name": "names", "axis_parameter": "str", "wrappers": "list"},
    "predicates": {"skip": "list"},
    "context": {
        "publish": "list",
        "markers": "list",
        "ownership": "list",
        "reducing": "list",
        "replicating": "list",
    },
    "absorbers": {
        "constructors": "list",
        "who": "str",
        "scatters": "list",
        "plain_scatters": "list",
        "combines": "list",
    },
    "pipeline": {"last_stage": "list", "send": "list", "captures": "list", "heads": "list", "option": "str"},
    "experts": {
        "attributes": "list",
        "functions": "list",
        "constructors": "list",
        "exclude": "list",
        "shared": "list",
        "shared_element": "int",
        "barriers": "list",
        "other_layers": "list",
    },
    "topology": {"sizes": "list"},
    "backends": {"getter": "str", "enum": "str"},
}
#: the parts of [launch] that are arrays of tables
_LAUNCH: dict[str, dict[str, str]] = {
    "sizes": {"name": "str", "names": "list", "values": "integers", "option": "str", "value": "str"},
    "switches": {"name": "str", "atoms": "list", "option": "str", "value": "str", "requires": "str", "note": "str"},
    "choices": {"name": "str", "getter": "str", "default": "str", "option": "str", "members": "list"},
}
_LAUNCH_KEYS = {"constraints": "list", "groups": "table"}
_FLAG_KEYS = {
    "name": "str",
    "aliases": "list",
    "predicate": "str",
    "absorber": "str",
    "permit": "str",
    "last": "str",
    "sums": "list",
}
_TOP_KEYS = ("name", "extends", "collectives", "flags", "launch", *_SCHEMA)
_AXES: dict[str, Axis] = {"TP": "TP", "EP": "EP", "other": "other"}


def bundled_profiles() -> tuple[str, ...]:
    """The names of the profiles that come with moe-lint."""
    return tuple(sorted(entry.stem for entry in _BUNDLED.iterdir() if entry.suffix == ".toml"))


def load_profile(reference: str, place: str = "") -> Profile:
    """Load a bundled profile by name or a file by path.

    ``place`` goes before the message of the ``ProfileError`` that is raised where there is no such profile.
    """
    return _build(_merged(reference, place, ()), reference)


def _merged(reference: str, place: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if reference in seen:
        raise ProfileError(f"{reference}: profiles extend each other in a circle: {' -> '.join((*seen, reference))}")
    data = _read(reference, place)
    _validate(data, reference)
    base = data.pop("extends", None)
    if base is not None and base not in bundled_profiles() and reference not in bundled_profiles():
        base = str(Path(reference).parent / base) if base.endswith(".toml") else base  # beside the file that names it
    return _merge(_merged(base, f"{reference}: extends: ", (*seen, reference)), data) if base else data


def _read(reference: str, place: str) -> dict[str, Any]:
    if reference in bundled_profiles():
        raw = (_BUNDLED / f"{reference}.toml").read_bytes()
    elif reference.endswith(".toml") or "/" in reference:
        try:
            raw = Path(reference).read_bytes()
        except (OSError, ValueError) as error:  # no path holds a null character
            told = error.strerror if isinstance(error, OSError) else error
            raise ProfileError(f"{place}{reference}: cannot read the profile: {told}") from None
    else:
        known = ", ".join(bundled_profiles())
        hint = f"bundled are {known}; a file is given by its path (*.toml)"
        raise ProfileError(f"{place}unknown profile {reference!r}: {hint}")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{reference}: not valid TOML: {error}") from None
    except RecursionError:
        raise ProfileError(f"{reference}: nested too deeply to be read") from None


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Tables merge (in an array, those of one name), lists append, the rest is replaced."""
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            named = {item["name"]: item for item in base.get(key, [])}
            named.update({item["name"]: _merge(named.get(item["name"], {}), item) for item in value})
            merged[key] = list(named.values())
        elif isinstance(value, dict):
            merged[key] = _merge(base.get(key, {}), value)
        elif isinstance(value, list):
            merged[key] = list(dict.fromkeys([*base.get(key, []), *value]))
        else:
            merged[key] = value
    return merged


def _validate(data: Mapping[str, Any], where: str) -> None:
    for key, value in data.items():
        if key not in _TOP_KEYS:
            raise _unknown(where, key, _TOP_KEYS)
        if key in ("name", "extends"):
            _check_kind(where, key, value, "str")
        elif key == "collectives":
            _check_kind(where, key, value, "table")
            for name, axis in value.items():
                if not isinstance(axis, str) or axis not in _AXES:
                    raise ProfileError(f"{where}: collectives.{name} = {axis!r}: an axis is one of {', '.join(_AXES)}")
        elif key == "flags":
            if not isinstance(value, list) or not all(isinstance(flag, dict) for flag in value):
                raise ProfileError(f"{where}: flags must be an array of tables ([[flags]])")
            for flag in value:
                if "name" not in flag:
                    raise ProfileError(f"{where}: a flag has no name")
                _check_table(where, "flags", flag, _FLAG_KEYS)
        elif key == "launch":
            _check_kind(where, key, value, "table")
            _validate_launch(where, value)
        else:
            _check_kind(where, key, value, "table")
            _check_table(where, key, value, _SCHEMA[key])


def _validate_launch(where: str, launch: Mapping[str, Any]) -> None:
    for key, value in launch.items():
        if key in _LAUNCH:
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                raise ProfileError(f"{where}: launch.{key} must be an array of tables ([[launch.{key}]])")
            for item in value:
                if "name" not in item:
                    raise ProfileError(f"{where}: an entry of launch.{key} has no name")
                _check_table(where, f"launch.{key}", item, _LAUNCH[key])
        elif key in _LAUNCH_KEYS:
            _check_kind(where, f"launch.{key}", value, _LAUNCH_KEYS[key])
            for group, size in value.items() if isinstance(value, dict) else ():
                _check_kind(where, f"launch.{key}.{group}", size, "str")
        else:
            raise _unknown(where, f"launch.{key}", [f"launch.{k}" for k in (*_LAUNCH, *_LAUNCH_KEYS)])


def _check_table(where: str, section: str, table: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    for key, value in table.items():
        if key not in kinds:
            raise _unknown(where, f"{section}.{key}", [f"{section}.{k}" for k in kinds])
        _check_kind(where, f"{section}.{key}", value, kinds[key])


def _check_kind(where: str, key: str, value: object, kind: str) -> None:
    is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    right = {
        "str": isinstance(value, str),
        "table": isinstance(value, dict),
        "int": type(value) is int,
        "list": is_list,
        "names": isinstance(value, str) or (is_list and bool(value)),
        "integers": isinstance(value, list) and bool(value) and all(type(item) is int for item in value),
    }[kind]
    if not right:
        wanted = {
            "str": "a string",
            "table": "a table",
            "int": "an integer",
            "list": "a list of strings",
            "names": "a string or a list of strings",
            "integers": "a list of integers",
        }[kind]
        raise ProfileError(f"{where}: {key} must be {wanted}")


def _unknown(where: str, key: str, known: Iterable[str]) -> ProfileError:
    from difflib import get_close_matches

    close = get_close_matches(key, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ProfileError(f"{where}: unknown key {key!r}{hint}")


def _build(data: Mapping[str, Any], where: str) -> Profile:
    def table(section: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = data.get(section, {})
        return found

    def names(section: str, key: str) -> tuple[str, ...]:
        return tuple(table(section).get(key, ()))

    if not data.get("collectives"):
        raise ProfileError(f"{where}: a profile needs [collectives]: at least one reduction and its axis")
    collectives = {name: _AXES[axis] for name, axis in data["collectives"].items()}
    helper = table("helper").get("name", _UNNAMED_HELPER)
    if not helper or not all(helper):
        raise ProfileError(f"{where}: helper.name is empty: leave it out where nothing decides for all blocks")
    return Profile(
        name=data.get("name", where),
        collectives=collectives,
        helpers=(helper,) if isinstance(helper, str) else tuple(helper),
        axis_parameter=table("helper").get("axis_parameter", _UNNAMED_AXIS if "EP" in collectives.values() else ""),
        wrappers=names("helper", "wrappers"),
        flags=tuple(
            Flag(
                name=flag["name"],
                aliases=tuple(flag.get("aliases", ())),
                predicate=flag.get("predicate", ""),
                absorber=flag.get("absorber", _SOMEBODY),
                permit=flag.get("permit", ""),
                last=flag.get("last", ""),
                sums=tuple(flag.get("sums", ())),
            )
            for flag in data.get("flags", ())
        ),
        summing=tuple(name for flag in data.get("flags", ()) for name in flag.get("sums", ())),
        skip_predicates=names("predicates", "skip"),
        publishers=names("context", "publish"),
        markers=names("context", "markers"),
        ownership=names("context", "ownership"),
        absorber_constructors=names("absorbers", "constructors"),
        scatters=names("absorbers", "scatters"),
        plain_scatters=names("absorbers", "plain_scatters"),
        combines=names("absorbers", "combines"),
        absorber=table("absorbers").get("who", "whoever absorbs the reduction there"),
        last_stage=names("pipeline", "last_stage"),
        send=names("pipeline", "send"),
        captures=names("pipeline", "captures"),
        heads=names("pipeline", "heads"),
        pipeline_option=table("pipeline").get("option", ""),
        reducing=names("context", "reducing"),
        replicating=names("context", "replicating"),
        expert_attributes=names("experts", "attributes"),
        expert_functions=names("experts", "functions"),
        expert_constructors=names("experts", "constructors"),
        expert_exclude=names("experts", "exclude"),
        shared_element=table("experts").get("shared_element"),
        shared=names("experts", "shared"),
        barriers=names("experts", "barriers"),
        other_layers=names("experts", "other_layers"),
        sizes=names("topology", "sizes"),
        backend_getter=table("backends").get("getter", ""),
        backend_enum=table("backends").get("enum", ""),
        launch=_launch(table("launch"), where),
    )


def _launch(data: Mapping[str, Any], where: str) -> Space:
    def items(key: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = data.get(key, [])
        return [{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()} for entry in entries]

    try:
        return Space(
            tuple(Size(**{"names": (), **item}) for item in items("sizes")),
            tuple(Switch(**{"atoms": (), **item}) for item in items("switches")),
            tuple(Choice(**{"getter": "", "default": "", **item}) for item in items("choices")),
            tuple(data.get("constraints", ())),
            tuple(sorted(data.get("groups", {}).items())),
        )
    except ExpressionError as error:
        raise ProfileError(f"{where}: launch: {error}") from None
