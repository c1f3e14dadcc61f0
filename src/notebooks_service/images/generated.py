"""The Dockerfile of a commit that has none, from the files that describe its Python environment.

Called by ``images/fingerprint.py``, which names it, and ``images/container_command.py``, which has it
built. Where the files lie and what they are for is repo2docker's rule; what of them is installed is
``images/recipe.py``'s. https://repo2docker.readthedocs.io/en/latest/configuration/
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from notebooks_service.errors import BuildFailed
from notebooks_service.images.inputs import Input
from notebooks_service.images.recipe import EXACT, Recipe, logical, read_recipe
from notebooks_service.images.requirements import ARCHIVE
from notebooks_service.images.tree import DIRECTORY, SUBMODULE, SYMLINK, Entry, Tree, follow

VERSION = "1"
"""Of the text: another one is another environment, so it changes with whatever is written below."""

UV = "uv==0.13.9"
USER = "1000"
PLACE = "/tmp/notebooks-build"  # noqa: S108 (in the image, while it is built)
FILES = "files"
POST_BUILD = "postBuild"
LARGE = frozenset([POST_BUILD, "uv.lock"])
CHECKED = frozenset(["apt.txt", "runtime.txt", ".python-version"])
"""They have no part in the name but by their ids, and name no other file."""
Reads = Literal["all", "words", "names"]
MOST_PACKAGES = 500
BASE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?\Z"
)
# A name that ends in - would be removed. https://www.debian.org/doc/debian-policy/ch-controlfields.html
PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*[a-z0-9.+](=[A-Za-z0-9][A-Za-z0-9.+:~-]*)?\Z")
CLAUSE = re.compile(r"(?P<operator>[<>]=?|[!=~]=)\s*(?P<version>\d+(?:\.\d+)*)(?P<any>\.\*)?\Z")


@dataclass(frozen=True)
class Plan:
    """All that the text depends on. ``place``: where the files lie, "" for the root of the repository."""

    base: str
    place: str = ""
    strategy: str = "nothing"
    requirements: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    python: str = ""
    apt: tuple[str, ...] = ()
    post_build: bool = False


@dataclass(frozen=True)
class Generated:
    """What is built. ``files``: path to content, in a context that holds nothing else.

    ``inputs``: what they were made from; ``notes``: what is left out, in sentences.
    """

    text: str
    files: Mapping[str, bytes] = field(repr=False)
    inputs: tuple[Input, ...]
    notes: tuple[str, ...]


class _Unread:
    """The files of a commit, but for ``names`` and packages, which are empty."""

    def __init__(self, tree: Tree, names: frozenset[str]) -> None:
        self._tree = tree
        self._names = names

    def listing(self, directory: str) -> Mapping[str, Entry]:
        return self._tree.listing(directory)

    def content(self, entry: Entry) -> bytes:
        unread = posixpath.basename(entry.path) in self._names or ARCHIVE.match(entry.path)
        return b"" if unread and entry.mode != SYMLINK else self._tree.content(entry)


def generate(tree: Tree, place: str, base: str, reads: Reads = "all") -> Generated:
    """The Dockerfile of a commit that has none, on the image ``base``; ``place``: where its files lie.

    ``reads``: with `words` to see whether it can be built, so locks and packages are taken for empty;
    with `names` for its inputs only, without what need not be read to know them.

    Raises ``BuildFailed`` for files of which nothing can be made, and for a base that is no name.
    """
    if not BASE.match(base):
        raise BuildFailed(f"`base_image` names no image: `{base[:100]}`.")
    if reads != "all":
        tree = _Unread(tree, LARGE if reads == "words" else LARGE | CHECKED)
    recipe = read_recipe(tree, place)
    apt = _read(tree, posixpath.join(place, "apt.txt"))
    post_build = _read(tree, posixpath.join(place, POST_BUILD))
    names = set(tree.listing(place))
    if recipe.strategy == "nothing" and "setup.py" in names:
        raise BuildFailed(
            "`setup.py` tells what the project needs only to those who run it: list that in "
            "`requirements.txt` or `pyproject.toml`."
        )
    files = {f"{FILES}/{path}": content for path, content in recipe.files.items()}
    files |= {POST_BUILD: post_build} if post_build is not None else {}
    plan = Plan(
        base,
        place,
        recipe.strategy,
        recipe.requirements,
        recipe.extras,
        recipe.python.version if recipe.python else "",
        packages(posixpath.join(place, "apt.txt"), apt or b""),
        post_build is not None,
    )
    inputs = tuple(Input(e.path, e.mode, e.blob, recipe.strategy) for e in recipe.inputs)
    return Generated(dockerfile(plan), files, inputs, _notes(recipe, names))


def _read(tree: Tree, path: str) -> bytes | None:
    _, entry = follow(tree, path)
    return None if entry is None or entry.mode in (DIRECTORY, SUBMODULE) else tree.content(entry)


def _notes(recipe: Recipe, names: set[str]) -> tuple[str, ...]:
    notes = [] if recipe.strategy == "nothing" else list(recipe.notes)
    if "start" in names:
        notes.append("`start` is not run before servers.")
    return tuple(notes)


def packages(path: str, content: bytes) -> tuple[str, ...]:
    """The packages in an ``apt.txt``: names, perhaps with a version. Raises ``BuildFailed`` for others."""
    found: dict[str, None] = {}
    for line in logical(content):
        for word in line.split():
            if not PACKAGE.match(word) or len(word) > 200:
                raise BuildFailed(f"`{path}` names `{word[:100]}`, which is no Debian package.")
            found[word] = None
    if len(found) > MOST_PACKAGES:
        raise BuildFailed(f"`{path}` names more than {MOST_PACKAGES} packages.")
    return tuple(found)


def dockerfile(plan: Plan) -> str:
    """The text. No path of the repository is in it, and nothing of its files but packages of apt, the
    version of Python and extras, which are checked."""
    lines = [
        f"# Generated, version {VERSION}",
        f"FROM {plan.base}",
        "USER 0",
    ]
    if plan.python:
        said = " ".join(plan.python.split())
        check = (
            f"import sys; v = sys.version_info[:3]; {python_condition(plan.python)} or sys.exit("
            f"'ERROR: This project asks for Python {said}, and the base image has '"
            " + sys.version.split()[0])"
        )
        lines.append("RUN " + json.dumps(["python3", "-c", check]))
    if plan.apt:
        lines.append(
            "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes "
            f"--no-install-recommends -- {' '.join(plan.apt)} && rm -rf /var/lib/apt/lists/*"
        )
    if plan.strategy != "nothing" or plan.post_build:
        lines.append("COPY . " + PLACE)
    if plan.strategy != "nothing":
        tools = f"{PLACE}/uv"
        where = posixpath.join(PLACE, FILES, plan.place).rstrip("/")
        lines.append(
            f"RUN python3 -m pip install --quiet --no-cache-dir --target={tools} {UV} "
            f"&& cd {where} && {_install(plan, tools)} "
            f"&& rm -rf {tools}"
        )
    if plan.post_build:
        lines += [
            f"USER {USER}",
            f'RUN cd "$HOME" && {PLACE}/{POST_BUILD}',
            "USER 0",
        ]
    if plan.strategy != "nothing" or plan.post_build:
        lines.append(f"RUN rm -rf {PLACE}")
    return "\n".join([*lines, f"USER {USER}"]) + "\n"


def _install(plan: Plan, tools: str) -> str:
    """What ``notebooks image build`` has uv do in the `local` runtime, beside what the base has."""
    said = "UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 "
    python = '"$(command -v python3)"'
    if plan.strategy == "uv.lock":
        prefix = "$(python3 -c 'import sys; print(sys.prefix)')"
        return (
            f'{said}UV_PROJECT_ENVIRONMENT="{prefix}" {tools}/bin/uv sync --frozen --inexact '
            f"--no-install-project --no-install-workspace --no-install-local --python {python}"
        )
    words = [f"-r {name}" for name in plan.requirements]
    for extra in plan.extras:
        if not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", extra, re.ASCII):
            raise BuildFailed(f"`{extra[:100]}` is no extra of a project.")
        words.append(f"--extra {extra}")
    return (
        f"{said}{tools}/bin/uv pip install --break-system-packages --python {python} "
        + " ".join(words)
    )


def python_condition(version: str) -> str:
    """A condition in Python over ``v``, the version as three numbers, that is true where it fits."""
    exact = EXACT.match(version)
    if exact:
        return f"(v[:2] == {_numbers(exact['minor'])})"  # the patch is the base's
    clauses = [_clause(each.strip()) for each in version.split(",") if each.strip()]
    return f"({' and '.join(clauses)})"


def _clause(text: str) -> str:
    found = CLAUSE.match(text)
    if found is None:
        raise BuildFailed(f"`{text[:50]}` is no version of Python.")
    numbers = found["version"].split(".")[:3]
    count = len(numbers)
    whole = _numbers(".".join([*numbers, "0", "0"][:3]))
    operator = found["operator"]
    if operator in ("==", "!="):
        return f"v[:{count}] {operator} {_numbers('.'.join(numbers))}"
    if operator == "~=":
        fixed = max(count - 1, 1)
        return f"v >= {whole} and v[:{fixed}] == {_numbers('.'.join(numbers[:fixed]))}"
    return f"v {operator} {whole}"


def _numbers(version: str) -> str:
    if len(version) > 30:
        raise BuildFailed(f"`{version[:30]}…` is no version of Python.")
    return repr(tuple(int(each) for each in version.split(".")))


@contextmanager
def written(generated: Generated) -> Iterator[tuple[Path, Path]]:
    """The context and the Dockerfile, which lies outside it, for as long as it is built."""
    with TemporaryDirectory(prefix="notebooks-generated-") as scratch:
        context = Path(scratch) / "context"
        context.mkdir()
        for path, content in generated.files.items():
            file = context / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            # Also for whoever is not root in the image, whatever this process's umask is.
            file.chmod(0o755 if path == POST_BUILD else 0o644)
        for directory in (context, *(each for each in context.rglob("*") if each.is_dir())):
            directory.chmod(0o755)
        text = Path(scratch) / "Dockerfile"
        text.write_text(generated.text)
        yield context, text
