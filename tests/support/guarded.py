"""Runs the `chatfleet` command with the blocking-call detector on: a blocked event loop is an error there too."""

from blockbuster import BlockBuster

from chatfleet.cli import main

if __name__ == "__main__":
    BlockBuster().activate()
    main()
