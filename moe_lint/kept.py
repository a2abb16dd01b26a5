"""What one run hands to the next: the values that the cache keeps beside judgements."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from moe_lint.launch import Configurations

#: A file's size, times and inode.
Stamp = tuple[int, int, int, int]


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
    #: path -> the stamp of a file that is as old as it says: while it has that, it is as it was
    stamps: Mapping[str, Stamp]
    #: what was looked for among the launch configurations
    configurations: Configurations
