"""What stays the same about a finding when the lines around it move: the one identity that every output uses."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import PurePath

from moe_lint.model import Finding

#: The scheme's name in outputs. A change of what is hashed is a new number: old baselines then match nothing.
SCHEME = "moeLint/v1"

_NUMBER = re.compile(r"\d+")


def fingerprints(findings: Iterable[Finding], root: str | None = None) -> dict[Finding, str]:
    """Finding -> 32 hex digits over rule, path, function and what the finding is about (`Finding.subject`).

    Line numbers are not part of it, so edits elsewhere in the file keep it. Findings that are alike in all of that are
    told apart by their order in the file; so hand over all findings of a run, the silenced ones too. Paths are taken
    relative to ``root``, or as the report shows them without one.
    """
    counted: dict[tuple[str, ...], int] = {}
    found: dict[Finding, str] = {}
    for finding in sorted(set(findings), key=lambda f: f.order):
        identity = _identity(finding, root)
        ordinal = counted[identity] = counted.get(identity, -1) + 1
        text = "\0".join((*identity, str(ordinal)))
        found[finding] = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return found


def _identity(finding: Finding, root: str | None) -> tuple[str, ...]:
    path = finding.path if root is None else os.path.relpath(finding.path, root)
    # a rule that names no subject is told apart by its words, less any line number in them
    subject = finding.subject or _NUMBER.sub("#", finding.message)
    return finding.rule, PurePath(path).as_posix(), finding.qualname, subject
