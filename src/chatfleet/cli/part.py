"""What the commands of all parts of a fleet begin with."""

import logging

from chatfleet.supervisor.channel import Announce, announce_to_parent


def begin_part(tell: Announce) -> Announce:
    """Set up the log, and tie this process to the supervisor that started it, where one did.

    Returns what to call with the base URL and the model names once they are known: it tells the supervisor, or else
    is `tell`, which prints them.
    """
    announce = announce_to_parent() or tell
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return announce
