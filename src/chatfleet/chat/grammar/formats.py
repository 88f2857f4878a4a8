"""The formats of JSON Schema as texts. Each leaves out what validators differ on, and nothing that matters."""

from functools import cache
from typing import Final

from chatfleet.chat.grammar.nodes import Node
from chatfleet.chat.grammar.regex import full_match

_YEAR: Final = r"([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR: Final = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE: Final = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    rf"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE: Final = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_N: Final = r"[0-9]{1,4}"
_DAYS: Final = rf"({_N}Y({_N}M({_N}D)?)?|{_N}M({_N}D)?|{_N}D)"
_HOURS: Final = rf"T({_N}H({_N}M({_N}S)?)?|{_N}M({_N}S)?|{_N}S)"

_LABEL_REST: Final = r"([a-zA-Z0-9]|-[a-zA-Z0-9]){0,30}"
_LABEL: Final = rf"[a-zA-Z0-9]{_LABEL_REST}"
_LAST_LABEL: Final = rf"[a-zA-Z]{_LABEL_REST}"
_HOSTNAME: Final = rf"{_LABEL}(\.{_LABEL}){{0,3}}"
"""Four labels at most: more, of that length, would not fit the 253 characters that a name may have."""
_DOMAIN: Final = rf"({_LABEL}\.){{1,6}}{_LAST_LABEL}"

_OCTET: Final = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = rf"{_OCTET}(\.{_OCTET}){{3}}"
_HEX4: Final = r"[0-9a-fA-F]{1,4}"


def _ipv6() -> str:
    """Eight groups, or fewer with one `::`."""
    rest = f":(:|{_HEX4})"
    for groups in range(6, 0, -1):
        rest = f":(:({_HEX4}(:{_HEX4}){{0,{6 - groups}}})?|{_HEX4}{rest})"
    return f"({_HEX4}{rest}|::({_HEX4}(:{_HEX4}){{0,6}})?|::[fF]{{4}}:{_IPV4})"


_IPV6: Final = _ipv6()
_NAME_CHAR: Final = r"([a-zA-Z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{2})"
_PATH_CHAR: Final = r"([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_PORT: Final = r"([1-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST: Final = r"[a-zA-Z0-9]+([.-][a-zA-Z0-9]+)*"
_USER: Final = r"([a-zA-Z0-9._~-]+(:[a-zA-Z0-9._~-]*)?@)?"
"""Hosts and users that are common, without IPv6 and escapes: in automata, with a pattern beside them, they grow."""
_SEGMENTS: Final = rf"(/{_PATH_CHAR}*)*"
_AUTHORITY: Final = rf"//({_USER}{_HOST}(:{_PORT})?{_SEGMENTS}|/{_PATH_CHAR}+{_SEGMENTS})"
_ABSOLUTE: Final = rf"/({_PATH_CHAR}+{_SEGMENTS})?"
_QUERY: Final = rf"\?({_PATH_CHAR}|[/?])*"
_FRAGMENT: Final = rf"#({_PATH_CHAR}|[/?])*"
_TAIL: Final = rf"({_QUERY})?({_FRAGMENT})?"
_URI: Final = rf"[a-zA-Z][a-zA-Z0-9+.-]{{1,15}}:({_AUTHORITY}|{_ABSOLUTE}|{_PATH_CHAR}+{_SEGMENTS}){_TAIL}"
_RELATIVE: Final = (
    rf"(({_AUTHORITY}|{_ABSOLUTE}|{_NAME_CHAR}({_NAME_CHAR}|@)*{_SEGMENTS}){_TAIL}"
    rf"|{_QUERY}({_FRAGMENT})?|{_FRAGMENT})"
)


_HEX: Final = "[0-9a-fA-F]"


def _uuid(version: int) -> str:
    """As RFC 9562 has it."""
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"


FORMATS: Final[dict[str, str]] = {
    "date": _DATE,
    "time": _CLOCK + _ZONE,
    "date-time": _DATE + "T" + _CLOCK + _ZONE,
    "duration": rf"P({_N}W|{_DAYS}({_HOURS})?|{_HOURS})",
    "email": rf"[a-zA-Z0-9_%+'-]{{1,32}}(\.[a-zA-Z0-9_%+'-]{{1,32}}){{0,2}}@{_DOMAIN}",
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    **{f"uuid{version}": _uuid(version) for version in (1, 3, 4, 5, 6, 7, 8)},
    "ipvanyaddress": f"({_IPV4}|{_IPV6})",
    "uri": _URI,
    "uri-reference": rf"({_URI}|{_RELATIVE})",
    "json-pointer": r"(/([^~/\x00-\x1f]|~[01])*)*",
}
FORMLESS: Final = frozenset(
    {"int32", "int64", "float", "double", "password", "binary", "path", "file-path", "directory-path"}
)
"""Some of OpenAPI and pydantic: they say what a value is for, and not how it is written."""


@cache
def of_format(name: str) -> Node:
    """Texts of the format, which must be one of `FORMATS`."""
    return full_match(FORMATS[name], param=None, where=f"the format {name}")
