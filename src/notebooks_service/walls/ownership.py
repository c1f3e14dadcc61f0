"""Files change hands: to the person behind a wall, back to the machine's root, and only the files meant.

Called by whoever is outside, while nothing inside runs. Links are never followed.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from notebooks_service.errors import BuildFailed


def own(path: Path, number: int) -> bool:
    """Give ``path`` and all below it to this user and group; whether it was somebody else's.

    A look at ``path`` alone decides, so this costs nothing when all is as it should be.
    """
    if path.lstat().st_uid == number:
        return False
    for one, facts in _tree(path):
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
            _unlink_from_others(one)
        os.chown(one, number, number, follow_symlinks=False)
    os.chown(path, number, number, follow_symlinks=False)
    return True


def _unlink_from_others(path: Path) -> None:
    """Make a file with several names one of its own: the others may be none of this person's."""
    copy = path.with_name(f".{path.name[:100]}.own")
    shutil.copy2(path, copy, follow_symlinks=False)
    copy.replace(path)


def seal(path: Path, final: Path, interpreter: Path, largest: int) -> None:
    """Make what a job has built nobody's to change, or raise ``BuildFailed`` if it is not harmless.

    It lies at ``path`` and was made for ``final``. Only plain files and directories, no set-user bits,
    no links out of it but those to ``interpreter``, no ``RECORD`` of more than ``largest`` bytes.
    Everything becomes ours, readable by all, writable by none but ``path`` itself, which is ours.
    """
    allowed = {interpreter, interpreter.resolve()}
    for one, facts in [*_tree(path)]:
        name = str(one.relative_to(path))
        if stat.S_ISLNK(facts.st_mode):
            if not _harmless(one, path, final, allowed):
                raise BuildFailed(
                    f"The environment was not taken: `{name}` is a link to somewhere outside it."
                )
        elif stat.S_ISREG(facts.st_mode):
            if facts.st_nlink > 1:
                raise BuildFailed(
                    f"The environment was not taken: `{name}` has a second name elsewhere."
                )
            if one.name == "RECORD" and facts.st_size > largest:
                raise BuildFailed(f"The environment was not taken: `{name}` is too large.")
        elif not stat.S_ISDIR(facts.st_mode):
            raise BuildFailed(
                f"The environment was not taken: `{name}` is neither a file nor a directory."
            )
    own_number = os.getuid() if os.getuid() == 0 else -1
    for one, facts in [*_tree(path)]:
        if not stat.S_ISLNK(facts.st_mode):
            runs = stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o100
            # Ours before it is opened to others: between the two nobody may have it for writing.
            os.chown(one, own_number, own_number, follow_symlinks=False)
            one.chmod(0o555 if runs else 0o444)
        else:
            os.chown(one, own_number, own_number, follow_symlinks=False)
    os.chown(path, own_number, own_number)
    path.chmod(0o755)


def _harmless(link: Path, root: Path, final: Path, allowed: set[Path]) -> bool:
    """Whether a link, and all that it leads over, stays inside or ends at what is allowed.

    A target is followed step by step, as the kernel does it. No step but the last may be a link (which
    is then judged like any other): with one on the way, ``..`` leads elsewhere than its text says.
    """
    here = link
    for _ in range(8):
        if not here.is_symlink():
            return True
        target = here.readlink()
        if target in allowed:
            return True
        at, steps = here.parent, target.parts
        if target.is_absolute():
            if not target.is_relative_to(final):
                return False
            at, steps = root, target.relative_to(final).parts
        for step in steps:
            if at.is_symlink():
                return False
            at = at.parent if step == ".." else at / step
            if not at.is_relative_to(root):
                return False
        here = at
    return False


def open_to_readers(path: Path) -> None:
    """Let everybody read an environment that was built when there were no walls."""
    if (path / "lib").stat().st_mode & 0o005 == 0o005:
        return
    for one, facts in _tree(path):
        if not stat.S_ISLNK(facts.st_mode):
            runs = stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o100
            one.chmod(stat.S_IMODE(facts.st_mode) | (0o055 if runs else 0o044))


def _tree(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below ``path``, each directory before what is in it, links as links."""
    for top, directories, files in os.walk(path):
        for name in (*directories, *files):
            one = Path(top, name)
            yield one, one.lstat()
