"""`python -m mavcli` is `mav`."""

from mavcli.cli.app import main

if __name__ == "__main__":
    main()
