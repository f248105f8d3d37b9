"""`python -m mavcli` and `mav`: signals are heard before anything is imported that takes time."""

from __future__ import annotations

from typing import NoReturn

from mavcli.cli import signals


def main() -> NoReturn:
    """The `mav` command."""
    signals.listen()
    from mavcli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
