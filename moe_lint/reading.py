"""Files -> texts and facts; keeps what could not be read."""

from __future__ import annotations

from collections.abc import Mapping

from moe_lint.facts import FileFacts
from moe_lint.model import Problem
from moe_lint.prefilter import Prefilter, read_bytes
from moe_lint.profile import Profile
from moe_lint.source import SourceError, decode, problem_of


class Reader:
    """Reads and parses files, and keeps what went wrong. ``overlay``: path -> text that stands for the file's."""

    def __init__(self, profile: Profile, prefilter: Prefilter, overlay: Mapping[str, str]) -> None:
        self.profile = profile
        self.problems: dict[str, Problem] = {}
        self._prefilter = prefilter
        self._overlay = overlay
        self._texts: dict[str, str] = {}

    def candidate(self, path: str) -> str | None:
        """The text of a file that may matter, else None."""
        if path in self._overlay:
            return self._overlay[path]
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
            return FileFacts(path, text, self.profile, lambda error: self._fail(path, error))
        except (OSError, SourceError) as error:
            self._fail(path, error)
        return None

    def _fail(self, path: str, error: OSError | SourceError) -> None:
        self.problems.setdefault(path, problem_of(path, error))
