"""Runs the `chatfleet` command with the blocking-call detector on, in it and in every process that it starts: a blocked
event loop is an error there too."""

import os
from pathlib import Path

from blockbuster import BlockBuster

from chatfleet.cli import main

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).with_name("guard")), os.environ.get("PYTHONPATH")])
    )
    detector = BlockBuster()
    # A loop that closes joins the thread that has ended its executor, which on a busy machine takes a moment.
    detector.functions["threading.Lock.acquire"].can_block_in("asyncio/runners.py", {"close"})
    detector.activate()
    main()
