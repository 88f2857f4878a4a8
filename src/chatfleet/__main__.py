"""`python -m chatfleet` is the `chatfleet` command."""

from chatfleet.cli import main

if __name__ == "__main__":
    main()
