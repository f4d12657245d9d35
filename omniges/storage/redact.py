"""Removal of credentials from text before it reaches an error, a log or a file.

Messages of storage libraries may contain URLs with passwords or signatures, request headers, or the XML of a refused
request. `redact` is called for every such text. It hides the secrets that the caller passes, and everything that looks
like a credential. Text that may or may not be a credential is hidden too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

HIDDEN: Final = "***"
_SHORTEST_SECRET: Final = 6  # characters; hiding a shorter value would also hide parts of ordinary words
_SENSITIVE: Final = (
    r"[\w-]*(?:signature|credential|security[_-]?token|token|secret|passwd|password|passphrase|authorization"
    r"|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|cookie|stringtosign|canonicalrequest)[\w-]*"
)
# User information ends at the last @ of the authority. A password that contains a slash ends the authority too early.
# So `user:…@` up to the last @ of the word is hidden too, unless a port follows the colon.
_USERINFO: Final = re.compile(r"(?<=://)(?:[^\s/?#\"<>]*:(?!\d{1,5}/)[^\s\"<>]*@|[^\s/?#\"<>]*@)")
_QUERY: Final = re.compile(r"(?<=[?&;])([^\s=&;?'\"<>]+)=([^\s&;'\"<>]*)")
_FRAGMENT_OR_QUERY_WORD: Final = re.compile(r"(?<=://)([^\s?'\"<>]*\?)([^\s=&'\"<>]+)(?=[\s'\"<>]|$)")
_ELEMENT: Final = re.compile(rf"<({_SENSITIVE}|AWSAccessKeyId)>.*?</\1>", re.IGNORECASE | re.DOTALL)
_HEADER: Final = re.compile(
    rf"(?i)\b({_SENSITIVE}|sig)(['\"]?\s*[=:]\s*)"
    r"(?:b?(['\"])(?:(?!\3).)*\3|(?:(?:bearer|basic|negotiate)\s+)?[^\s,'\"&;<>]+)"
)
_SCHEME: Final = re.compile(r"\b([Bb]earer)\s+[^\s'\",<>]+")
_SHAPES: Final = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ABIA|ACCA|GOOG)[A-Z0-9]{12,}\b"),  # key ids
    re.compile(  # 40 characters of base64, with upper case, lower case and digits among them, are a secret key
        r"(?<![A-Za-z0-9/+])(?=[A-Za-z0-9/+]*[A-Z])(?=[A-Za-z0-9/+]*[a-z])(?=[A-Za-z0-9/+]*\d)[A-Za-z0-9/+]{40}"
        r"(?![A-Za-z0-9/+=])"
    ),
    re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|AIza[\w-]{30,})"),
    re.compile(r"\bya29\.[\w.-]+"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"),  # a JSON web token
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace everything that has the form of a credential, and every given secret, by ``***``.

    This function hides user information and all query values of URLs, values after a sensitive name (token, secret,
    signature, authorization …), and known forms of keys and tokens. A second call on the result changes nothing:
    ``redact(redact(t)) == redact(t)``.

    Args:
        text: The text.
        secrets: Secrets in use, which are hidden wherever they occur.

    Returns:
        The text without credentials.
    """
    for secret in sorted({form for value in secrets for form in _forms(value)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(HIDDEN, text)
    text = _ELEMENT.sub(rf"<\1>{HIDDEN}</\1>", text)
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1={HIDDEN}", text)
    text = _FRAGMENT_OR_QUERY_WORD.sub(rf"\1{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    return _HEADER.sub(rf"\1\2\3{HIDDEN}\3", text)


def _forms(secret: str) -> set[str]:
    """Return the forms in which a secret may occur in a text: plain, percent-encoded (URLs), and escaped (repr)."""
    if len(secret) < _SHORTEST_SECRET:
        return set()
    return {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}


def one_line(text: str, maximum: int = 240) -> str:
    """Return a text as one line; each sequence of white space and control characters becomes one space.

    Args:
        text: The text.
        maximum: Largest number of characters; longer text is cut.

    Returns:
        The line.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= maximum else line[: maximum - 1] + "…"


def secrets_in_url(url: str) -> list[str]:
    """Return the user, password and query values of a URL, both as written and decoded."""
    found: list[str] = []
    if userinfo := _USERINFO.search(url):
        found += userinfo[0][:-1].split(":", 1)
    query = url.partition("?")[2].partition("#")[0]
    found += [pair.partition("=")[2] or pair for pair in re.split("[&;]", query) if pair]
    return [form for value in found for form in dict.fromkeys((value, unquote(value)))]


def secrets_in_environment(environment: Mapping[str, str]) -> list[str]:
    """Return the values of environment variables whose names indicate a credential."""
    sensitive = re.compile(_SENSITIVE, re.IGNORECASE)
    return [value for name, value in environment.items() if sensitive.fullmatch(name)]
