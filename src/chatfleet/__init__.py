"""ChatFleet: one OpenAI-compatible endpoint over any machines and engines."""

from importlib.metadata import version

__version__ = version("chatfleet")
