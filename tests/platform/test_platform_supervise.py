"""The supervisor with real processes: crashes, signals, what is left afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from notebooks_service.platform.processes import ProcessId
from notebooks_service.platform.supervise import rotate
from ports import free_port

PROGRAM = Path(__file__).with_name("supervised_program.py")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Program:
    """One run of the program on ``directory``; its stderr is in a file."""

    def __init__(self, directory: Path, ports: tuple[int, int]) -> None:
        self.directory = directory
        self.ports = ports
        directory.mkdir(exist_ok=True)
        self.stderr = directory / "stderr"
        with self.stderr.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(directory), *(str(port) for port in ports)],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.said()

    def said(self) -> str:
        return self.stderr.read_text()

    def part(self, name: str) -> psutil.Process:
        known = ProcessId.read(self.directory / "run" / f"{name}.json")
        assert known is not None
        process = known.find()
        assert process is not None
        return process

    def processes(self) -> list[psutil.Process]:
        """Everything that carries this run's directory in its command line, but the program."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.directory) in process.cmdline() and process.pid != self.process.pid:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path / "a run", (free_port(), free_port()))
    yield made
    made.process.kill()
    made.process.wait()
    for process in made.processes():
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_parts_and_orphans(program: Program, number: signal.Signals) -> None:
    program.wait_ready()
    # Two parts and the two grandchildren that left their sessions and parents.
    wait_for(lambda: len(program.processes()) == 4)
    program.process.send_signal(number)
    assert program.process.wait(60) == 0
    assert program.processes() == []
    assert list((program.directory / "run").iterdir()) == []


def test_others_are_left_alone(program: Program) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        program.wait_ready()
        program.process.send_signal(signal.SIGINT)
        program.process.wait(60)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_crashed_part_is_started_again_and_says_so(program: Program) -> None:
    program.wait_ready()
    first = program.part("one")
    first.kill()
    wait_for(lambda: "The one answers again." in program.said())
    assert program.part("one") != first
    said = program.said()
    assert "The one ended (killed by SIGKILL); starting it again in 1 s. Its log: " in said
    assert "after one" in said
    assert "two" not in said
    second = program.part("one")
    second.kill()
    wait_for(lambda: program.said().count("The one answers again.") == 2)
    assert "starting it again in 2 s" in program.said()


def test_stop_while_a_part_is_down(program: Program) -> None:
    program.wait_ready()
    program.part("two").kill()
    wait_for(lambda: "The two ended" in program.said())
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(60) == 0
    assert program.processes() == []


def test_killed_supervisor_leaves_no_parts_and_the_next_starts(program: Program) -> None:
    program.wait_ready()
    parts = [program.part("one"), program.part("two")]
    program.process.kill()
    program.process.wait()
    wait_for(lambda: not any(part.is_running() for part in parts))
    again = Program(program.directory, program.ports)
    try:
        again.wait_ready()
    finally:
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(60) == 0


def test_leftover_that_ignored_its_parents_death_is_ended(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    (directory / "run").mkdir(parents=True)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    leftover = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
    assert leftover.stdout is not None
    leftover.stdout.readline()
    ProcessId.of(leftover.pid).write(directory / "run" / "one.json")
    program = Program(directory, (free_port(), free_port()))
    try:
        program.wait_ready()
        assert leftover.wait(60) == -signal.SIGKILL
        assert "Ending what an earlier start left running." in program.said()
    finally:
        leftover.kill()
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(60) == 0


def test_reused_pid_is_not_ended(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    (directory / "run").mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    earlier = ProcessId(other.pid, ProcessId.of(other.pid).created - 100)
    earlier.write(directory / "run" / "one.json")
    program = Program(directory, (free_port(), free_port()))
    try:
        program.wait_ready()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(60) == 0


def test_part_that_ends_before_it_answers_fails_the_start(tmp_path: Path) -> None:
    program = Program(tmp_path / "a run", (free_port(), 0))
    assert program.process.wait(60) == 1
    said = program.said()
    assert "The two ended before it answered. Its last words: no such luck (all of them: " in said
    assert "starting it again" not in said
    assert program.processes() == []


def test_second_signal_forces(tmp_path: Path) -> None:
    program = Program(tmp_path / "a run", (free_port(), free_port()))
    program.wait_ready()
    # A part that is stopped handles no SIGTERM: without force its end takes 8 s.
    program.part("two").suspend()
    began = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    wait_for(lambda: "Stopping." in program.said())
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(60) == 0
    assert time.monotonic() - began < 8
    assert program.processes() == []


def test_log_is_rotated_while_it_is_written(program: Program) -> None:
    program.wait_ready()
    log = program.directory / "logs" / "one.log"
    older = program.directory / "logs" / "one.log.1"

    def call() -> bool:
        urllib.request.urlopen(f"http://127.0.0.1:{program.ports[0]}/", timeout=5).close()
        return older.exists()

    wait_for(call)
    size = log.stat().st_size
    wait_for(lambda: call() and log.stat().st_size > size)
    assert log.stat().st_mode & 0o777 == 0o600
    assert older.stat().st_mode & 0o777 == 0o600
    assert b"\0" not in log.read_bytes()


def test_rotation_keeps_three(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    for number in range(6):
        log.write_text(str(number))
        rotate(log)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "part.log": "", "part.log.1": "5", "part.log.2": "4", "part.log.3": "3",
    }  # fmt: skip
