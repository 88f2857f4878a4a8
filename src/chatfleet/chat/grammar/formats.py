"""The formats of JSON Schema as texts. Each leaves out what validators differ on, and nothing that matters."""

from functools import cache
from typing import Final

from chatfleet.chat.grammar.nodes import Node
from chatfleet.chat.grammar.regex import full_match

_DATE: Final = (
    r"([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-"
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_CLOCK: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE: Final = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL: Final = r"[a-zA-Z]([a-zA-Z0-9]|-[a-zA-Z0-9]){0,30}"
_HOSTNAME: Final = rf"{_LABEL}(\.{_LABEL}){{0,3}}"
_OCTET: Final = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_HEX4: Final = r"[0-9a-fA-F]{1,4}"
_PATH_CHAR: Final = r"([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_PATH: Final = rf"(/{_PATH_CHAR}*)*"
_TAIL: Final = rf"(\?({_PATH_CHAR}|[/?])*)?(#({_PATH_CHAR}|[/?])*)?"

FORMATS: Final[dict[str, str]] = {
    "date": _DATE,
    "time": _CLOCK + _ZONE,
    "date-time": _DATE + "T" + _CLOCK + _ZONE,
    "duration": r"P([0-9]{1,4}W|[0-9]{1,4}D(T([0-9]{1,4}H)?([0-9]{1,4}M)?[0-9]{1,4}S)?"
    r"|T[0-9]{1,4}[HMS]|T[0-9]{1,4}H[0-9]{1,4}M|[0-9]{1,4}Y([0-9]{1,4}M([0-9]{1,4}D)?)?|[0-9]{1,4}M)",
    "email": rf"[a-zA-Z0-9_+-]{{1,32}}(\.[a-zA-Z0-9_+-]{{1,32}}){{0,2}}@{_LABEL}(\.{_LABEL}){{1,3}}",
    "hostname": _HOSTNAME,
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "ipv6": rf"({_HEX4}(:{_HEX4}){{7}}|({_HEX4}(:{_HEX4}){{0,2}})?::({_HEX4}(:{_HEX4}){{0,2}})?)",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "uri": rf"[a-z][a-z0-9+.-]{{1,15}}://{_HOSTNAME}(:[0-9]{{1,5}})?{_PATH}{_TAIL}",
    "uri-reference": rf"([a-z][a-z0-9+.-]{{1,15}}://{_HOSTNAME}(:[0-9]{{1,5}})?{_PATH}|/({_PATH_CHAR}+/?)*){_TAIL}",
    "json-pointer": r"(/([^~/\x00-\x1f]|~[01])*)*",
}


@cache
def of_format(name: str) -> Node:
    """Texts of the format, which must be one of `FORMATS`."""
    return full_match(FORMATS[name], param=None, where=f"the format {name}")
