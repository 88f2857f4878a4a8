"""HTTP/1.1 that no server may take: what two parsers could read in two ways (RFC 9112, 2.2, 5, 6, 7.1, 11.2)."""

LENGTHS = {
    "both lengths given": b"content-length: 2\r\ntransfer-encoding: chunked",
    "both lengths given, the other first": b"transfer-encoding: chunked\r\ncontent-length: 2",
    "two lengths": b"content-length: 2\r\ncontent-length: 3",
    "two lengths, one of them none": b"content-length: 2\r\ncontent-length: 0",
    "two lengths in a line": b"content-length: 2, 3",
    "a length with a plus": b"content-length: +2",
    "a length with a minus": b"content-length: -2",
    "a length in hex": b"content-length: 0x2",
    "a length of letters": b"content-length: b",
    "a length with a fraction": b"content-length: 2.0",
    "a length with a space inside": b"content-length: 1 2",
    "a length with a vertical tab": b"content-length: \x0b2",
    "a length of digits that are not ASCII": b"content-length: \xd9\xa2",
    "a length that is empty": b"content-length:",
    "a length past 64 bits": b"content-length: 18446744073709551618",
    "an encoding behind chunked": b"transfer-encoding: chunked, identity",
    "gzip behind chunked": b"transfer-encoding: chunked, gzip",
    "chunked twice in a line": b"transfer-encoding: chunked, chunked",
    "chunked twice": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    "an encoding that nobody knows": b"transfer-encoding: xchunked",
    "an encoding with a parameter": b"transfer-encoding: chunked;q=1",
    "an encoding in quotes": b'transfer-encoding: "chunked"',
    "an encoding behind a vertical tab": b"transfer-encoding: \x0bchunked",
    "a space before the colon of a length": b"content-length : 2",
    "a space before the colon of an encoding": b"transfer-encoding : chunked",
    "NUL in a length": b"content-length: 2\x00",
}
"""Framings, as header lines."""

REQUEST_LENGTHS = {
    **LENGTHS,
    "the same length twice": b"content-length: 2\r\ncontent-length: 2",
    "the same length twice in a line": b"content-length: 2, 2",
    "no encoding at all": b"transfer-encoding: identity",
    "an encoding that is empty": b"transfer-encoding:",
    "gzip before chunked": b"transfer-encoding: gzip, chunked",
    "a folded length": b"content-length:\r\n 2",
    "a folded encoding": b"transfer-encoding:\r\n chunked",
}
"""Those that answers of foreign servers might get away with, too."""

CHUNKS = {
    "no chunk size": b"\r\n{}\r\n0\r\n\r\n",
    "a chunk size of letters": b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a plus": b"+2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a minus": b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk size behind a space": b" 2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with an underscore": b"0_2\r\n{}\r\n0\r\n\r\n",
    "a chunk size past 64 bits": b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a chunk size that a bare LF ends": b"2\n{}\r\n0\r\n\r\n",
    "a chunk size that a bare CR ends": b"2\r{}\r\n0\r\n\r\n",
    "a chunk longer than its size": b"2\r\n{}{}\r\n0\r\n\r\n",
    "a chunk that a bare LF ends": b"2\r\n{}\n0\r\n\r\n",
    "a bare LF in a chunk extension": b"2;a\n\r\n{}\r\n0\r\n\r\n",
    "NUL in a chunk extension": b"2;a\x00\r\n{}\r\n0\r\n\r\n",
}
"""Bodies that are not chunked as they say."""

LINES = {
    "a folded line": b"x-a: 1\r\n 2",
    "a line folded with a tab": b"x-a: 1\r\n\t2",
    "a line that a bare LF ends": b"x-a: 1\nx-b: 2",
    "a line that a bare CR ends": b"x-a: 1\rx-b: 2",
    "a bare CR in a value": b"x-a: 1\r2",
    "a space before a colon": b"x-a : 1",
    "a tab before a colon": b"x-a\t: 1",
    "a space in a name": b"x a: 1",
    "a bracket in a name": b"x(a): 1",
    "a name that is empty": b": 1",
    "a line without a colon": b"x-a",
    "NUL in a name": b"x\x00a: 1",
    "NUL in a value": b"x-a: 1\x002",
    "a name that is not ASCII": b"x-\xe4: 1",
}
"""Header lines that are none."""
