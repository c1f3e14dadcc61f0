"""``python -m notebooks_service.runner``: takes jobs from a forge until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from notebooks_service.errors import NotebooksError
from notebooks_service.runner.client import RunnerClient
from notebooks_service.runner.executor import Executor, Processes
from notebooks_service.runner.limits import JobLimits
from notebooks_service.runner.worker import Worker, prepare_places
from notebooks_service.settings import Settings, load_settings
from notebooks_service.walls.wall import in_force


def make_executor(arguments: argparse.Namespace, settings: Settings) -> Executor:
    """What the arguments ask for. Raises ``SettingsInvalid``."""
    if arguments.executor == "processes":
        walls = in_force(settings)
        logging.info("Walls around jobs: %s", walls.way)
        return Processes(walls)
    # Needs packages that the other one does without.
    from notebooks_service.egress.proxy import for_jobs
    from notebooks_service.runner.containers import (
        ContainerExecutor,
        ContainerLimits,
        Containers,
    )
    from notebooks_service.runner.gates import FORGE, REGISTRY, Gates

    services = {FORGE: arguments.url}
    if arguments.registry:
        services[REGISTRY] = arguments.registry
    gates = Gates(services, for_jobs(settings))
    gates.start()
    limits = ContainerLimits(settings.job_cpu, settings.job_memory, settings.job_processes)
    return ContainerExecutor(Containers(arguments.instance, settings.job_image, gates, limits))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks_service.runner", description=__doc__)
    parser.add_argument("--url", required=True, help="address of the forge")
    parser.add_argument(
        "--token-file", type=Path, required=True, help="file with the runner's authentication token"
    )
    parser.add_argument("--data", type=Path, required=True, help="data directory of the service")
    parser.add_argument(
        "--environments", type=Path, help="where images are kept (<data>/environments)"
    )
    parser.add_argument(
        "--executor",
        choices=("processes", "docker"),
        default="processes",
        help="where jobs run: behind walls on this machine, or in containers (%(default)s)",
    )
    parser.add_argument(
        "--registry",
        default="",
        metavar="URL",
        help="docker: the forge's registry, which jobs reach",
    )
    parser.add_argument(
        "--instance", default="", metavar="ID", help="docker: what labels of its containers say"
    )
    parser.add_argument("--concurrent", type=int, default=2, metavar="N", help="jobs at once")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # Its lines hold addresses only, but one for each request is too much.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        token = arguments.token_file.read_text().strip()
    except OSError as error:
        print(f"The runner's token file cannot be read: {error.strerror}.", file=sys.stderr)
        return 1
    if not token or arguments.concurrent < 1:
        print("The token file is empty, or --concurrent is below 1.", file=sys.stderr)
        return 1
    data = arguments.data.expanduser().resolve()
    try:
        settings = load_settings(data=data)
        executor = make_executor(arguments, settings)
    except NotebooksError as error:
        print(error.message, file=sys.stderr)
        return 1
    environments = arguments.environments and arguments.environments.resolve()
    places = prepare_places(data, environments, JobLimits.from_settings(settings))
    lock = FileLock(data / "runner" / "lock")
    try:
        lock.acquire(timeout=5)
    except Timeout:
        print(f"Another runner works in {data}. Stop it first.", file=sys.stderr)
        return 1
    client = RunnerClient(arguments.url, token)
    worker = Worker(client, places, executor, concurrent=arguments.concurrent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.run()
    finally:
        executor.close()
        client.close()
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
