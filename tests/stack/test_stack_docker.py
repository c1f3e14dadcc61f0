"""The whole way with ``--runtime docker``, all of it real: push, job, registry, container, cell, push, stop,
start; the walls around servers and jobs; what is restarted under them.
"""

from __future__ import annotations

import json
import re
import signal
import time
from typing import Any

import pytest
import stack_docker_outside as outside
from stack_compose import TestCompose, site
from stack_docker_mounts import test_data_is_there_for_whom_it_is_allowed
from stack_docker_origins import (
    test_a_hostile_images_page_acts_on_nothing,
    test_old_addresses_of_a_server_lead_to_its_own,
)
from stack_docker_outside import outside_site
from stack_docker_restarts import (
    big,
    test_a_launch_in_whose_middle_something_dies,
    test_a_registry_that_dies_while_an_image_is_pulled,
)
from stack_docker_scene import CHOSEN, GPU, MEMORY, Scene, scene
from stack_docker_secrets import test_personal_secrets_are_in_memory_alone
from stack_images_serve import (
    engine,
    test_a_home_that_cannot_be_written_is_replaced,
    test_a_kernel_of_the_image_runs,
    test_an_image_without_a_python_says_so,
    test_notebook_opens_where_the_image_has_it,
    test_strangers_are_not_let_in,
)
from test_stack_launch import execute

from notebooks_service.platform import loopback
from stack_fixtures import Stack, wait_for

pytestmark = pytest.mark.stack

# One engine and its images for both: these run here.
__all__ = [
    "TestCompose",
    "big",
    "engine",
    "outside_site",
    "scene",
    "site",
    "test_a_home_that_cannot_be_written_is_replaced",
    "test_a_hostile_images_page_acts_on_nothing",
    "test_a_kernel_of_the_image_runs",
    "test_a_launch_in_whose_middle_something_dies",
    "test_a_registry_that_dies_while_an_image_is_pulled",
    "test_an_image_without_a_python_says_so",
    "test_data_is_there_for_whom_it_is_allowed",
    "test_notebook_opens_where_the_image_has_it",
    "test_old_addresses_of_a_server_lead_to_its_own",
    "test_personal_secrets_are_in_memory_alone",
    "test_strangers_are_not_let_in",
]


def test_from_push_to_the_same_work_again(scene: Scene) -> None:
    [sha] = scene.shas
    job = scene.job("image_build", sha)
    trace = scene.forge(f"jobs/{job['id']}/trace")
    assert job["status"] == "success", trace

    server = scene.launch(sha)
    assert server["status"]["state"] == "running", f"{server}\n{scene.stack.said()}"
    assert (server["image_origin"], server["image"]) == (
        "commit",
        f"{scene.registry}/{scene.project}:{sha}",
    )
    name = server["name"]
    # It has no Jupyter of its own: the one that it was lent runs the image's own Python.
    code = (
        "import subprocess, special, sys; "
        "print(subprocess.check_output(['git', 'rev-parse', 'HEAD'], text=True).strip(), special.VALUE, "
        "open('/made-by').read().strip(), sys.prefix)"
    )
    assert execute(scene.stack, name, code, "parts") == f"{sha} 42 0 /usr"
    assert '"way": "python"' in scene.stack.api("GET", f"logs/{name}?step=server").text
    assert server["served"].startswith("The image has only Python 3.")
    assert server["served"] in {each["message"] for each in scene.events(name)}

    scene.inside(name, "sh", "-c", "echo kept > kept.txt && echo new > new.txt && git add new.txt")
    said = scene.inside(name, "sh", "-c", "git commit --quiet -m 'From inside' && git push 2>&1")
    pushed = scene.inside(name, "git", "rev-parse", "HEAD").strip()
    assert scene.forge("repository/branches/main")["commit"]["id"] == pushed, said

    stopped = scene.stack.api("PATCH", f"servers/{name}", json={"state": "hibernated"})
    assert stopped.status_code < 300
    wait_for(lambda: scene.state(name)["state"] == "stopped")
    # Another person's server may have this name, and runs on.
    labels = (f"server={name}", f"user={scene.stack.owner}")
    of_server = [scene.ours, *(f"--filter=label=notebooks.{label}" for label in labels)]
    of_kind = [*of_server, "--filter", "label=notebooks.kind=server"]
    assert scene.engine.run("ps", "-aq", *of_kind).stdout == ""
    # What looks for unsaved work in the volume is a container too, for a moment.
    wait_for(lambda: scene.engine.run("ps", "-aq", *of_server).stdout == "")
    assert scene.engine.run("network", "ls", "-q", *of_server).stdout == ""
    unsaved = scene.stack.client().get(f"{scene.stack.service_url}servers").text
    assert "1 changed file" in unsaved

    again = scene.launch(sha, defaultUrl="/tree")
    assert (again["name"], again["status"]["state"]) == (name, "running")
    # The image has no Notebook, and the one that it was lent is JupyterLab.
    assert again["default_url"] == "/lab" and f"/{name}/lab/tree/" in again["url"]
    missing = "The image does not offer Notebook (`/tree`): JupyterLab opens."
    assert again["served"].endswith(missing)
    assert missing in {each["message"] for each in scene.events(name)}
    assert execute(scene.stack, name, "print(open('kept.txt').read())", "parts") == "kept"
    assert "== server ==" in scene.stack.api("GET", f"logs/{name}").text


def test_a_server_reaches_hub_and_gateway_and_nothing_else(scene: Scene) -> None:
    bob = scene.stack.add_user("bob")
    added = scene.stack.command("forge", "member", "add", scene.project, bob, "developer")
    assert added.returncode == 0, added.stderr
    mine, his = (scene.launch(scene.shas[0], user) for user in (None, bob))
    assert his["status"]["state"] == "running", his
    client = scene.engine.client()
    try:
        containers = [
            client.containers.get(scene.container(his["name"], user)) for user in (None, bob)
        ]
        networks = [each.attrs["NetworkSettings"]["Networks"] for each in containers]
        assert [len(each) for each in networks] == [1, 1]
        my_address, his_address = (next(iter(each.values()))["IPAddress"] for each in networks)
        assert my_address != his_address
        config = containers[1].attrs["HostConfig"]
        instance = containers[1].labels["notebooks.instance"]
    finally:
        client.close()
    ports = json.loads((scene.stack.data / "ports.json").read_text())
    inside = "http://notebooks.internal:8000"
    host, front, way_out = (scene.engine.address(number) for number in (1, 2, 3))
    site = f"http://{scene.site}/?token=canary"
    # An entry of the setting holds the networks of servers; nothing in them is reached all the same.
    unreachable = outside.unreachable(scene.engine, my_address, scene.stack.port, ports)
    found = scene.attack(
        his["name"],
        {
            "connect": [
                [my_address, 8888], [host, ports["hub"]], [host, ports["service"]],
                [host, scene.stack.port], [front, 8000], [front, 8001], [way_out, 8000],
                ["127.0.0.1", ports["registry"]], ["169.254.169.254", 80], ["notebooks.internal", 8001],
                ["notebooks.internal", 8000], [outside.HOST, int(scene.site.partition(":")[2])], [host, ports["egress"]],
            ],
            "proxy": [site, scene.site, *unreachable],
            "ways": 80,
            "fetch": [
                f"{inside}/hub/api/", f"{inside}/hub/api/users", f"{inside}/hub/login", f"{inside}/",
                f"{inside}/user/{scene.stack.owner}/{mine['name']}/api", f"{inside}/services/notebooks/projects",
                f"{inside}/hub/api/../login",
                f"{inside}/services/notebooks/git/{scene.project}.git/info/refs?service=git-upload-pack",
            ],
            "resolve": ["debian.org", "notebooks.internal"],
            "see": ["/var/run/docker.sock", "/run/docker.sock", str(scene.stack.data)],
            "write": ["/opt/notebooks", "/opt/notebooks/serve.py", "/opt/notebooks-jupyter", "/etc/passwd"],
        },
        bob,
    )  # fmt: skip
    # Docker's own list of system calls decides about these, and newer engines have a longer one.
    del found["families"]
    assert found == {
        "connects": [["notebooks.internal", 8000]],
        "status": {
            f"{inside}/hub/api/": 200,
            f"{inside}/hub/api/users": 403,
            f"{inside}/hub/login": 404,
            f"{inside}/": 404,
            f"{inside}/user/{scene.stack.owner}/{mine['name']}/api": 404,
            f"{inside}/services/notebooks/projects": 404,
            f"{inside}/hub/api/../login": 404,
            # It wants the server's own token.
            f"{inside}/services/notebooks/git/{scene.project}.git/info/refs?service=git-upload-pack": 401,
        },
        "by_proxy": {site: 200, scene.site: 200, **dict.fromkeys(unreachable, 403)},
        "ways": 64,
        "resolves": ["notebooks.internal"],
        "sees": [],
        "writes": [],
        "mounts": False,
        "raw": False,
        "root": False,
        "devices": [],
    }
    assert (config["CapAdd"], config["CapDrop"], config["Privileged"]) == (None, ["ALL"], False)
    assert config["SecurityOpt"] == ["no-new-privileges"]
    assert (config["Memory"], config["MemorySwap"]) == (MEMORY, MEMORY)
    # One processor is his allowance.
    assert config["CpuQuota"] == config["CpuPeriod"] > 0
    log = (scene.stack.data / "logs" / "egress.log").read_text()
    assert "servers asked for '169.254.169.254', port 80" in log
    assert "canary" not in log + scene.engine.run("logs", f"notebooks-{instance}-inside").stdout
    # Programs find the way by themselves.
    said = scene.inside(his["name"], "python3", "-c", outside.FETCH, site, user=bob)
    assert said.strip() == outside.SAYS
    # One person's token does not open the other's server, through the proxy that both may use.
    url = f"{scene.stack.server_url(mine['name'])}api/contents"
    import httpx

    headers = {"Authorization": f"token {scene.stack.token(bob)}"}
    with httpx.Client(trust_env=False, mounts=loopback.mounts()) as client:
        assert client.get(url, headers=headers).status_code in (401, 403)


def test_a_job_reaches_forge_and_registry_and_nothing_else(scene: Scene) -> None:
    job = scene.job("attack", scene.shas[0])
    trace = scene.forge(f"jobs/{job['id']}/trace")
    assert job["status"] == "success", trace
    found = json.loads(re.search(r"RESULT (\{.*\})", trace)[1])  # type: ignore[index]
    assert found["connects"] == []
    assert found["resolves"] == found["sees"] == found["devices"] == []
    # The way to packages answers, and says no to what is not one.
    assert found["status"] == {"http://127.0.0.1:3128/": 400}
    assert (found["mounts"], found["raw"]) == (False, False)
    assert found["families"] == [False, False, False]
    assert "DOCKER" not in trace
    assert scene.engine.run("ps", "-aq", "--filter", "label=notebooks.kind=job").stdout == ""


def test_a_gpu_is_one_servers(scene: Scene) -> None:
    """As far as the engine: what NVIDIA's toolkit makes of it is not tried, there is no GPU here."""
    gil, sha = scene.stack.add_user("gil"), scene.shas[0]
    added = scene.stack.command("forge", "member", "add", scene.project, gil, "developer")
    assert added.returncode == 0, added.stderr

    def launched(user: str | None, **chosen: Any) -> dict[str, Any]:
        before = scene.stack.api("GET", "servers", user).json()["servers"]
        for each in before:
            scene.stack.api("PATCH", f"servers/{each}", user, json={"state": "hibernated"})
        ended = ("stopped", "failed")
        wait_for(lambda: all(scene.state(each, user)["state"] in ended for each in before))
        return scene.launch(sha, user, **chosen)

    mine = launched(None, gpu_request=1)
    assert mine["resources"] == {"requests": {"gpu": 1}}, mine
    [container] = json.loads(scene.engine.run("inspect", scene.container(mine["name"])).stdout)
    [request] = container["HostConfig"]["DeviceRequests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == ([GPU], [["gpu"]])
    assert scene.inside(mine["name"], "printenv", "NVIDIA_VISIBLE_DEVICES").strip() == GPU
    his = launched(gil, gpu_request=1)
    assert his["failure"]["code"] == "no_gpu", his
    assert "0 of this machine's 1 GPUs are free" in his["failure"]["message"]
    without = launched(gil)
    assert scene.inside(without["name"], "printenv", "NVIDIA_VISIBLE_DEVICES", user=gil) == "void\n"
    # More than there are is refused before anything is done.
    body = {"namespace": scene.project.split("/")[0], "project": scene.project.split("/")[1]}
    body |= {"commit_sha": sha, "serverOptions": {"gpu_request": 2}}
    assert scene.stack.api("POST", "servers", json=body).status_code == 422
    launched(None)
    assert launched(gil, gpu_request=1)["status"]["state"] == "running"


def test_a_server_that_takes_too_much_memory_says_so(scene: Scene) -> None:
    # Another amount than the setting's: what is chosen is what the engine, the server and the sentence say.
    name = scene.launch(scene.shas[0])["name"]
    scene.stack.api("PATCH", f"servers/{name}", json={"state": "hibernated"})
    wait_for(lambda: scene.state(name)["state"] == "stopped")
    server = scene.launch(scene.shas[0], mem_request="600Mi", cpu_request=0.5)
    assert server["resources"] == {"requests": {"cpu": 0.5, "memory": "600Mi"}}
    container = scene.container(name)
    host = json.loads(scene.engine.run("inspect", container).stdout)[0]["HostConfig"]
    limits = (host["Memory"], host["MemorySwap"], host["NanoCpus"] or host["CpuQuota"] * 10_000)
    assert limits == (CHOSEN, CHOSEN, 500_000_000)
    said = scene.inside(name, "printenv", "MEM_LIMIT", "CPU_LIMIT").split()
    assert said == [str(CHOSEN), "0.5"]
    # In the server's own process group, so that the whole container ends by it.
    scene.engine.run("exec", "--detach", container, "python3", "-c", "x = b'1' * (2 * 1024**3)")
    hog = "import ctypes; x = b'1' * (2 * 1024**3)"
    scene.inside(name, "python3", "-c", hog)
    # The kernel may end that program alone; then the server's own first process is ended as it would be.
    if scene.state(name)["state"] == "running":
        scene.engine.run("kill", container, check=False)
    wait_for(lambda: scene.state(name)["state"] == "stopped", 60)
    said = scene.state(name)["message"]
    assert "memory" in said, said
    assert said.endswith("The work is kept.")


def test_what_is_restarted_under_running_servers(scene: Scene) -> None:
    stack = scene.stack
    name = scene.launch(scene.shas[0])["name"]
    container = scene.container(name)
    assert execute(stack, name, "print(6 * 7)", "parts") == "42"

    for part in ("hub", "inside", "proxy", "egress"):
        before = stack.part(part).pid
        if part in ("hub", "egress"):
            stack.part(part).send_signal(signal.SIGKILL)
        else:
            data = scene.engine.run(
                "ps", "-q", scene.ours, "--filter", f"label=notebooks.kind={part}"
            ).stdout
            scene.engine.run("kill", *data.split())
        wait_for(lambda part=part, before=before: started_anew(stack, part, before), 90)
        wait_for(lambda: healthy(stack), 90)
        assert scene.container(name) == container
        wait_for(lambda: works(stack, name), 60)

    # The engine ends what runs on it; the work is in a volume, and the page says what happened.
    scene.engine.stop()
    scene.engine.start()
    wait_for(lambda: healthy(stack), 120)
    wait_for(lambda: scene.state(name)["state"] == "stopped", 120)
    assert "The work is kept." in scene.state(name)["message"]
    again = scene.launch(scene.shas[0])
    assert again["status"]["state"] == "running", again
    assert execute(stack, name, "print(open('kept.txt').read())", "parts") == "kept"


def started_anew(stack: Stack, part: str, before: int) -> bool:
    try:
        return stack.part(part).pid != before
    except AssertionError:
        return False


def healthy(stack: Stack) -> bool:
    import httpx

    try:
        answer = httpx.get(f"{stack.service_url}health", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def works(stack: Stack, name: str) -> bool:
    try:
        return execute(stack, name, "print(6 * 7)", "parts") == "42"
    except Exception:
        return False


def test_the_end_of_up_is_the_end_of_everything(scene: Scene) -> None:
    assert scene.stack.stop() == 0
    assert scene.engine.run("ps", "-q").stdout == ""
    began = time.monotonic()
    scene.stack.start()
    assert time.monotonic() - began < 120
    name = scene.stack.api("GET", "servers").json()["servers"].popitem()[1]["name"]
    wait_for(lambda: scene.state(name)["state"] == "stopped", 60)


def test_a_backup_brings_everything_back(scene: Scene) -> None:
    """Onto an empty data directory and an engine that has nothing of it: the server opens, the work is there."""
    old = scene.stack
    name = scene.launch(scene.shas[0])["name"]
    scene.inside(name, "sh", "-c", "echo 'not pushed' > kept.txt")
    file = old.data.parent / "all.backup"
    made = old.command("backup", str(file), "--json")
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert (facts["volumes"] >= 1, facts["skipped"]) == (True, [])

    new = Stack(old.data.parent / "restored", old.port, old.arguments, old.environment)
    refused = new.command("restore", str(file))
    assert refused.returncode == 1
    assert "is on this engine already" in refused.stderr
    assert not new.data.exists()

    assert old.stop() == 0
    for kind in ("ps", "volume"):
        listed = ["ps", "-a"] if kind == "ps" else ["volume", "ls"]
        for each in scene.engine.run(
            *listed, "-q", "--filter", "label=notebooks.instance"
        ).stdout.split():
            scene.engine.run(*(["rm", "-f"] if kind == "ps" else ["volume", "rm"]), each)
    done = new.command("restore", str(file))
    assert done.returncode == 0, done.stderr
    scene.stack = new
    new.start()
    again = scene.launch(scene.shas[0])
    assert (again["name"], again["status"]["state"]) == (name, "running")
    assert execute(new, name, "print(open('kept.txt').read())", "parts") == "not pushed"
    assert "kept.txt" in scene.inside(name, "git", "status", "--short")
