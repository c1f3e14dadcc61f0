"""Reports that jobs leave (``artifacts:reports``): which there are, and the variables in a dotenv one.

Read by ``ci_artifacts_entry``, ``ci_artifacts`` and ``routes_runner_artifacts``.
https://docs.gitlab.com/ci/yaml/artifacts_reports/
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from notebooks_service.forge import errors
from notebooks_service.forge.ci_values import Values
from notebooks_service.forge.ci_yaml import CiConfigInvalid

REPORTS: Mapping[str, tuple[str, str]] = {
    "accessibility": ("raw", "gl-accessibility.json"),
    "annotations": ("gzip", "gl-annotations.json"),
    "api_fuzzing": ("raw", "gl-api-fuzzing-report.json"),
    "browser_performance": ("raw", "browser-performance.json"),
    "cluster_image_scanning": ("raw", "gl-cluster-image-scanning-report.json"),
    "codequality": ("raw", "gl-code-quality-report.json"),
    "container_scanning": ("raw", "gl-container-scanning-report.json"),
    "coverage_fuzzing": ("raw", "gl-coverage-fuzzing.json"),
    "cyclonedx": ("gzip", "gl-sbom.cdx.json"),
    "dast": ("raw", "gl-dast-report.json"),
    "dependency_scanning": ("raw", "gl-dependency-scanning-report.json"),
    "dotenv": ("gzip", ".env"),
    "junit": ("gzip", "junit.xml"),
    "license_scanning": ("raw", "gl-license-scanning-report.json"),
    "load_performance": ("raw", "load-performance.json"),
    "metrics": ("gzip", "metrics.txt"),
    "performance": ("raw", "performance.json"),
    "repository_xray": ("gzip", "gl-repository-xray.json"),
    "requirements": ("raw", "requirements.json"),
    "sast": ("raw", "gl-sast-report.json"),
    "secret_detection": ("raw", "gl-secret-detection-report.json"),
    "terraform": ("raw", "tfplan.json"),
}
"""Of each type the format that runners bring it in, and the name they give it."""

COVERAGE: Mapping[str, tuple[str, str]] = {
    "cobertura": ("gzip", "cobertura-coverage.xml"),
    "jacoco": ("gzip", "jacoco-coverage.xml"),
}
"""As ``REPORTS``, for ``coverage_report``."""

_ALL = {**REPORTS, **COVERAGE}

DOTENV_LARGEST = 5 * 1024
DOTENV_VARIABLES = 20
"""GitLab's limits of its default plan: a dotenv file has fewer bytes, and no more variables."""
_LINE = re.compile(r"(.*?)=(.*)", re.DOTALL)
_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")


def entry(values: Values, value: Any, place: str) -> dict[str, list[str]]:
    """``artifacts:reports`` of a job: the paths of each type. Raises ``CiConfigInvalid``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CiConfigInvalid(f"{place} config should be a hash")
    unknown = sorted(str(one) for one in set(value) - set(REPORTS) - {"coverage_report"})
    if unknown:
        raise CiConfigInvalid(f"{place} config contains unknown keys: {', '.join(unknown)}")
    found: dict[str, list[str]] = {}
    for kind, paths in value.items():
        if kind != "coverage_report":
            found[kind] = _paths(values, paths, f"{place} {kind}")
            continue
        form = paths.get("coverage_format") if isinstance(paths, dict) else None
        if not isinstance(form, str) or form not in COVERAGE:
            known = ", ".join(COVERAGE)
            raise CiConfigInvalid(
                f"{place}:coverage_report coverage format must be one of supported formats: {known}."
            )
        found[form] = _paths(values, paths.get("path"), f"{place}:coverage_report path")
    return {kind: paths for kind, paths in found.items() if paths}


def _paths(values: Values, value: Any, where: str) -> list[str]:
    return [value] if isinstance(value, str) else list(values.strings(value, where))


def wanted(kind: str, paths: list[str], expire_in: str | None) -> dict[str, Any]:
    """The report as a runner is asked for it: always, also of a job that failed."""
    form, name = _ALL[kind]
    return {
        "name": name,
        "untracked": False,
        "paths": paths,
        "exclude": [],
        "when": "always",
        "expire_in": expire_in,
        "artifact_type": kind,
        "artifact_format": form,
    }


def format_of(kind: str) -> str | None:
    """The one format that a type may be brought in; None if it is not a report."""
    found = _ALL.get(kind)
    return found[0] if found else None


def dotenv(file: Path) -> dict[str, str]:
    """The variables in a dotenv report as a runner brought it. Raises GitLab's 400 for any other.

    https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsdotenv
    """
    try:
        with gzip.open(file) as stream:
            # What it becomes when it is unpacked counts: a small file can become a huge one.
            content = stream.read(DOTENV_LARGEST)
    except (OSError, EOFError, zlib.error):
        raise errors.bad_request("Invalid Format") from None
    if len(content) >= DOTENV_LARGEST:
        raise errors.bad_request(
            f"Dotenv Artifact Too Big. Maximum Allowable Size: {DOTENV_LARGEST}"
        )
    found: dict[str, str] = {}
    lines = content.decode("utf-8-sig", "replace").split("\n")
    for line in lines if lines[-1] else lines[:-1]:
        parts = _LINE.fullmatch(line)
        if parts is None or "\0" in line:
            raise errors.bad_request("Invalid Format")
        key, value = parts[1].strip(), parts[2].strip()
        if not _KEY.fullmatch(key):
            raise errors.bad_request(
                "Validation failed: Key can contain only letters, digits and '_'."
            )
        found[key] = value
    if len(found) > DOTENV_VARIABLES:
        raise errors.bad_request(f"Dotenv files cannot have more than {DOTENV_VARIABLES} variables")
    return found
