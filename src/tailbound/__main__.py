"""`python -m tailbound` is the `tailbound` command."""

from tailbound.cli import main

if __name__ == "__main__":
    main()
