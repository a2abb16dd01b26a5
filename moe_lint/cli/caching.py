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


def cache_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `cache_dir` and `no_cache` to a command."""
    folder = click.option(
        "--cache-dir",
        type=_Folder(file_okay=False, readable=False, path_type=Path),
        envvar="MOE_LINT_CACHE_DIR",
        metavar="DIR",
        help="Where judgements are kept. [default: the platform's cache folder]",
    )
    off = click.option("--no-cache", is_flag=True, help="Judge everything anew, and keep nothing.")
    return folder(off(command))


def open_cache(cache_dir: Path | None, no_cache: bool = False) -> Cache | None:
    """The cache that the options name; None when there shall be none."""
    if no_cache:
        return None
    from moe_lint.cache import Cache

    if cache_dir is not None:
        return Cache(cache_dir.absolute(), required=True)
    from platformdirs import user_cache_path

    return Cache(user_cache_path("moe-lint", appauthor=False))
