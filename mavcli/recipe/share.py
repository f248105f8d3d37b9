"""Where things are: `recipes/` and `weights/`, beside the package in a checkout or inside an installed wheel; the user's own."""

from __future__ import annotations

import os
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


def cache_dir() -> Path:
    """Where mav keeps what can be made again: `MAV_CACHE`, else the desktop standard's folder."""
    if set_by_user := os.environ.get("MAV_CACHE"):
        return Path(set_by_user).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mav"


def data_dir() -> Path:
    """Where mav keeps what a user added for good: `MAV_DATA`, else the desktop standard's folder."""
    if set_by_user := os.environ.get("MAV_DATA"):
        return Path(set_by_user).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "mav"
