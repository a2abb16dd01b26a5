"""Files with a new text: as a diff, as edits, as bytes, on the disk."""

from __future__ import annotations

import difflib
import io
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from moe_lint.atomic import replace_files
from moe_lint.model import FixPlan, Replacement, Span, UsageError
from moe_lint.source import lines_with_ends


class Rewritten(Struct, frozen=True):
    """One file's old and new text, and the plans that make the difference. ``path`` is as the report shows it."""

    path: str
    before: str
    after: str
    plans: tuple[FixPlan, ...] = ()


def diff(files: Iterable[Rewritten]) -> str:
    """A unified diff of all files, as `patch -p1` takes it."""
    chunks = []
    for one in sorted(files, key=lambda f: f.path):
        lines = difflib.unified_diff(
            lines_with_ends(one.before),
            lines_with_ends(one.after),
            f"a/{one.path.lstrip('/')}",
            f"b/{one.path.lstrip('/')}",
        )
        chunks += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]
    return "".join(chunks)


def replacements(before: str, after: str) -> tuple[Replacement, ...]:
    """The ranges of whole lines in which two texts differ, as edits of the first."""
    old, new = lines_with_ends(before), lines_with_ends(after)
    return tuple(
        Replacement(_extent(old, i1, i2), "".join(new[j1:j2]))
        for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if tag != "equal"
    )


def _extent(lines: Sequence[str], start: int, end: int) -> Span:
    """The range of whole lines, up to where the next one begins; the last line may have no newline."""
    if end > start and not lines[end - 1].endswith("\n"):
        return Span(start + 1, 1, end, len(lines[end - 1]) + 1)
    return Span(start + 1, 1, end + 1, 1)


def encoded(files: Iterable[Rewritten]) -> dict[Path, bytes]:
    """Absolute path -> what `write_all` would write there. Raises ``UsageError``."""
    return {Path(path).resolve(): new for path, _, new in _prepared(files)}


def write_all(files: Iterable[Rewritten]) -> None:
    """Write every file, or none: each in its own encoding, with its mode kept.

    Raises ``UsageError``, with the place, when one cannot be written or is not what was judged.
    """
    try:
        replace_files(_prepared(files))
    except OSError as error:
        raise _cannot_write(error.filename, error) from None


def _prepared(files: Iterable[Rewritten]) -> list[tuple[str, bytes, bytes]]:
    """(path, what stands there, what is to) of every file. Raises ``UsageError``."""
    found = []
    for one in files:
        try:
            old = Path(one.path).read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(old).readline)
            if one.before.encode(encoding) != old:
                raise OSError(0, "it changed while it was being judged")
            found.append((one.path, old, one.after.encode(encoding)))
        except (OSError, UnicodeEncodeError) as error:
            raise _cannot_write(one.path, error) from None
    return found


def _cannot_write(path: str, error: Exception) -> UsageError:
    why = error.strerror if isinstance(error, OSError) else f"its encoding lacks a character: {error}"
    return UsageError(f"{path}: cannot be written: {why or error}; no file was changed")
