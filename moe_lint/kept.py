"""What one run hands to the next: the values that the cache keeps beside judgements."""

from __future__ import annotations

from collections.abc import Mapping, Set

from msgspec import Struct

from moe_lint.launch import Configurations


class FileChanged(Exception):
    """A file is no longer as it was when the run began, which has gone by what was known of it."""


class Kept(Struct, frozen=True):
    """What was found out about a file, as `Text.kept` and `FileFacts.kept` gave it."""

    #: of its content
    digest: bytes
    #: it holds a word of the engine; else only its facts were asked for
    candidate: bool
    searches: memoryview
    facts: memoryview | None


class Unchanged(Struct, frozen=True):
    """What an earlier run knew of the files of a tree that are as they were."""

    #: those without any word of the engine
    dull: frozenset[str]
    #: path -> what was found out about it
    files: Mapping[str, Kept]
    #: those among them that are known to be as they were without having been read
    unread: Set[str]
    #: what was looked for among the launch configurations
    configurations: Configurations
