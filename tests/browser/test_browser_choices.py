"""What the consent page asks beside "Start", as a person at a keyboard finds and answers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from notebooks_service.platform.signin import sign_in_url
from small_forge import git
from stack_fixtures import Stack, wait_for

pytestmark = [pytest.mark.stack, pytest.mark.browser]


def imported(stack: Stack, directory: Path, project: str) -> str:
    done = stack.command("forge", "import", str(directory), "--as", project)
    assert done.returncode == 0, done.stderr
    return git("rev-parse", "HEAD", cwd=directory)


def repository(directory: Path, **files: str) -> Path:
    git("init", "-q", "--initial-branch=main", str(directory))
    for name, content in files.items():
        (directory / name).write_text(content)
    git("add", ".", cwd=directory)
    git("commit", "-q", "-m", "First", cwd=directory)
    return directory


def reach(page: Page, wanted: Locator) -> None:
    """Press Tab until ``wanted`` has the focus."""
    for _ in range(40):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("the Tab key does not lead there")


def test_a_submodule_is_left_out_by_keyboard(
    stack: Stack, context: BrowserContext, tmp_path: Path, screenshots: Path
) -> None:
    tool, report = f"{stack.owner}/tool", f"{stack.owner}/report"
    pinned = imported(stack, repository(tmp_path / "tool", **{"tool.py": "print(1)\n"}), tool)
    work = repository(
        tmp_path / "report",
        **{
            "README.md": "Report\n",
            ".gitattributes": "*.dat filter=lfs diff=lfs merge=lfs -text\n",
            ".gitmodules": '[submodule "tool"]\n\tpath = tool\n\turl = ../tool.git\n',
        },
    )
    git("update-index", "--add", "--cacheinfo", f"160000,{pinned},tool", cwd=work)
    git("commit", "-q", "-m", "Use the tool", cwd=work)
    sha = imported(stack, work, report)

    page = context.new_page()
    administration = stack.administration()
    try:
        page.goto(sign_in_url(administration, stack.running, stack.owner))
    finally:
        administration.close()
    page.goto(f"{stack.service_url}{report}/{sha}")
    submodule = page.get_by_role("checkbox", name=f"{tool} in tool")
    large = page.get_by_role("checkbox", name="Fetch the files that this commit keeps in Git LFS")
    expect(submodule).to_be_checked()
    expect(large).to_be_checked()
    reach(page, submodule)
    page.keyboard.press("Space")
    expect(submodule).not_to_be_checked()
    reach(page, large)
    page.screenshot(path=screenshots / "8-choices.png", full_page=True)
    reach(page, page.get_by_role("button", name="Start"))
    page.keyboard.press("Enter")

    def decided() -> Any:
        servers = stack.api("GET", "servers").json()["servers"].values()
        return [one for one in servers if one["submodules"]]

    (server,) = wait_for(decided, 60)
    ((path, left_out),) = [(one["path"], one["left_out"]) for one in server["submodules"]]
    assert path == "tool" and "you have not agreed to it" in left_out
    model = stack.hub_api("GET", f"users/{stack.owner}/servers/{server['name']}").json()
    assert model["user_options"]["notebooks"] == {
        "project": report, "commit": sha, "branch": "main", "lfs_auto_fetch": True
    }  # fmt: skip
    # What it would do once it runs is looked at elsewhere.
    assert stack.api("DELETE", f"servers/{server['name']}?forced=true").status_code == 204
