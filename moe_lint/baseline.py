"""Baselines: the findings that a tree had when moe-lint came, so that only new ones fail.

A finding is known by its fingerprint (rule, path, function and what it is about; never a line number). Paths are
relative to the baseline's own folder, so the file can be checked in and read from anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable

from msgspec import Struct

from moe_lint.fingerprint import SCHEME, fingerprints
from moe_lint.model import Finding, KnownFinding, UsageError

VERSION = 1


class Baseline(Struct, frozen=True):
    """The entries of a file; ``folder`` (absolute) is what their paths are relative to."""

    folder: str
    entries: tuple[KnownFinding, ...]

    def split(
        self, reported: Iterable[Finding], silenced: Iterable[Finding], judged: Callable[[KnownFinding], bool]
    ) -> tuple[tuple[Finding, ...], tuple[Finding, ...], tuple[KnownFinding, ...]]:
        """(new findings, known findings, stale entries).

        ``silenced`` findings are not reported, and still answer for their entries. An entry without a finding is stale
        if this run ``judged`` its place.
        """
        reported = tuple(reported)
        found = fingerprints([*reported, *silenced], self.folder)
        listed = {entry.fingerprint for entry in self.entries}
        new = tuple(finding for finding in reported if found[finding] not in listed)
        known = tuple(finding for finding in reported if found[finding] in listed)
        alive = set(found.values())
        stale = tuple(entry for entry in self.entries if entry.fingerprint not in alive and judged(entry))
        return new, known, stale

    def path(self, entry: KnownFinding) -> str:
        """The absolute path of an entry's file."""
        return os.path.normpath(os.path.join(self.folder, *entry.path.split("/")))


def render_baseline(reported: Iterable[Finding], silenced: Iterable[Finding], file: str) -> str:
    """The text of a baseline with the reported findings. ``file`` is where it will stand."""
    folder = os.path.dirname(os.path.realpath(file))
    reported = tuple(reported)
    found = fingerprints([*reported, *silenced], folder)
    entries = [
        {
            "fingerprint": found[finding],
            "rule": finding.rule,
            "path": os.path.relpath(finding.path, folder).replace(os.sep, "/"),
            "function": finding.qualname,
            "about": finding.message,
        }
        for finding in sorted(reported, key=lambda f: f.order)
    ]
    return json.dumps({"version": VERSION, "scheme": SCHEME, "findings": entries}, indent=2) + "\n"


def read_baseline(file: str) -> Baseline:
    """Load a baseline. Raises ``UsageError``."""
    try:
        with open(file, encoding="utf-8") as stream:
            document = json.load(stream)
    except OSError as error:
        hint = "; write it with --write-baseline" if isinstance(error, FileNotFoundError) else ""
        raise UsageError(f"{file}: the baseline cannot be read: {error.strerror or error}{hint}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{file}: not a baseline: no valid JSON") from None
    if not isinstance(document, dict) or "findings" not in document:
        raise UsageError(f"{file}: not a baseline of moe-lint")
    made = (document.get("version"), document.get("scheme"))
    if made != (VERSION, SCHEME):
        raise UsageError(
            f"{file}: a baseline of version {made[0]!r} ({made[1]!r}), this moe-lint reads version {VERSION} "
            f"({SCHEME!r}); write it again with --write-baseline"
        )
    entries = document["findings"]
    keys = ("fingerprint", "rule", "path", "function")
    if not isinstance(entries, list):
        raise UsageError(f"{file}: not a baseline of moe-lint: `findings` is no list")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
            raise UsageError(f"{file}: not a baseline of moe-lint: entry {number} lacks one of {', '.join(keys)}")
        if not _is_path(entry["path"]):
            raise UsageError(f"{file}: not a baseline of moe-lint: entry {number} names a path that cannot be")
    folder = os.path.dirname(os.path.realpath(file))
    return Baseline(folder, tuple(KnownFinding(*(entry[key] for key in keys)) for entry in entries))


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
