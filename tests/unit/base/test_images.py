"""Which images a host's patterns admit, whatever spelling is tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.images import admits, check_pattern, full_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4
NGINX = "docker.io/library/nginx"


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("nginx", f"{NGINX}:latest"),
        ("nginx:1.27", f"{NGINX}:1.27"),
        ("docker.io/nginx", f"{NGINX}:latest"),
        ("index.docker.io/library/nginx:1", f"{NGINX}:1"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/team/app:V2", "docker.io/team/app:V2"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"),
        ("[fd00::1]:5000/app", "[fd00::1]:5000/app:latest"),
        (f"nginx@{DIGEST}", f"{NGINX}@{DIGEST}"),
        (f"nginx:1.27@{DIGEST}", f"{NGINX}@{DIGEST}"),
        ("sha256:abc", "docker.io/library/sha256:abc"),  # a tag, not the id of a local image
        ("docker.io.evil/nginx", "docker.io.evil/nginx:latest"),
        ("docker.io:443/library/nginx", "docker.io:443/library/nginx:latest"),
    ],
)
def test_an_image_has_one_full_form(image: str, full: str) -> None:
    assert full_reference(image) == full
    assert full_reference(full) == full


@pytest.mark.parametrize(
    "image",
    [
        *(
            "",
            " nginx",
            "nginx ",
            "nginx\n",
            "--privileged",
            "-v",
            "/etc",
            "a//b",
            "nginx:",
            "nginx@",
        ),
        *("Nginx", "DOCKER.IO/library/nginx", "docker.io/Library/nginx", "nginx:1:2", "nginx:*"),
        *("docker-archive:/tmp/x", "oci:/tmp/x:y", "http://docker.io/nginx", "../nginx", "a/../b"),
        *("nginx@sha256:abc", f"nginx@{DIGEST.upper()}", f"nginx@md5:{'0' * 32}", f"{NGINX}:1@"),
        *("nginx:\u0661", "ｎginx", f"{'a' * 600}", f"nginx:{'a' * 129}"),
    ],
)
def test_text_that_is_not_a_reference_is_never_admitted(image: str) -> None:
    with pytest.raises(ValueError, match=r"^image "):
        full_reference(image)
    assert not admits(["**/**:*", "*/*:*", "**/**@*:*"], image)


def test_a_name_in_capitals_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="lower-case"):
        full_reference("ghcr.io/Team/app")


@pytest.mark.parametrize(
    ("pattern", "image", "admitted"),
    [
        (f"{NGINX}:*", "nginx", True),
        (f"{NGINX}:*", "nginx:1.27-alpine", True),
        (f"{NGINX}:*", "index.docker.io/nginx:1", True),
        (f"{NGINX}:1.27", "nginx:1.27", True),
        (f"{NGINX}:1.27", "nginx", False),
        (f"{NGINX}:1.?", "nginx:1.7", True),
        (f"{NGINX}:1.?", "nginx:1.27", False),
        # the whole of the reference
        (f"{NGINX}:*", f"registry.evil/{NGINX}:1", False),
        (f"{NGINX}:*", "docker.io.evil/library/nginx:1", False),
        (f"{NGINX}:*", "evil/nginx:1", False),
        (f"{NGINX}:*", "nginx-evil:1", False),
        (f"{NGINX}:*", f"{NGINX}/evil:1", False),
        (f"{NGINX}:*", f"{NGINX}:1\n", False),
        (f"{NGINX}:1", "nginx:11", False),
        # a dot is a dot
        ("ghcr.io/team/app:1.0", "ghcr.io/team/app:1x0", False),
        ("ghcr.io/team/app:*", "ghcrxio.de/team/app:1", False),
        # a star ends at /, : and @
        ("ghcr.io/*:*", "ghcr.io/app:1", True),
        ("ghcr.io/*:*", "ghcr.io/team/app:1", False),
        ("ghcr.io/**:*", "ghcr.io/team/sub/app:1", True),
        ("ghcr.io/**:*", "ghcr.io.evil/team/app:1", False),
        ("*/app:*", "localhost:5000/app:1", False),
        ("**/app:*", "evil.io/docker.io/team/app:1", True),
        # digests
        (f"{NGINX}:*", f"nginx@{DIGEST}", False),
        (f"{NGINX}:1.27", f"nginx:1.27@{DIGEST}", False),
        (f"{NGINX}@{DIGEST}", f"nginx@{DIGEST}", True),
        (f"{NGINX}@{DIGEST}", f"nginx:whatever@{DIGEST}", True),
        (f"{NGINX}@{DIGEST}", f"nginx@{DIGEST[:-1]}0", False),
        (f"{NGINX}@sha256:*", f"nginx@{DIGEST}", True),
        (f"{NGINX}@sha256:*", f"{NGINX}-evil@{DIGEST}", False),
    ],
)
def test_a_pattern_matches_a_whole_full_reference_or_nothing(
    pattern: str, image: str, admitted: bool
) -> None:
    check_pattern(pattern)
    assert admits([pattern], image) is admitted
    assert admits(["ghcr.io/none:*", pattern], image) is admitted


def test_no_pattern_admits_nothing() -> None:
    assert not admits([], "nginx")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("nginx:*", "no pattern"),
        ("nginx", "no pattern"),
        ("*", "no pattern"),
        ("library/nginx:*", 'registry: "docker.io/library/nginx'),
        ("docker.io/nginx:*", 'write "docker.io/library/nginx'),
        (f"{NGINX}", "a tag or a digest"),
        ("docker.io/library/Nginx:*", "lower-case"),
        (f"{NGINX}:[12]", "no pattern"),
        (f"{NGINX}:1 ", "no pattern"),
        ("ghcr.io/" + "a" * 300 + ":*", "no pattern"),
    ],
)
def test_a_pattern_that_can_match_nothing_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_pattern(pattern)


WORDS = st.text("abc.-_/:@*?", max_size=20)


@given(WORDS, st.sampled_from(["", "docker.io/", "index.docker.io/library/", "ghcr.io/"]))
def test_the_spelling_of_an_image_does_not_change_what_admits_it(rest: str, host: str) -> None:
    image = host + rest
    try:
        full = full_reference(image)
    except ValueError:
        assert not admits(["**/**:*", "**/**@*:*"], image)
        return
    assert full_reference(full) == full
    for pattern in (f"{NGINX}:*", "ghcr.io/**:*", "docker.io/*/*:*", full):
        assert admits([pattern], image) is admits([pattern], full)
    assert admits([full], image)


@given(WORDS)
def test_a_literal_pattern_admits_exactly_one_image(rest: str) -> None:
    pattern = f"{NGINX}:1.27"
    if admits([pattern], f"nginx{rest}"):
        assert full_reference(f"nginx{rest}") == pattern
