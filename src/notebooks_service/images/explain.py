"""``notebooks image explain``: what a commit's environment is called, and why; called by the CLI.

Asks nobody but git, and for container images the registries that the settings name for base images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from notebooks_service.images.fingerprint import BuildOptions, EnvironmentText, environment_of
from notebooks_service.images.interpreters import find_interpreter
from notebooks_service.images.recipe import PythonRequest
from notebooks_service.images.tree import CheckoutTree
from notebooks_service.images.uv import Uv

KINDS = {
    "dockerfile": "built from a Dockerfile",
    "python": "built from files that describe a Python environment",
    "none": "no file describes one",
}


def local_options(cache: Path, environ: Mapping[str, str]) -> BuildOptions:
    """How environments of the ``local`` runtime are named on this machine. ``cache``: uv's."""
    uv = Uv(cache, dict(environ))

    def python(request: PythonRequest | None) -> str:
        return find_interpreter(request, uv).minor

    return BuildOptions(runtime="local", python=python)


def explain(checkout: Path, sha: str, options: BuildOptions) -> EnvironmentText:
    """The environment of a commit of a local repository. Raises ``BuildFailed``."""
    return environment_of(CheckoutTree(checkout, sha), options)


def as_facts(sha: str, found: EnvironmentText) -> dict[str, Any]:
    """For a program."""
    return {
        "commit": sha,
        "fingerprint": found.fingerprint,
        "kind": found.kind,
        "dockerfile": found.dockerfile,
        "context": found.context,
        "inputs": [
            {"path": each.path, "mode": each.mode, "id": each.blob, "why": each.why}
            for each in found.inputs
        ],
        "not_reproducible": list(found.not_reproducible),
        "text": found.text,
    }


def as_text(sha: str, found: EnvironmentText) -> str:
    """For a person."""
    lines = [f"Commit       {sha}", f"Environment  {found.fingerprint}, {KINDS[found.kind]}"]
    if found.kind == "dockerfile":
        context = f"`{_printable(found.context)}`" if found.context else "the whole repository"
        lines.append(f"Dockerfile   {_printable(found.dockerfile)}, in the context of {context}")
    if found.inputs:
        lines += ["", "What counts, and what for:"]
        shown = [f"{_printable(e.path)}{'/' * (e.mode == '040000')}" for e in found.inputs]
        width = min(max(map(len, shown)), 50)
        lines += [
            f"  {path:<{width}}  {each.why}"
            for path, each in sorted(zip(shown, found.inputs, strict=True), key=lambda e: e[0])
        ]
    if found.not_reproducible:
        lines += ["", "What may differ at the next build, or is left out:"]
        lines += [f"  {_printable(each)}" for each in found.not_reproducible]
    lines += ["", "The fingerprint is SHA-256 over this text:", ""]
    lines += [f"  {line}" for line in found.text.splitlines()]
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Whatever comes from a repository is text, and moves no cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
