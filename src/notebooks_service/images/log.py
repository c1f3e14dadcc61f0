"""The build log that a person reads: one line at a time, each with the time since the start; what
took how long; and which line of a failed build's log failed first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TextIO

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def cleaned(line: str) -> str:
    """``line`` without colours and without the password of an index's URL."""
    return CREDENTIALS.sub("****@", CONTROL.sub("", line)).rstrip()


class BuildLog:
    """Writes to the job's log; a log that nobody reads any more does not end a build."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._start = time.monotonic()
        self.steps = StepClock()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def line(self, text: str) -> None:
        self.steps.see(text, self.seconds)
        try:
            self._out.write(f"[{self.seconds:7.2f} s] {cleaned(text)}\n")
            self._out.flush()
        except OSError:
            pass


# How long each step took ------------------------------------------------------------------------

_STEP = re.compile(r"\s*(?:STEP|Step) (\d+)/(\d+) ?: (.*)")
_VERTEX = re.compile(r"\s*#(\d+) (\[.*|exporting .*|DONE ([\d.]+)s|CACHED)\s*$")
_END_OF_STEPS = re.compile(r"\s*(COMMIT |Successfully built )")
MOST_STEPS = 500


class StepClock:
    """Learns from the lines of docker, BuildKit and buildah which step took how many seconds."""

    def __init__(self) -> None:
        self._found: list[tuple[str, float]] = []
        self._open: tuple[str, float] | None = None
        self._names: dict[str, str] = {}

    def see(self, line: str, now: float) -> None:
        if match := _STEP.match(line):
            self.close(now)
            self._open = (match[3].strip(), now)
        elif _END_OF_STEPS.match(line):
            self.close(now)
        elif match := _VERTEX.match(line):
            if match[3] is not None:
                name = self._names.pop(match[1], "")
                if name and not name.startswith("[internal]"):
                    self._add(name, float(match[3]) if match[3].count(".") < 2 else 0.0)
            elif match[2] != "CACHED" and len(self._names) < MOST_STEPS:
                self._names.setdefault(match[1], match[2].strip())

    def close(self, now: float) -> None:
        """The step under way ends now."""
        if self._open is not None:
            self._add(self._open[0], now - self._open[1])
            self._open = None

    def _add(self, name: str, seconds: float) -> None:
        if len(self._found) < MOST_STEPS:
            self._found.append((name, seconds))

    def slowest(self, most: int = 8) -> list[tuple[str, float]]:
        """The steps that took longest, at least a tenth of a second each, longest first."""
        found = sorted((step for step in self._found if step[1] >= 0.1), key=lambda step: -step[1])
        return found[:most]


# Which line failed first ------------------------------------------------------------------------

LONGEST_LINE = 300
MOST_LINES = 4000

_OURS = re.compile(r"\[ *[\d.]+ s\] (ERROR: .+)")
_TIME = re.compile(r"\[ *[\d.]+ s\] {0,2}")
_BUILDKIT = re.compile(r"#(\d+) (?:[\d.]+ )?(.*)")
_BUILDKIT_FAILED = re.compile(r"(?:\[ *[\d.]+ s\] *)?#(\d+) ERROR: ")
_RUNNER = re.compile(
    r"section_(start|end):|ERROR: Job failed|Cleaning up|Uploading artifacts|\$ notebooks image"
)
_CAUSE = re.compile(
    r"ERROR:|error:|Error:|E: |fatal:|npm ERR!|\S+: \d+: .*not found$|Killed$|"
    r"[\w.]*(?:Error|Exception|NotFound)\b[^:]{0,40}: |╰─▶ |cause: |"
    r".{0,120}: (?:fatal )?error: |.{0,200}: command not found$|.{0,200}: not found$|"
    r".{0,200}No such file or directory$|.{0,200}No space left on device|"
    r".{0,200}(?:pull access denied|manifest unknown|connection refused|unauthorized:)|"
    r"COPY failed|ADD failed|failed to solve|Error response from daemon|dockerfile parse error"
)
# What a tool says because something before it had failed, or says and goes on.
_CONSEQUENCE = re.compile(
    r"error: subprocess-exited-with-error|error: metadata-generation-failed|"
    r"ERROR: Failed building wheel|ERROR: Could not build wheels|ERROR: Failed to build|"
    r"ERROR: pip's dependency resolver|.*(?:did not complete successfully|executor failed running)|"
    r"[Ee]rror(?:: | )(?:building at STEP|while running runtime|: exit status)|"
    r"The command '.*' returned a non-zero code|.*exit(?:ed with)? status \d+$|"
    r"(?:Error|error): (?:exit status|building at STEP).*|make(?:\[\d+\])?: \*\*\*"
)
_QUIET = re.compile(r"note: |hint: |WARNING|Warning|W: |\[notice\]|DEPRECATED|[-=]{3,}|\s*$")


def first_failure(text: str) -> str:
    """The line of a failed build's log that failed first, at most 300 characters; empty for none.

    Of docker (BuildKit and before), buildah, uv, pip, apt, conda and compilers: in the step that
    failed, the first line that is a cause and not the consequence of one. A sentence of our own
    builder says it all and goes first.
    """
    kept = text.splitlines()[-MOST_LINES:]
    raw = [cleaned(line[: 4 * LONGEST_LINE].replace("\r", " ")) for line in kept]
    raw = [line for line in raw if line.strip() and not _RUNNER.search(line)]
    for line in reversed(raw):
        if match := _OURS.match(line):
            return _cut(match[1])
    said = [line for line in _failed_step(raw) if not _QUIET.match(line)]
    causes = (line for line in said if _CAUSE.match(line) and not _CONSEQUENCE.match(line))
    consequences = (line for line in said if _CONSEQUENCE.match(line))
    last = said[-1:]
    return _cut(next(causes, None) or next(consequences, None) or (last[0] if last else ""))


def _failed_step(lines: list[str]) -> list[str]:
    """The lines of the step that failed, without what builders put before them."""
    failed = next((m[1] for line in lines if (m := _BUILDKIT_FAILED.match(line))), None)
    found: list[str] = []
    for line in lines:
        inner = _TIME.sub("", line, count=1).strip()
        if match := _BUILDKIT.match(inner):
            if failed is None or match[1] == failed:
                found.append(match[2].strip())
        elif failed is None:
            if _STEP.match(inner):
                found = []
            found.append(inner)
    return [line for line in found if line and not _STEP.match(line)]


def _cut(line: str) -> str:
    line = line.strip().removeprefix("╰─▶ ").strip()
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


# What changed -----------------------------------------------------------------------------------


def changes(before: Iterable[str], after: Iterable[str], most: int = 60) -> list[str]:
    """``- gone`` and ``+ new`` between two sets of lines, sorted so that both of a pair are together."""
    old, new = set(before), set(after)
    rows = sorted(
        [(line, f"- {line}") for line in old - new] + [(line, f"+ {line}") for line in new - old],
        key=lambda row: (row[0].partition("==")[0].lower(), row[1][0] == "+", row[0]),
    )
    shown = [text for _, text in rows[:most]]
    return [*shown, f"… and {len(rows) - most} more"] if len(rows) > most else shown
