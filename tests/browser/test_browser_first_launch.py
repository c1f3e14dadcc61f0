"""The way of a researcher through a real browser, from the printed URL to pushed work and back."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from stack_fixtures import NewStack, Stack, wait_for

pytestmark = [pytest.mark.stack, pytest.mark.browser]

LAUNCH = 180_000


def requirements(stack: Stack, commit: str) -> dict[str, str]:
    """The pins of a commit of the sample, read from the forge's bare repository."""
    repository = next((stack.data / "forge" / "repositories").rglob("*.git"))
    text = subprocess.run(
        ["git", "-C", repository, "show", f"{commit}:requirements.txt"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def from_launcher(page: Page, card: str) -> None:
    """Click a card of JupyterLab's launcher."""
    page.locator(".lm-TabBar-addButton:visible").first.click()
    page.locator(f".jp-LauncherCard:visible{card}").first.click()


def run_cell(page: Page, code: str) -> str:
    """A new notebook from the launcher, one cell, its output."""
    from_launcher(page, '[data-category="Notebook"]')
    notebook = page.locator(".jp-NotebookPanel:visible")
    cell = notebook.locator(".cm-content").first
    cell.click()
    page.keyboard.insert_text(code)
    expect(cell).to_contain_text(code.splitlines()[-1])
    output = notebook.locator(".jp-OutputArea-output").first
    # JupyterLab forgets a cell that is run before its kernel is connected, and shows the kernel as
    # idle even then: whoever sees an empty prompt runs the cell again.
    for _ in range(9):
        if notebook.locator(".jp-InputPrompt").first.inner_text().strip() == "[ ]:":
            page.keyboard.press("Control+Enter")
        try:
            output.wait_for(timeout=10_000)
            break
        except PlaywrightTimeout:
            continue
    return output.inner_text()


def in_terminal(page: Page, command: str, until: Path) -> None:
    """Type a command into a new terminal of JupyterLab; done when it has written ``until``."""
    from_launcher(page, ':has-text("Terminal")')
    terminal = page.locator(".jp-Terminal:visible")
    terminal.locator(".xterm-screen").click()
    page.keyboard.type(f"{command}; echo $? > {until}\n")
    wait_for(lambda: until.exists() and until.read_text().strip(), 60)
    assert until.read_text().strip() == "0", terminal.inner_text()


def test_from_the_printed_url_to_pushed_work_and_back(
    new_stack: NewStack, context: BrowserContext, screenshots: Path
) -> None:
    stack = new_stack().start()
    commits = stack.commits()
    old = commits[1]
    pins, first = requirements(stack, old), requirements(stack, commits[-1])
    package = next(name for name in pins if name not in first)
    with pytest.raises(PackageNotFoundError):
        version(package)  # nor is it in the service's own environment
    page = context.new_page()

    # Log in by the printed URL, find the project and the commit.
    page.goto(stack.ready_url)
    expect(page).to_have_url(stack.service_url)
    page.screenshot(path=screenshots / "1-projects.png")
    page.get_by_role("link", name="nile").first.click()
    page.screenshot(path=screenshots / "2-commits.png")

    # Open a commit's URL: nothing starts by itself, the page asks once.
    page.goto(f"{stack.service_url}{stack.owner}/nile/{old}")
    expect(page.get_by_role("button", name="Start")).to_be_visible()
    assert stack.api("GET", "servers").json()["servers"] == {}
    page.screenshot(path=screenshots / "3-consent.png")
    page.get_by_role("button", name="Start").click()

    # Watch it start, with the log of the build.
    expect(page.locator("#steps")).to_be_visible()
    expect(page.locator("#job-log pre")).to_contain_text("notebooks image build", timeout=LAUNCH)
    page.screenshot(path=screenshots / "4-launch.png")
    page.wait_for_url(re.compile(r"/user/[^/]+/[^/]+/lab"), timeout=LAUNCH)
    server_url = page.url
    page.locator("#jp-top-panel").wait_for(timeout=90_000)
    page.get_by_text("README.md").first.wait_for()

    # A cell prints the commit and the version of a package of this commit's environment.
    code = (
        "import subprocess, importlib.metadata as m\n"
        "print(subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout)\n"
        f"print({package!r}, m.version({package!r}))"
    )
    output = run_cell(page, code)
    page.screenshot(path=screenshots / "5-cell.png")
    assert old in output
    assert f"{package} {pins[package]}" in output

    # Edit, commit and push in a terminal; the push is a new branch, as the commit is no tip.
    repository = next((stack.data / "servers").glob("*/*/work/nile"))
    home = repository.parents[1] / "home"  # behind the wall /tmp is another one
    in_terminal(
        page,
        f"cd {repository} && echo more >> README.md && git commit -qam 'Say more' && git push -q",
        home / "pushed",
    )
    branch = f"main-{old[:8]}"
    on_forge = stack.api("GET", f"projects/{project_id(stack)}/commits?ref={branch}")
    assert on_forge.status_code == 200, on_forge.text
    assert on_forge.json()[0]["title"] == "Say more"

    # Leave something unsaved, stop, come back by the same URL: it is there.
    in_terminal(page, f"echo unsaved > {repository}/draft.txt", home / "drafted")
    page.goto(f"{stack.service_url}servers")
    page.screenshot(path=screenshots / "6-servers.png")
    page.get_by_role("button", name=re.compile("Stop")).first.click()
    wait_for(lambda: only_server(stack)["status"]["state"] == "stopped", 60)
    assert not [p for p in stack.processes() if "singleuser" in " ".join(p.cmdline())]
    page.goto(f"{stack.service_url}{stack.owner}/nile/{old}/draft.txt")
    page.wait_for_url(re.compile(r"/user/.*/lab/tree/nile/draft.txt"), timeout=LAUNCH)
    assert page.url.split("/lab")[0] == server_url.split("/lab")[0]
    page.get_by_text("unsaved").first.wait_for(timeout=90_000)
    page.screenshot(path=screenshots / "7-back.png")


def project_id(stack: Stack) -> int:
    return int(stack.api("GET", "projects").json()[0]["id"])


def only_server(stack: Stack) -> dict[str, dict[str, str]]:
    (server,) = stack.api("GET", "servers").json()["servers"].values()
    return dict(server)
