"""A Flink cluster of separate processes: JobManager, TaskManager, Beam's job server, and Python
workers that the TaskManager starts.

Flink's jars come from the sdist of `apache-flink-libraries` (PyPI), the job server is shaded by
Maven out of `beam-runners-flink`. Neither brings start scripts or a configuration, so both are
written here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tests.components import (
    Program,
    Unavailable,
    answers,
    build_once,
    cache_folder,
    free_port,
    listening,
    python_path,
    require_tools,
    run_quietly,
    tail,
)

_HERE = Path(__file__).parent
FLINK_VERSION = "1.19.3"
BEAM_RUNNER_VERSION = "2.70.0"  # 2.77's job server is not on every Maven mirror; 2.70's runs pipelines of the 2.77 SDK
JOB_SERVICE_VERSION = "2.65.0"

# What Flink's own scripts pass to Java 17 (env.java.opts.all of its flink-conf.yaml).
_OPENED = "net io lang lang.reflect lang.invoke math nio security text time util util.concurrent util.concurrent.atomic util.concurrent.locks"
_JAVA = [
    "java",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED.split()),
]
# Serial collector, first compiler only: short runs on two cores.
_JAVA += ["--add-opens=java.base/sun.nio.ch=ALL-UNNAMED"]

_LOG4J = """
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = Out
appender.out.name = Out
appender.out.type = CONSOLE
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c{1} - %m%n
"""

_ONE_LINE = "-Djava.util.logging.SimpleFormatter.format=%1$tT %4$s %2$s - %5$s%6$s%n"

# Restarts for tests that kill: every attempt made while no TaskManager is there counts, hence
# hundreds.
RESTARTS = ["--number_of_execution_retries=1000", "--execution_retry_delay=1000"]


def flink_jars() -> Path:
    """The folder with Flink's own jars. Raises `Unavailable`."""
    name = f"flink-{FLINK_VERSION}"
    if not (cache_folder() / name).is_dir():
        require_tools("Flink", "java")
    return build_once(name, _fetch_flink)


def job_server_jar() -> Path:
    """Beam's Flink job server as one jar. FLINK_JOB_SERVER_JAR names one to take as it is. Raises
    `Unavailable`.
    """
    named = os.environ.get("FLINK_JOB_SERVER_JAR")
    if named:
        if not Path(named).is_file():
            raise Unavailable(f"FLINK_JOB_SERVER_JAR names {named}, which is no file")
        return Path(named)
    name = f"flink-job-server-{BEAM_RUNNER_VERSION}"
    if not (cache_folder() / name).is_dir():
        require_tools("Beam's Flink job server", "java", "mvn")
    return build_once(name, _shade_job_server) / "job-server.jar"


def _fetch_flink(folder: Path) -> None:
    package = "apache-flink-libraries"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-binary",
        package,
    ]
    run_quietly(
        "fetching Flink",
        [*command, "-d", str(folder), f"{package}=={FLINK_VERSION}"],
        cwd=folder,
        seconds=900,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        for member in sdist:
            jar = Path(member.name).name
            if (
                member.isfile()
                and jar.endswith(".jar")
                and jar.startswith(("flink-dist-", "log4j-"))
            ):
                source = sdist.extractfile(member)
                assert source is not None
                with (folder / jar).open("wb") as target:
                    shutil.copyfileobj(source, target)
    archive.unlink()


def _shade_job_server(folder: Path) -> None:
    (folder / "pom.xml").write_text(
        (_HERE / "flink_job_server.pom.xml")
        .read_text()
        .format(runner=BEAM_RUNNER_VERSION, job_service=JOB_SERVICE_VERSION)
    )
    run_quietly(
        "building Beam's Flink job server", ["mvn", "-q", "-B", "package"], cwd=folder, seconds=900
    )
    (folder / "target" / "flink-job-server-1.jar").rename(folder / "job-server.jar")
    shutil.rmtree(folder / "target")


class FlinkCluster:
    """A running cluster; a context manager. One job at a time.

    Attributes:
        rest_url: Flink's REST address.
        folder: logs, checkpoints, configuration; gone at the end.
    """

    def __init__(self, slots: int = 4) -> None:
        self._lib, self._jar = flink_jars(), job_server_jar()
        require_tools("Flink", "java")
        self._temporary = tempfile.TemporaryDirectory(prefix="beam-llm-flink-")
        self.folder = Path(self._temporary.name)
        self._slots = slots
        self._job_port, self._rest_port = free_port(), free_port()
        self.rest_url = f"http://127.0.0.1:{self._rest_port}"
        self._programs: list[Program] = []
        self._taskmanager: Program | None = None
        self.write_configuration()

    def __enter__(self) -> FlinkCluster:
        try:
            jobmanager = self._java(
                "jobmanager", "runtime.entrypoint.StandaloneSessionClusterEntrypoint", "-Xmx512m"
            )
            self._launch_taskmanager()
            server = self._start_job_server()
            jobmanager.wait_until(lambda: answers(f"{self.rest_url}/overview"), seconds=120)
            self._wait_for("freeSlots")
            server.wait_until(lambda: listening(self._job_port), seconds=120)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for program in reversed(self._programs):
            program.stop()
        self._programs.clear()
        self._temporary.cleanup()

    # Options

    def batch_options(self, *, env: Mapping[str, str] | None = None) -> list[str]:
        """Pipeline flags for a batch job. `env`: variables of the Python workers, beside those of
        this process as the cluster started.
        """
        environment = {"command": str(self.folder / "worker"), "env": dict(env or {})}
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self._job_port}",
            "--parallelism=1",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps(environment)}",
        ]

    def streaming_options(
        self, *, checkpoint_ms: int | None = None, env: Mapping[str, str] | None = None
    ) -> list[str]:
        """Pipeline flags for a streaming job.

        Args:
            checkpoint_ms: None: no checkpoints, a bounded job ends by itself. Else a checkpoint
              this often, restarts after a kill, and
                sources stay open: the job runs until `cancel_jobs()`.
        """
        options = [*self.batch_options(env=env), "--streaming"]
        if checkpoint_ms is None:
            return options
        return [
            *options,
            f"--checkpointing_interval={checkpoint_ms}",
            "--finish_bundle_before_checkpointing",
            *RESTARTS,
        ]

    # Faults

    def kill_taskmanager(self, *, with_workers: bool = True) -> None:
        """`kill -9` for the TaskManager; `with_workers=False` lets its Python workers outlive it
        for a moment, as zombies do.
        """
        assert self._taskmanager is not None, "no TaskManager runs"
        if with_workers:
            os.killpg(self._taskmanager.pid, signal.SIGKILL)
        self._taskmanager.kill()
        self._taskmanager = None

    def start_taskmanager(self, *, wait: bool = True) -> None:
        """Starts a TaskManager in place of a killed one; `wait`: until its slots are offered (up to
        35 s on a loaded machine). A job that restarts takes them at once, so they needn't be free.
        """
        assert self._taskmanager is None, "a TaskManager runs already"
        self._launch_taskmanager()
        if wait:
            self._wait_for("slotsNumber")

    def python_workers(self) -> list[int]:
        """The pids of the living Python workers of the TaskManager."""
        assert self._taskmanager is not None, "no TaskManager runs"
        return [
            pid
            for pid in _group_members(self._taskmanager.pid)
            if b"tests.components.flink_worker" in _command_line(pid)
        ]

    # Jobs

    def jobs(self) -> dict[str, str]:
        """Job id → state (RUNNING, FINISHED, …), newest first."""
        found = sorted(self.rest("/jobs/overview")["jobs"], key=lambda job: -int(job["start-time"]))
        return {job["jid"]: job["state"] for job in found}

    def cancel_jobs(self, seconds: float = 60) -> None:
        """Cancels whatever runs and waits until nothing does."""
        self._settle(cancel=True, seconds=seconds)

    def rest(self, path: str, method: str = "GET") -> Any:
        """The JSON that Flink's REST interface answers."""
        with urllib.request.urlopen(
            urllib.request.Request(self.rest_url + path, method=method), timeout=10
        ) as reply:
            return json.loads(reply.read() or b"null")

    def logs(self) -> str:
        """What is worth reading in the logs, for a failed test: the last lines that are no routine
        messages.
        """
        return "\n".join(
            tail(log, 40, without=" INFO ") for log in sorted(self.folder.glob("*.log"))
        )

    def recover(self) -> None:
        """Makes the cluster fit for the next test: nothing runs, a TaskManager with all its slots
        does.
        """
        with contextlib.suppress(RuntimeError):
            self._settle(cancel=True, seconds=20)
        running = any(state not in _ENDED for state in self.jobs().values())
        if self._taskmanager is not None and (running or not self._taskmanager.alive()):
            self.kill_taskmanager()  # a task that can't be cancelled takes its TaskManager along sooner or later
        if self._taskmanager is None:
            self.start_taskmanager()
        self._settle(cancel=True, seconds=60)
        self._wait_for("freeSlots")

    # Parts

    def _settle(self, *, cancel: bool, seconds: float) -> None:
        until = time.monotonic() + seconds
        while running := [job for job, state in self.jobs().items() if state not in _ENDED]:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"jobs still run after {seconds:.0f} s: {running}\n{self.logs()}"
                )
            for job in running if cancel else ():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    self.rest(f"/jobs/{job}?mode=cancel", "PATCH")
            time.sleep(0.2)

    def _wait_for(self, count: Literal["slotsNumber", "freeSlots"]) -> None:
        assert self._taskmanager is not None
        self._taskmanager.wait_until(lambda: self._reported(count) >= self._slots, seconds=120)

    def _reported(self, count: str) -> int:
        """What Flink says of the TaskManager that runs now: for some seconds a killed one is still
        listed.
        """
        try:
            managers = self.rest("/taskmanagers")["taskmanagers"]
        except OSError:
            return 0
        return sum(manager[count] for manager in managers if manager["id"] == self._taskmanager_id)

    def _launch_taskmanager(self) -> None:
        self._taskmanager_id = f"taskmanager-{len(self._programs)}"
        arguments = [f"-Dtaskmanager.resource-id={self._taskmanager_id}"]
        self._taskmanager = self._java(
            "taskmanager", "runtime.taskexecutor.TaskManagerRunner", "-Xmx640m", *arguments
        )

    def _java(self, name: str, main_class: str, memory: str, *arguments: str) -> Program:
        log4j = f"-Dlog4j.configurationFile=file:{self.folder}/conf/log4j.properties"
        command = [
            *_JAVA,
            memory,
            log4j,
            "-cp",
            f"{self._lib}/*",
            f"org.apache.flink.{main_class}",
            "--configDir",
            f"{self.folder}/conf",
            *arguments,
        ]
        return self._start(name, command)

    def _start_job_server(self) -> Program:
        ports = ["--job-port", str(self._job_port), "--artifact-port", "0", "--expansion-port", "0"]
        where = [
            "--job-host",
            "localhost",
            "--flink-master",
            f"127.0.0.1:{self._rest_port}",
            "--artifacts-dir",
            f"{self.folder}/artifacts",
        ]
        return self._start(
            "job-server", [*_JAVA, "-Xmx512m", _ONE_LINE, "-jar", str(self._jar), *where, *ports]
        )

    def _start(self, name: str, command: list[str]) -> Program:
        program = Program(
            name,
            command,
            self.folder / f"{name}.log",
            env={"PYTHONPATH": python_path()},
            cwd=self.folder,
        )
        self._programs.append(program)
        return program

    def write_configuration(self) -> None:
        (self.folder / "conf").mkdir()
        (self.folder / "tmp").mkdir()
        values = {
            "rpc_port": free_port(),
            "rest_port": self._rest_port,
            "slots": self._slots,
            "folder": self.folder,
        }
        (self.folder / "conf" / "flink-conf.yaml").write_text(
            (_HERE / "flink_conf.yaml").read_text().format(**values)
        )
        (self.folder / "conf" / "log4j.properties").write_text(_LOG4J)
        worker = self.folder / "worker"
        start = f'TMPDIR="{self.folder}/tmp" exec "{sys.executable}" -m tests.components.flink_worker "$@"'
        worker.write_text(f'#!/bin/sh\n{start} >>"{self.folder}/python-workers.log" 2>&1\n')
        worker.chmod(0o755)


_ENDED = {"FINISHED", "CANCELED", "FAILED"}


def _group_members(group: int) -> list[int]:
    """Living processes of a process group (from /proc; empty where there is none)."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(entry.name)) == group:
                members.append(int(entry.name))
    return members


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
