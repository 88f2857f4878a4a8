"""One engine at a time for a file's cases, and a record of how each case ended for each engine."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from chatfleet.engines.registry import install_command, is_installed
from conformance.subject import Subject, running
from conformance.targets import TARGETS, Loadable, Target
from support.conformance_table import RECORD


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each case its record for the report; tell which are long before those are left out."""
    for item in items:
        target = item.callspec.params.get("target") if hasattr(item, "callspec") else None
        if isinstance(item, pytest.Function) and isinstance(target, Target):
            case = item.originalname.removeprefix("test_").replace("_", " ")
            item.user_properties.append((RECORD, [target.name, item.path.name, case, []]))
            if target.core is not None and item.path.name not in target.core:
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


@pytest.fixture
def refused(request: pytest.FixtureRequest) -> list[str]:
    """What the engine refuses in this case, in its words: that goes to the report."""
    messages: list[str] = dict(request.node.user_properties)[RECORD][-1]
    return messages


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that threads would mostly wait for each other, for minutes on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Loadable]:
    """Makes each target's model once."""
    folder: Path = tmp_path_factory.mktemp("conformance")
    made: dict[str, Loadable] = {}

    def load(target: Target) -> Loadable:
        if target.name not in made:
            model = None if target.make_model is None else target.make_model(folder)
            made[target.name] = Loadable(target, model)
        return made[target.name]

    return load


@pytest.fixture(scope="module")
def loadable(target: Target, made_models: Callable[[Target], Loadable]) -> Loadable:
    if not is_installed(target.engine):
        pytest.skip(f"needs {install_command(target.engine)}")
    return made_models(target)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(loadable: Loadable) -> AsyncIterator[Subject]:
    """In deterministic mode, so that answers can be compared."""
    async with running(loadable) as subject:
        yield subject


@pytest.fixture
def subject(refused: list[str], engine: Subject) -> Subject:
    """The engine of this case."""
    engine.refused = refused
    return engine
