"""Files -> texts and facts; keeps what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

from msgspec import MsgspecError, Struct

from moe_lint.facts import FileFacts
from moe_lint.kept import FileChanged, Kept, Unchanged
from moe_lint.model import Problem
from moe_lint.prefilter import Prefilter, digest_of, read_bytes
from moe_lint.profile import Profile
from moe_lint.source import SourceError, decode, problem_of
from moe_lint.text import Text


class KnownFile:
    """What is known of a file with one text: where words are, and, once it was asked for, what it says.

    ``source`` is the text, or how to get it: of a file that is as it was, much is known without it.
    """

    def __init__(
        self, path: str, source: str | Callable[[], str], profile: Profile, digest: bytes, kept: Kept | None
    ) -> None:
        self._path = path
        #: of its content, if it was read from the disk
        self.digest = digest
        self._profile = profile
        self._kept = kept
        try:
            self.text = Text(source, kept.searches if kept is not None else None)
        except MsgspecError:  # of no use: as if it were not there
            self.text = Text(source)

    def is_of(self, source: str | Callable[[], str], digest: bytes, profile: Profile) -> bool:
        """Whether this is what is known of such a file, as far as can be told without reading one."""
        same = digest == self.digest if digest and self.digest else source == self.text.lines.known
        return same and self._profile == profile

    @cached_property
    def facts(self) -> FileFacts:
        """Raises ``SourceError``."""
        kept = self._kept.facts if self._kept is not None else None
        if kept is not None:
            try:
                return FileFacts(self._path, self.text.lines, self._profile, kept)
            except MsgspecError:
                pass
        return FileFacts(self._path, self.text.lines, self._profile)

    @property
    def known_facts(self) -> FileFacts | None:
        """The facts, if somebody has asked for them."""
        return self.__dict__.get("facts")

    def kept(self, candidate: bool) -> Kept:
        """All that, for a later run that finds the same text."""
        facts = self.known_facts
        before = self._kept.facts if self._kept is not None else None
        return Kept(self.digest, candidate, self.text.kept(), before if facts is None else facts.kept())


#: Path -> what is known of it, for the next judgement of a tree of which few files have changed.
Known = dict[str, KnownFile]


class _Look(Struct, frozen=True):
    """What was seen of a file: its content, and what was known of such a content."""

    data: bytes
    kept: Kept | None
    #: there was no need to read it: there is no ``data``
    unread: bool = False


def _read_late(path: str, digest: bytes) -> str:
    """The text of a file with that content. Raises ``FileChanged`` where it has another one by now."""
    try:
        data = read_bytes(path)
    except OSError:
        raise FileChanged from None
    if digest_of(data) != digest:
        raise FileChanged
    return decode(data)


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
        self._unchanged = unchanged
        self._files: dict[str, KnownFile] = {}
        self._candidates: set[str] = set()
        self._failed: dict[str, Problem] = {}
        self._prefilter = prefilter
        self._overlay = overlay

    def candidate(self, path: str) -> Text | None:
        """The text of a file that may matter, else None."""
        if path in self._overlay:
            return self._file(path).text
        if self._unchanged is not None and path in self._unchanged.dull:
            return None
        try:
            looked = self._look(path)
            matters = looked.kept.candidate if looked.kept is not None else self._prefilter.is_candidate(looked.data)
            if not matters:
                return None
            self._candidates.add(path)
            return self._file(path, looked).text
        except (OSError, SourceError) as error:
            self._fail(path, error)
            return None

    def _look(self, path: str) -> _Look:
        """Read a file, unless it is known without that what it holds. Raises ``OSError``."""
        kept = self._unchanged.files.get(path) if self._unchanged is not None else None
        if self._unchanged is not None and kept is not None and path in self._unchanged.unread:
            return _Look(b"", kept, unread=True)
        data = read_bytes(path)  # it may have changed since it was looked at
        return _Look(data, kept if kept is not None and kept.digest == digest_of(data) else None)

    def facts(self, path: str) -> FileFacts | None:
        """The facts of any file of the tree; None, with the reason recorded, when it cannot be parsed."""
        try:
            return self._file(path).facts
        except (OSError, SourceError) as error:
            self._fail(path, error)
        return None

    def _file(self, path: str, looked: _Look | None = None) -> KnownFile:
        """``looked`` is what was seen of the file, where it was looked at already.

        Raises ``OSError`` and ``SourceError``.
        """
        if path in self._files:
            return self._files[path]
        source: str | Callable[[], str]
        if path in self._overlay:
            source, digest, kept = self._overlay[path], b"", None
        else:
            looked = looked or self._look(path)
            kept = looked.kept
            digest = digest_of(looked.data) if kept is None else kept.digest
            source = partial(_read_late, path, digest) if looked.unread else decode(looked.data)
        file = self._known.get(path)
        if file is None or not file.is_of(source, digest, self.profile):
            file = self._known[path] = KnownFile(path, source, self.profile, digest, kept)
        elif isinstance(source, str):
            file.text.lines.supply(source)
        file.digest = digest or file.digest
        self._files[path] = file
        return file

    def found(self) -> dict[str, Kept]:
        """Path -> what was found out about it, for a later run."""
        return {path: file.kept(path in self._candidates) for path, file in self._files.items()}

    @property
    def problems(self) -> dict[str, Problem]:
        """Path -> why the file could not be read; of a file that could not be read as a whole, the first reason."""
        known = (facts for file in self._files.values() if (facts := file.known_facts) is not None)
        partly = {facts.path: problem_of(facts.path, facts.errors[0]) for facts in known if facts.errors}
        return {**partly, **self._failed}

    def _fail(self, path: str, error: OSError | SourceError) -> None:
        self._failed.setdefault(path, problem_of(path, error))
