"""What a commit's environment is made of, read from its files; used by fingerprint and build.

Nothing of the project is run to find out. First that applies: ``uv.lock`` with ``pyproject.toml``,
the dependencies in ``pyproject.toml``, ``requirements.txt``, the pip part of ``environment.yml``,
nothing (a plain environment).
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from notebooks_service.errors import BuildFailed
from notebooks_service.images.requirements import read_requirements
from notebooks_service.images.tree import DIRECTORY, Entry, Tree, follow

Strategy = Literal["uv.lock", "pyproject.toml", "requirements.txt", "environment.yml", "nothing"]

PIP_PART = "environment-pip-part.txt"
YAML_LIMIT = 1024 * 1024
MOST_ALIASES = 20
DEEPEST = 50
EXACT = re.compile(r"(?:cpython[-@]?)?(?P<minor>\d+\.\d+)(?P<patch>\.\d+)?\Z")
SPECIFIER = re.compile(r"(?:(?:[<>]=?|[!=~]=)\s*\d+(?:\.\d+)*(?:\.\*)?\s*,?\s*)+\Z")


@dataclass(frozen=True)
class PythonRequest:
    """Which Python the project asks for (``3.11``, ``3.11.4``, ``>=3.9,<3.12``), and where it says so."""

    version: str
    source: str


@dataclass(frozen=True)
class Recipe:
    """Everything a build needs. ``files`` go into its working directory, ``inputs`` name it.

    ``requirements`` are names beside each other, at the place that was read; ``files`` have the
    repository's paths.
    """

    strategy: Strategy
    python: PythonRequest | None = None
    inputs: tuple[Entry, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Reader:
    """Reads files of the tree and remembers them as inputs. ``place``: where an environment's lie."""

    def __init__(self, tree: Tree, place: str) -> None:
        self._tree = tree
        self._place = place
        self.inputs: dict[str, Entry] = {}
        self.notes: list[str] = []

    def read(self, path: str) -> bytes | None:
        links, entry = follow(self._tree, path)
        if entry is None or entry.mode == DIRECTORY or entry.mode == "160000":
            return None
        self.inputs |= {link.path: link for link in links} | {entry.path: entry}
        return self._tree.content(entry)

    def at(self, name: str) -> str:
        """The path of an environment's own file."""
        return posixpath.join(self._place, name)

    def own(self, name: str) -> bytes | None:
        return self.read(self.at(name))

    def forget(self, name: str) -> None:
        self.inputs.pop(self.at(name), None)

    def members(self, patterns: list[str]) -> dict[str, bytes]:
        """The ``pyproject.toml`` of each workspace member, at most two directories down."""
        found: dict[str, bytes] = {}
        if self._place:
            return found
        tops = [e.path for e in self._tree.listing("").values() if e.mode == DIRECTORY]
        below = [
            e.path
            for top in tops
            if any(pattern.startswith((f"{top}/", "*")) for pattern in patterns)
            for e in self._tree.listing(top).values()
            if e.mode == DIRECTORY
        ]
        for directory in (*tops, *below):
            if any(fnmatchcase(directory, pattern.rstrip("/")) for pattern in patterns):
                data = self.read(f"{directory}/pyproject.toml")
                if data is not None:
                    found[f"{directory}/pyproject.toml"] = data
        return found


def read_recipe(tree: Tree, place: str = "") -> Recipe:
    """The recipe of a commit. Raises ``BuildFailed`` with a sentence that names the wrong file.

    ``place``: the directory that the files lie in, "" for the root.
    """
    reader = _Reader(tree, place)
    pinned = _pinned_python(reader)
    pyproject_data = reader.own("pyproject.toml")
    pyproject = _toml("pyproject.toml", pyproject_data) if pyproject_data is not None else {}
    project = pyproject.get("project")
    project = project if isinstance(project, dict) else {}
    lock = reader.own("uv.lock") if pyproject_data is not None else None
    if pyproject_data is not None and lock is not None:
        workspace = _table(pyproject, "tool", "uv", "workspace").get("members")
        workspace = workspace if isinstance(workspace, list) else []
        files = {reader.at("pyproject.toml"): pyproject_data, reader.at("uv.lock"): lock}
        files |= reader.members([str(pattern) for pattern in workspace])
        return _recipe(reader, "uv.lock", pinned or _required(project), files)
    if pyproject_data is not None and project.get("dependencies"):
        return _recipe(
            reader,
            "pyproject.toml",
            pinned or _required(project),
            {reader.at("pyproject.toml"): pyproject_data},
            ("pyproject.toml",),
        )
    # Without dependencies it may still say which Python: then it counts.
    python = pinned or _required(project)
    if _required(project) is None:
        reader.forget("pyproject.toml")
    requirements = reader.own("requirements.txt")
    if requirements is not None:
        return _from_requirements(
            reader, "requirements.txt", "requirements.txt", requirements, python
        )
    for name in ("environment.yml", "environment.yaml"):
        content = reader.own(name)
        if content is not None:
            return _from_conda(reader, name, content, pinned, _required(project))
    if pyproject_data is not None:
        reader.notes.append("`pyproject.toml` lists no dependencies, so it adds none.")
    reader.notes.append(
        "No file of this commit describes an environment, so it gets a plain one: Python with ipykernel."
    )
    return _recipe(reader, "nothing", python, {})


def _recipe(
    reader: _Reader,
    strategy: Strategy,
    python: PythonRequest | None,
    files: Mapping[str, bytes],
    requirements: tuple[str, ...] = (),
    extras: tuple[str, ...] = (),
) -> Recipe:
    files = dict(files)
    settings = reader.own("uv.toml") if strategy != "nothing" else None
    if settings is not None:
        files[reader.at("uv.toml")] = settings
    inputs = tuple(reader.inputs[path] for path in sorted(reader.inputs))
    return Recipe(
        strategy, python, inputs, files, requirements, extras, tuple(dict.fromkeys(reader.notes))
    )


def _from_requirements(
    reader: _Reader,
    strategy: Strategy,
    path: str,
    content: bytes,
    python: PythonRequest | None,
) -> Recipe:
    found = read_requirements(reader.at(path), content, reader.read)
    reader.notes += found.notes
    files = dict(found.files)
    sources: tuple[str, ...] = (path,)
    extras: tuple[str, ...] = ()
    if found.wants_project:
        data = reader.own("pyproject.toml")
        if data is not None and "project" in _toml("pyproject.toml", data):
            files[reader.at("pyproject.toml")] = data
            sources = (path, "pyproject.toml")
            extras = tuple(sorted(found.extras))
            reader.notes.append("Its dependencies in `pyproject.toml` are installed.")
    return _recipe(reader, strategy, python, files, sources, extras)


def _from_conda(
    reader: _Reader,
    name: str,
    content: bytes,
    pinned: PythonRequest | None,
    required: PythonRequest | None,
) -> Recipe:
    conda, pip = _conda_lists(name, content)
    python: PythonRequest | None = None
    left_out: list[str] = []
    for spec in conda:
        bare = spec.rpartition("::")[2].strip()
        package = re.split(r"[\s=<>!~\[]", bare, maxsplit=1)[0].lower()
        if package == "python":
            python = _conda_python(bare[len("python") :].strip(), name)
        elif package != "pip":
            left_out.append(spec)
    if left_out:
        reader.notes.append(
            f"Only the pip part of `{name}` is installed; left out: {', '.join(left_out)}."
        )
    return _from_requirements(
        reader, "environment.yml", PIP_PART, _requirements(pip), pinned or python or required
    )


def pip_part(name: str, content: bytes) -> bytes:
    """What an ``environment.yml`` has pip install, as a requirements file."""
    return _requirements(_conda_lists(name, content)[1])


def _requirements(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _conda_lists(name: str, content: bytes) -> tuple[list[str], list[str]]:
    """Conda's own packages, and pip's."""
    data = read_yaml(name, content)
    listed = data.get("dependencies") if isinstance(data, dict) else None
    conda: list[str] = []
    pip: list[str] = []
    for row in listed if isinstance(listed, list) else []:
        if isinstance(row, dict):
            lines = row.get("pip")
            pip += [str(line) for line in lines if _scalar(line)] if isinstance(lines, list) else []
        elif _scalar(row):
            conda.append(str(row))
    return conda, pip


def read_yaml(name: str, content: bytes) -> Any:
    """The data in a YAML file. Its aliases are few: a bomb of them is small until it is read."""
    import yaml  # only here: `notebooks image build` should start fast

    try:
        text = content.decode("utf-8-sig")
        if len(text) > YAML_LIMIT:
            raise BuildFailed(f"`{name}` is too large to describe an environment.")
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        aliases = depth = 0
        for event in yaml.parse(text, Loader=loader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if aliases > MOST_ALIASES or depth > DEEPEST:
                raise BuildFailed(f"`{name}` has too many aliases, or is nested too deeply.")
        return yaml.load(text, Loader=loader)  # noqa: S506 (both are safe loaders)
    except BuildFailed:
        raise
    except Exception as error:
        # Also what the library lets through, for a number or a date that is none.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise BuildFailed(f"`{name}`{where} is no valid YAML.") from None


def _scalar(value: object) -> bool:
    return isinstance(value, (str, int, float))


def _conda_python(spec: str, source: str) -> PythonRequest | None:
    """``=3.10``, ``==3.10.4``, ``=3.10.*``, ``>=3.9,<3.12`` as conda writes them."""
    version = spec.split(" ")[0] if not spec.startswith(("<", ">", "!", "~")) else spec
    version = re.sub(r"^={1,2}", "", version).removesuffix(".*")
    version = version.split("=")[0] if EXACT.match(version.split("=")[0]) else version
    return _request(version, source) if version and version != "*" else None


def _pinned_python(reader: _Reader) -> PythonRequest | None:
    """What ``.python-version`` or ``runtime.txt`` asks for."""
    data = reader.own(".python-version")
    if data is not None:
        lines = [line for line in logical(data) if line != "system"]
        if lines:
            return _request(lines[0], ".python-version")
    data = reader.own("runtime.txt")
    if data is not None and (lines := logical(data)):
        if not lines[0].startswith("python-"):
            raise BuildFailed(
                f"`runtime.txt` asks for `{lines[0][:50]}`; only Python (`python-3.11`) is built here."
            )
        return _request(lines[0].removeprefix("python-"), "runtime.txt")
    return None


def logical(data: bytes) -> list[str]:
    """The lines of a small text file without comments and blanks."""
    text = data.decode("utf-8-sig", errors="replace")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def _required(project: Mapping[str, Any]) -> PythonRequest | None:
    wanted = project.get("requires-python")
    return _request(str(wanted), "requires-python in pyproject.toml") if wanted else None


def _request(version: str, source: str) -> PythonRequest:
    version = version.strip()
    if not EXACT.match(version) and not SPECIFIER.match(version):
        raise BuildFailed(f"{source} asks for Python `{version[:50]}`, which is no version.")
    return PythonRequest(version, source)


def _toml(name: str, data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BuildFailed(f"`{name}` is no valid TOML: {error}.") from None


def _table(data: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        inner = data.get(key)
        if not isinstance(inner, dict):
            return {}
        data = inner
    return data
