"""Image references, and the patterns of the images that a host admits. Pure.

Engines read `nginx`, `docker.io/nginx` and `index.docker.io/library/nginx:latest` as one image, and
no spelling may bypass a pattern. A reference is therefore converted to its full form, and the
pattern must match all of that. The engine gets the full form, too, so that its own list of
registries does not apply.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final

MAX_PATTERN: Final = 256  # characters
MAX_PATTERNS: Final = 100  # of one host: each renewal of its lease carries them

_MAX_REFERENCE: Final = 512  # characters; the name alone may have 255
_HOST: Final = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?"
_PART: Final = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
# The grammar of github.com/distribution/reference, without capitals in a host's name: engines treat
# those as another registry.
_REFERENCE: Final = re.compile(
    rf"(?:(?P<host>{_HOST})/)?(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?",
    re.ASCII,
)
_DOCKER: Final = "docker.io"
_PATTERN: Final = re.compile(
    r"(?P<host>[a-z0-9*?.\-]+(?::[0-9*?]+)?|\[[0-9a-f:]+\](?::[0-9*?]+)?)/(?P<path>[a-z0-9*?._/\-]+)"
    r"(?::[\w.*?\-]+|@[a-z0-9*?]+:[0-9a-f*?]+)",
    re.ASCII,
)
_WILD: Final = {"**": "[^:@]*", "*": "[^/:@]*", "?": "[^/:@]"}


def full_reference(image: str) -> str:
    """The full form of `image`: ``host/path:tag``, or ``host/path@digest``.

    The defaults are those of the engines: host docker.io, there the folder ``library/``, and tag
    ``latest``. A tag beside a digest has no effect, and is dropped. Raises ValueError, with the
    reason, for text that is not a reference to an image in a registry.
    """
    if len(image) > _MAX_REFERENCE:
        raise ValueError(f"image has more than {_MAX_REFERENCE} characters")
    match = _REFERENCE.fullmatch(image)
    if match is None:
        why = ": its name must be lower-case" if _REFERENCE.fullmatch(image.lower()) else ""
        raise ValueError(f"image {image[:120]!r} is no reference like nginx:1.27{why}")
    host, path = match["host"] or "", match["path"]
    if host and not (host == "localhost" or set(host) & set(".:[")):
        host, path = "", f"{host}/{path}"  # a folder, not a host
    if host in ("", "index.docker.io", _DOCKER):
        host, path = _DOCKER, path if "/" in path else f"library/{path}"
    end = f"@{match['digest']}" if match["digest"] else f":{match['tag'] or 'latest'}"
    return f"{host}/{path}{end}"


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with the fix, for a pattern that can match no full reference."""
    match = _PATTERN.fullmatch(pattern)
    where = f"allow_images: {pattern[:80]!r}"
    if match is None or len(pattern) > MAX_PATTERN:
        raise ValueError(
            f'{where} is no pattern like "docker.io/library/nginx:*": a registry, a path in '
            "lower-case, and a tag or a digest"
        )
    host, path = match["host"], match["path"]
    if not (host == "localhost" or set(host) & set(".:[*?")):
        raise ValueError(f'{where} must begin with a registry: "{_DOCKER}/{pattern[:80]}"')
    if host == _DOCKER and "/" not in path and "**" not in path:
        raise ValueError(f'{where} matches nothing: write "{_DOCKER}/library/{path}…"')


def same_image(one: str, other: str) -> bool:
    """Whether two spellings name one image."""
    try:
        return full_reference(one) == full_reference(other)
    except ValueError:
        return one == other


def admits(patterns: Iterable[str], image: str) -> bool:
    """Whether one of `patterns` matches the whole full form of `image`. Never raises.

    ``?`` matches one character, ``*`` any number, except ``/``, ``:`` and ``@``; ``**`` also
    matches ``/``. ``docker.io/library/nginx:*`` admits every tag and no digest. A digest can name
    an image of any age, so it needs its own pattern: ``docker.io/library/nginx@sha256:*``.
    """
    return _admits(tuple(patterns), image)


@functools.lru_cache(maxsize=4096)
def _admits(patterns: tuple[str, ...], image: str) -> bool:
    try:
        full = full_reference(image)
    except ValueError:
        return False
    return any(_compiled(pattern).fullmatch(full) for pattern in patterns)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    return re.compile("".join(_WILD.get(part) or re.escape(part) for part in parts))
