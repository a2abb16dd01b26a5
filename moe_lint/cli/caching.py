"""`--cache-dir` and `--no-cache`: where judgements are kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moe_lint.cache import Cache


class _Folder(click.Path):
    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not value:  # to Path, no name at all is the working directory
            self.fail("it names no folder", parameter, context)
        return super().convert(value, parameter, context)


#: Adds `cache_dir` to a command.
cache_folder = click.option(
    "--cache-dir",
    type=_Folder(file_okay=False, readable=False, path_type=Path),
    envvar="MOE_LINT_CACHE_DIR",
    metavar="DIR",
    help="Where judgements are kept.  [default: the platform's cache folder]",
)


def cache_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `cache_dir` and `no_cache` to a command."""
    off = click.option("--no-cache", is_flag=True, help="Judge everything anew, and keep nothing.")
    return cache_folder(off(command))


def cache_of(cache_dir: Path | None, no_cache: bool) -> Cache | None:
    """The cache that the options name; None when there shall be none."""
    return None if no_cache else open_cache(cache_dir)


def open_cache(cache_dir: Path | None) -> Cache:
    """The cache in a folder, or else in the platform's. Nothing is written yet."""
    from moe_lint.cache import Cache

    if cache_dir is not None:
        return Cache(cache_dir.absolute(), required=True)
    from platformdirs import user_cache_path

    return Cache(user_cache_path("moe-lint", appauthor=False))
