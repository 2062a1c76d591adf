"""The only gate to optional packages: says which extra to install where one is missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from sightline.errors import MissingExtraError


def optional(package: str, extra: str, purpose: str) -> Any:
    """The module of this name.

    Args:
        package: its name, such as "scipy.stats".
        extra: the extra of sightline that installs it.
        purpose: what needs it, as the beginning of a sentence.

    Raises:
        MissingExtraError: it isn't installed.
    """
    require([package.partition(".")[0]], extra, purpose)
    return importlib.import_module(package)


def require(packages: list[str], extra: str, purpose: str) -> None:
    """Refuses to begin where one of the packages isn't installed; imports none of them."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs the extra `{extra}` ({' and '.join(missing)}): pip install 'sightline[{extra}]'"
        )
