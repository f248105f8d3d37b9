"""Where `recipes/` and `weights/` are: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from mavcli.errors import MavError

_PACKAGE = Path(__file__).resolve().parent.parent


def share_dir(name: str) -> Path:
    """The folder `recipes` or `weights` that belongs to this installation."""
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    installed = _PACKAGE / "_share" / name
    if installed.is_dir():
        return installed
    raise MavError(
        f"this installation of mav lacks its `{name}` folder", hint="pip install --force-reinstall mavcli"
    )
