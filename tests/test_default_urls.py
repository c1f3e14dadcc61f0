"""What a server may be asked to open in, and what it opens in then."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from notebooks_service import default_urls
from notebooks_service.errors import InvalidRequest
from notebooks_service.settings import Settings


def settings(**more: Any) -> Settings:
    return Settings(runtime="docker", **more)


@pytest.mark.parametrize("asked", ["/", "lab", "/lab/", "//evil.test", "/voila", 7, ["/lab"], True])
def test_only_known_words_are_taken(asked: object) -> None:
    with pytest.raises(InvalidRequest, match="`defaultUrl` must be one of /lab, /tree, /rstudio"):
        default_urls.read(asked)


def test_nothing_is_the_default() -> None:
    assert default_urls.read(None) == default_urls.read("") == ""
    assert default_urls.wanted(settings(), "") == "/lab"
    assert default_urls.wanted(settings(default_urls=["/tree", "/lab"]), "") == "/tree"
    # What was chosen before a setting was changed.
    assert default_urls.wanted(settings(default_urls=["/lab"]), "/tree") == "/lab"


def test_what_is_not_offered_here_is_refused() -> None:
    default_urls.check(settings(), "/rstudio")
    with pytest.raises(InvalidRequest, match="`/tree`"):
        default_urls.check(settings(default_urls=["/lab"]), "/tree")
    with pytest.raises(InvalidRequest, match="`/tree`"):
        default_urls.check(Settings(runtime="local"), "/tree")
    default_urls.check(Settings(runtime="local"), "/lab")


def test_an_image_without_it_opens_jupyterlab() -> None:
    assert default_urls.opens("/tree", ["/lab", "/tree"]) == "/tree"
    assert default_urls.opens("/rstudio", ["/lab", "/tree"]) == "/lab"
    assert default_urls.opens("/tree", []) == "/lab"


def test_what_is_offered() -> None:
    found = default_urls.offered(settings(default_urls=["/tree", "/lab"]))["defaultUrl"]
    assert (found["default"], found["options"]) == ("/tree", ["/tree", "/lab"])
    assert default_urls.offered(settings(default_urls=["/lab"])) == {}
    assert default_urls.offered(Settings(runtime="local")) == {}


@pytest.mark.parametrize("wrong", [[], ["/voila"], "/lab"])
def test_the_setting_is_checked(wrong: object) -> None:
    with pytest.raises(ValidationError, match="default_urls"):
        settings(default_urls=wrong)
