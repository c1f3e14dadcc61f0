"""Starts Jupyter in a server's container, whatever the image has: run by ``serve.sh``, with the image's Python
if it has one. Three ways, the first that goes:

* ``jupyterhub-singleuser``: the image has it, and it is run;
* ``jupyter``: the image has a kernel (ipykernel), and our JupyterLab, mounted read-only, serves it;
* ``python``: the image has only a Python, and our packages are lent to it for the kernel;
* ``none``: no Python at all; there are files and a terminal.

Prints one JSON line first, which says the way and what can be opened (the hub reads it: ``spawner/served.py``), and
becomes the server.
Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OURS = Path("/opt/notebooks-jupyter")
KERNEL_START = HERE / "kernel_start.py"
LOOK = """
import importlib.util as u, json, sys
print(json.dumps({
    "version": list(sys.version_info[:2]), "prefix": sys.prefix,
    "has": [n for n in ("jupyterhub", "jupyter_server", "jupyterlab", "notebook", "ipykernel",
                        "jupyter_rsession_proxy") if u.find_spec(n)],
    # Notebook 6 is a program of its own, and no page of ours.
    "notebook_7": bool(u.find_spec("notebook") and u.find_spec("notebook.app")),
}))
"""
RSTUDIO = ("/usr/lib/rstudio-server/bin/rserver", "/usr/local/lib/rstudio-server/bin/rserver")
"""Where jupyter-rsession-proxy looks beside PATH: https://github.com/jupyterhub/jupyter-rsession-proxy"""


def look(python: str) -> dict:  # type: ignore[type-arg]
    """What the image's Python is and has; nothing if it does not answer."""
    try:
        done = subprocess.run(
            [python, "-c", LOOK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30
        )
        found = json.loads(done.stdout)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}


def interpreter(script: str) -> str:
    """The Python that a program of the image is run by, as its first line says; "" if it does not."""
    try:
        with Path(script).open("rb") as file:
            line = os.fsdecode(file.readline(4096)).strip()
    except OSError:
        return ""
    words = line[2:].split() if line.startswith("#!") else []
    if words and Path(words[0]).name == "env":
        words = [shutil.which(words[-1]) or ""]
    return words[0] if words and Path(words[0]).name.startswith("python") else ""


def runs(command: list[str]) -> bool:
    """Whether it ends well; what it says is not of interest."""
    silent = subprocess.DEVNULL
    done = subprocess.run(command, cwd="/", stdin=silent, stdout=silent, stderr=silent)
    return done.returncode == 0


def lent_kernel(python: str, packages: Path) -> list[str]:
    """The command of a kernel with lent packages; nothing if none runs.

    The image's own packages go before ours. Where one of them is too old for a kernel, ours go first.
    """
    for place in ("last", "first"):
        command = [python, str(KERNEL_START), place, str(packages)]
        if packages.is_dir() and runs([*command, "--version"]):
            return [*command, "-f", "{connection_file}"]
    return []


def say(way: str, python: str, git: bool, offers: list[str]) -> None:
    """The line that the hub reads. What opens is what was chosen, if it is there."""
    if os.environ.get("NOTEBOOKS_DEFAULT_URL") in offers:
        os.environ["JUPYTERHUB_DEFAULT_URL"] = os.environ["NOTEBOOKS_DEFAULT_URL"]
    line = {"notebooks": "serve", "way": way, "python": python, "git": git, "offers": offers}
    print(json.dumps(line), flush=True)


def own_offers(found: dict) -> list[str]:  # type: ignore[type-arg]
    """What can be opened where the image's own Jupyter runs, which has JupyterLab."""
    offers = ["/lab"]
    if found.get("notebook_7"):
        offers.append("/tree")
    if "jupyter_rsession_proxy" in found["has"] and (
        shutil.which("rserver") or any(os.access(path, os.X_OK) for path in RSTUDIO)
    ):
        offers.append("/rstudio")
    return offers


def prepare_home(environ: os._Environ[str]) -> None:
    home = environ.get("HOME") or "/work/home"
    with contextlib.suppress(OSError):
        Path(home).mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):
        home = tempfile.mkdtemp(prefix="home-")
    environ["HOME"] = home
    # Whoever has no name in the image's /etc/passwd has one here; an image's own belongs to its user.
    environ["USER"] = environ["LOGNAME"] = environ.get("JUPYTERHUB_USER") or "person"
    if not shutil.which(environ.get("SHELL", "")):
        environ["SHELL"] = shutil.which("bash") or "/bin/sh"


def prepare_git(python: str) -> bool:
    """Tells git of the gateway; False if the image has no git."""
    if shutil.which("git") is None:
        return False
    done = subprocess.run(
        [python, "-I", str(HERE / "gitconfig.py")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
    return True


def settings_directory() -> Path:
    directory = Path(os.environ["HOME"]) / ".notebooks"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def write_config(directory: Path, root: str, *, own_kernels: bool) -> None:
    """JupyterLab's settings: no request to the outside; our kernelspec only where we wrote one."""
    etc = directory / "etc"
    etc.mkdir(exist_ok=True)
    config = {
        "ServerApp": {"root_dir": root, "open_browser": False, "terminals_enabled": True,
                      "terminado_settings": {"shell_command": [os.environ["SHELL"]]}},
        "ContentsManager": {"allow_hidden": True},
        "LanguageServerManager": {"autodetect": False},
        "LabApp": {"check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "news_url": None,
                   "extension_manager": "readonly"},
    }  # fmt: skip
    if own_kernels:
        config["KernelSpecManager"] = {"ensure_native_kernel": False}
    (etc / "jupyter_server_config.json").write_text(json.dumps(config, indent=2))
    lab = etc / "labconfig"
    lab.mkdir(exist_ok=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": False}
    overrides = {"@jupyterlab/apputils-extension:notification": quiet}
    (lab / "default_setting_overrides.json").write_text(json.dumps(overrides))
    others = os.environ.get("JUPYTER_CONFIG_PATH")
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join([str(etc), *([others] if others else [])])


def write_kernel(directory: Path, argv: list[str], name: str) -> None:
    place = directory / "share" / "kernels" / "python3"
    place.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": argv,
        "display_name": name,
        "language": "python",
        "metadata": {"debugger": False},
    }
    (place / "kernel.json").write_text(json.dumps(spec, indent=2))


def start(command: list[str]) -> None:
    os.chdir(os.environ.get("JUPYTERHUB_ROOT_DIR", "/work/work"))
    os.execvp(command[0], command)  # noqa: S606 - a list


def main() -> int:
    environ = os.environ
    prepare_home(environ)
    python = environ.get("NOTEBOOKS_IMAGE_PYTHON", "")
    ours = OURS / "python"
    found = look(python) if python else {}
    has = set(found.get("has", ()))
    helper = python or str(ours)
    environ["NOTEBOOKS_PYTHON"] = helper
    git = prepare_git(helper)
    root = environ.get("JUPYTERHUB_ROOT_DIR", "/work/work")
    directory = settings_directory()
    single = shutil.which("jupyterhub-singleuser")
    beneath = interpreter(single) if single else ""
    if beneath and beneath != python:  # another Python than that which is found first
        theirs = look(beneath)
        if {"jupyterhub", "jupyterlab"} <= set(theirs.get("has", ())):
            python, found, has = beneath, theirs, set(theirs["has"])
    # Our pages link to JupyterLab: an image that has another Jupyter only is lent ours.
    if single and {"jupyterhub", "jupyter_server", "jupyterlab"} <= has:
        write_config(directory, root, own_kernels=False)
        version = ".".join(map(str, found["version"]))
        say("jupyterhub-singleuser", version, git, own_offers(found))
        start([single])
    if not os.access(str(ours), os.X_OK):
        sys.stderr.write(
            "This image has no `jupyterhub-singleuser`, and this service has no Jupyter of its own to lend.\n"
        )
        return 127
    write_config(directory, root, own_kernels=True)
    version = ".".join(map(str, found.get("version", ())))
    shared = [str(directory / "share")]
    if found.get("prefix"):
        shared.append(str(Path(str(found["prefix"])) / "share" / "jupyter"))
    environ["JUPYTER_PATH"] = os.pathsep.join(shared)
    name = f"Python {version}"
    if "ipykernel" in has:
        write_kernel(
            directory, [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], name
        )
        say("jupyter", version, git, ["/lab"])
    elif version and (lent := lent_kernel(python, OURS / "kernels" / version)):
        write_kernel(directory, lent, name)
        say("python", version, git, ["/lab"])
    else:
        say("none", version, git, ["/lab"])
    start([str(ours), "-m", "jupyterhub.singleuser"])
    return 127


if __name__ == "__main__":
    sys.exit(main())
