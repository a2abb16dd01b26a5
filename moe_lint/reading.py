"""Files -> texts and facts; keeps what could not be read."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import MsgspecError

from moe_lint.facts import FileFacts
from moe_lint.model import Problem, Unchanged
from moe_lint.prefilter import Prefilter, read_bytes
from moe_lint.profile import Profile
from moe_lint.source import SourceError, decode, problem_of

#: What is known of files by path, for the next judgement of a tree of which few files have changed.
Known = dict[str, FileFacts]


class Reader:
    """Reads and parses files, and keeps what went wrong.

    ``overlay``: path -> text that stands for the file's. ``known`` is used where the text is the same, and added to.
    ``unchanged`` is what an earlier run knew of files that are as they were.
    """

    def __init__(
        self,
        profile: Profile,
        prefilter: Prefilter,
        overlay: Mapping[str, str],
        known: Known,
        unchanged: Unchanged | None = None,
    ) -> None:
        self.profile = profile
        self._known = known
        self._dull = unchanged.dull if unchanged is not None else frozenset()
        self._kept = unchanged.files if unchanged is not None else {}
        self._read: list[FileFacts] = []
        self._failed: dict[str, Problem] = {}
        self._prefilter = prefilter
        self._overlay = overlay
        self._texts: dict[str, str] = {}

    def candidate(self, path: str) -> str | None:
        """The text of a file that may matter, else None."""
        if path in self._overlay:
            return self._overlay[path]
        if path in self._dull:
            return None
        try:
            data = read_bytes(path)
            if not self._prefilter.is_candidate(data):
                return None
            text = self._texts[path] = decode(data)
        except (OSError, SourceError) as error:
            self._fail(path, error)
            return None
        return text

    def facts(self, path: str) -> FileFacts | None:
        """The facts of any file of the tree; None, with the reason recorded, when it cannot be parsed."""
        try:
            text = self._overlay.get(path, self._texts.get(path))
            if text is None:
                text = decode(read_bytes(path))
            facts = self._known.get(path)
            if facts is None or facts.lines.text != text or facts.profile != self.profile:
                facts = self._known[path] = self._facts(path, text)
            self._read.append(facts)
            return facts
        except (OSError, SourceError) as error:
            self._fail(path, error)
        return None

    def _facts(self, path: str, text: str) -> FileFacts:
        kept = self._kept.get(path) if path not in self._overlay else None
        if kept is not None:
            try:
                return FileFacts(path, text, self.profile, kept)
            except MsgspecError:  # of no use: as if it were not there
                pass
        return FileFacts(path, text, self.profile)

    def found(self) -> dict[str, bytes | memoryview]:
        """Path -> what was found out about it, for a later run."""
        return {facts.path: kept for facts in self._read if (kept := facts.kept()) is not None}

    @property
    def problems(self) -> dict[str, Problem]:
        """Path -> why the file could not be read; of a file that could not be read as a whole, the first reason."""
        partly = {facts.path: problem_of(facts.path, facts.errors[0]) for facts in self._read if facts.errors}
        return {**partly, **self._failed}

    def _fail(self, path: str, error: OSError | SourceError) -> None:
        self._failed.setdefault(path, problem_of(path, error))
