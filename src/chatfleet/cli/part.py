"""What the commands of all parts of a fleet begin with."""

import logging
import resource
from typing import Final

from chatfleet.supervisor.channel import Announce, announce_to_parent

_MAX_DESCRIPTORS: Final = 65536

logger = logging.getLogger(__name__)


def begin_part(tell: Announce) -> Announce:
    """Set up the log, and tie this process to the supervisor that started it, where one did.

    Returns what to call with the base URL and the model names once they are known: it tells the supervisor, or else
    is `tell`, which prints them.
    """
    announce = announce_to_parent() or tell
    _raise_descriptor_limit()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return announce


def _raise_descriptor_limit() -> None:
    """As many connections as the system lets us have: a stream through a gateway takes two descriptors, and the usual
    soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if wanted > soft != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as exc:
            logger.warning("no more than %d descriptors can be had (%s): that many connections at most", soft, exc)
