"""What is read from the line with which a server's log begins, which anything inside may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.spawner import served
from notebooks_service.spawner.served import Served, in_log, read, sentences, way_in_words

LINE: dict[str, Any] = {
    "notebooks": "serve",
    "way": "python",
    "python": "3.11",
    "git": True,
    "offers": ["/lab"],
}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (LINE, Served("python", "3.11")),
        ({**LINE, "git": False}, Served("python", "3.11", git=False)),
        (
            {**LINE, "way": "jupyterhub-singleuser", "offers": ["/rstudio", "/tree", "/lab"]},
            Served("jupyterhub-singleuser", "3.11", offers=("/lab", "/tree", "/rstudio")),
        ),
        ({**LINE, "way": "none", "python": ""}, Served("none")),
        # Nothing of these is ours.
        ({**LINE, "way": "<script>"}, None),
        ({**LINE, "way": ["python"]}, None),
        ({**LINE, "notebooks": "other"}, None),
        ([LINE], None),
        # Of these, only what is.
        ({**LINE, "python": "3.11<b>"}, Served("python")),
        ({**LINE, "python": "3.11\n"}, Served("python")),
        ({**LINE, "offers": ["//evil.test", "/lab/../x"]}, Served("python", "3.11")),
        ({**LINE, "offers": "/tree"}, Served("python", "3.11")),
        ({**LINE, "offers": {"/tree": 1}}, Served("python", "3.11")),
        ({**LINE, "message": "words of the image"}, Served("python", "3.11")),
    ],
)
def test_one_line(line: object, expected: Served | None) -> None:
    assert read(json.dumps(line)) == expected


@pytest.mark.parametrize("line", ["", "{", "null", "[" * 100_000, "7", '"serve"'])
def test_what_is_no_such_line(line: str) -> None:
    assert read(line) is None


def test_it_may_come_after_the_images_own_words_and_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    assert in_log(log) is None
    whole = json.dumps(LINE)
    log.write_bytes(b"Welcome \xff\n{}\n" + whole[:30].encode())
    assert in_log(log) is None
    log.write_text(f"Welcome\n{{}}\n{whole}")
    assert in_log(log) is None
    log.write_text(f"Welcome\n{{}}\n{whole}\n{json.dumps({**LINE, 'way': 'none'})}\n")
    assert in_log(log) == Served("python", "3.11")
    log.write_text("x" * served.LOOKED_THROUGH + f"\n{whole}\n")
    assert in_log(log) is None


def test_each_way_has_its_sentence() -> None:
    ways = [
        Served("jupyterhub-singleuser", "3.12"),
        Served("jupyter", "3.12"),
        Served("python", "3.12"),
        Served("none", "3.7"),
        Served("none"),
    ]
    said = [way_in_words(each) for each in ways]
    assert len(set(said)) == len(said)
    assert "no git" in way_in_words(Served("python", "3.12", git=False))
    assert all("no git" not in each for each in said)


def test_what_was_chosen_and_is_not_there_is_said() -> None:
    assert len(sentences(Served("jupyter", "3.12"), "/lab")) == 1
    [_, missing] = sentences(Served("jupyter", "3.12"), "/rstudio")
    assert missing == "The image does not offer RStudio (`/rstudio`): JupyterLab opens."
    offers = Served("jupyterhub-singleuser", "3.12", offers=("/lab", "/tree"))
    assert len(sentences(offers, "/tree")) == 1
