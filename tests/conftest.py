"""Fixtures for the real parts of tests/components; a part that can't be had skips its tests with
the reason.

Nothing is imported, fetched or started before a test asks for it.
"""

from __future__ import annotations

import functools
import gc
import gettext
import logging
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import pytest

from beam_llm import redaction
from tests.components import Unavailable, required

if TYPE_CHECKING:
    from pathlib import Path

    from beam_llm.testing import Emulator, EmulatorProcess
    from tests.batch_world import World
    from tests.components.azure import AzureServer
    from tests.components.flink import FlinkCluster
    from tests.components.gcs import GcsServer
    from tests.components.s3 import S3Server

T = TypeVar("T")

# By default hypothesis fails an example that takes 200 ms once, which a busy machine does to any.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Ten thousand tests are a million objects, which the garbage collector would go through again
    and again: a third of the time of collecting them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        if "botocore.session" in sys.modules:
            _have_aws_described_once()
        if "apache_beam" in sys.modules:
            _have_dofns_looked_at_once()
            # For each option of each parser, of which a pipeline makes a dozen, Python looks for
            # translated words on the disk: two thirds of the time that Beam's options take.
            gettext.dgettext = functools.cache(gettext.dgettext)


def _have_aws_described_once() -> None:
    """Each session of AWS's clients reads megabytes of JSON about its services, which is more work
    than most tests of Bedrock have: one loader, which keeps what it has read, serves all.
    """
    import botocore.session

    shared = functools.cache(botocore.session.create_loader)
    botocore.session.create_loader = shared


def _have_dofns_looked_at_once() -> None:
    """Beam looks through all methods of a DoFn for state and timers, a dozen times for each in a
    pipeline; the answer is its class's.
    """
    from apache_beam.transforms import userstate

    look, known = userstate.get_dofn_specs, weakref.WeakKeyDictionary[type, Any]()

    def get_dofn_specs(dofn: Any) -> Any:
        if any(isinstance(value, types.MethodType) for value in vars(dofn).values()):
            return look(dofn)
        if type(dofn) not in known:
            known[type(dofn)] = look(dofn)
        return known[type(dofn)]

    userstate.get_dofn_specs = get_dofn_specs


MADE_ONCE = {
    "_gcs_session": "gcs",
    "_s3_session": "s3",
    "_azure_session": "azure",
    "built": "packaging",
    "ran": "sql forms",
}
"""Fixtures that take seconds to make, and the group of the tests that have them: one process runs a
group."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One process has the Flink cluster, and starts with it: its tests take longest, the others do
    the rest meanwhile.
    """
    for item in items:
        has_flink, names = item.get_closest_marker("flink"), getattr(item, "fixturenames", ())
        groups = [group for fixture, group in MADE_ONCE.items() if fixture in names]
        if has_flink or groups:
            item.add_marker(pytest.mark.xdist_group("flink" if has_flink else groups[0]))
        if getattr(config.option, "loadgroup", False):
            _name_group(item)
    items.sort(key=lambda item: item.get_closest_marker("flink") is None)


def _name_group(item: pytest.Item) -> None:
    """`--dist loadgroup` goes by the end of an id, which pytest-xdist 3.8 writes where pytest 9.2
    no longer reads it: there, each process had a Flink cluster.
    """
    group = item.get_closest_marker("xdist_group")
    if group is not None and hasattr(item, "_id"):  # pytest's, from 9.2 on
        kind = type(item._id)  # pytest's
        item._id = kind.parse(f"{item.nodeid}@{group.args[0]}")  # pytest's


@pytest.fixture(autouse=True)
def _keys_and_failpoints_of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of another test may be made of words that this one reads in messages; and nobody is
    killed at a point that another has watched.
    """
    from beam_llm.ledger import failpoints

    monkeypatch.setattr(redaction, "known_secrets", [None])
    monkeypatch.setattr(failpoints, "watch", None)


@pytest.fixture(autouse=True)
def _logs_of_this_test_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A server of another test that was closed in the middle of a request is collected at any
    time, and asyncio logs that then.
    """
    # pytest has one handler for all tests, to which the same filter is added once.
    caplog.handler.addFilter(_is_of_no_closed_server)


def _is_of_no_closed_server(record: logging.LogRecord) -> bool:
    return record.name != "asyncio" or "aiohttp/web_protocol" not in record.getMessage()


def component(part: str, make: Callable[[], T]) -> T:
    """A part that a test needs; the test is skipped where it can't be had."""
    try:
        return make()
    except Unavailable as reason:
        if required(part):
            raise
        pytest.skip(f"{part} is not to be had: {reason}")


@pytest.fixture
def emulator(llm_emulator: Emulator) -> Emulator:
    """The one that the environment leads to."""
    return llm_emulator


@pytest.fixture
def emulator_with(
    start_emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Emulator]:
    """Starts one with options of the test's, and has the environment lead to it."""

    def start(**options: Any) -> Emulator:
        emulator = start_emulator(**options)
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        return emulator

    return start


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A staging folder, a fake provider and clock, and the whole way through them."""
    from tests.batch_world import World

    return World(str(tmp_path / "staging"))


@pytest.fixture(scope="session")
def _emulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    from beam_llm.testing import EmulatorProcess

    folder = tmp_path_factory.mktemp("provider")
    with EmulatorProcess(state_dir=folder, batch_seconds=0.15) as emulator:
        yield emulator


@pytest.fixture
def running(_emulator_process: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """An emulator of all providers in a process of its own, which a test may kill; one for all
    tests, so that each has texts that are its own and counts what it adds. Without faults at first.
    """
    yield _emulator_process
    if _emulator_process.pid is None:
        _emulator_process.start()
    _emulator_process.set_faults()


@pytest.fixture
def prism_options(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pipeline flags that run a pipeline on Prism: one server for all tests, its workers threads of
    this process.
    """
    from apache_beam.runners.portability.prism_runner import PrismRunner

    from tests.components import prism

    options = component("prism", prism.prism_options)
    monkeypatch.setattr(PrismRunner, "shared_handle", prism.own_handle())
    return options


@pytest.fixture(scope="session")
def _flink_session() -> Iterator[FlinkCluster]:
    from tests.components.flink import FlinkCluster

    with component("flink", FlinkCluster) as cluster:
        yield cluster


@pytest.fixture
def flink_cluster(
    _flink_session: FlinkCluster, request: pytest.FixtureRequest
) -> Iterator[FlinkCluster]:
    """A Flink cluster of separate processes, with no job and all slots free; started once per
    session.
    """
    _flink_session.recover()
    failed_before = request.session.testsfailed
    yield _flink_session
    if request.session.testsfailed > failed_before:
        print(_flink_session.logs())
    _flink_session.recover()


@pytest.fixture(scope="session")
def _gcs_session() -> Iterator[GcsServer]:
    from tests.components.gcs import GcsServer

    with component("gcs", GcsServer) as server:
        yield server


@pytest.fixture
def gcs_emulator(_gcs_session: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsServer:
    """A GCS server with real write preconditions; STORAGE_EMULATOR_HOST names it, for child
    processes too.
    """
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _gcs_session.url)
    return _gcs_session


@pytest.fixture(scope="session")
def _s3_session() -> Iterator[S3Server]:
    from tests.components.s3 import S3Server

    with component("s3", S3Server) as server:
        yield server


@pytest.fixture
def s3_location(_s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix` in a bucket of this test's own; the environment leads to its server."""
    for name, value in _s3_session.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:16]}"
    _s3_session.make_bucket(bucket)
    return f"s3://{bucket}/staging"


@pytest.fixture(scope="session")
def _azure_session() -> Iterator[AzureServer]:
    from tests.components.azure import AzureServer

    with component("azure", AzureServer) as server:
        yield server


@pytest.fixture
def azure_location(_azure_session: AzureServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """`az://container/prefix`, likewise."""
    for name, value in _azure_session.environment.items():
        monkeypatch.setenv(name, value)
    container = f"test-{uuid.uuid4().hex[:16]}"
    _azure_session.make_container(container)
    return f"az://{container}/staging"


@pytest.fixture
def gcs_location(gcs_emulator: GcsServer) -> str:
    """`gs://bucket/prefix` in a bucket of this test's own."""
    bucket = f"test-{uuid.uuid4().hex[:16]}"
    gcs_emulator.make_bucket(bucket)
    return f"gs://{bucket}/staging"
