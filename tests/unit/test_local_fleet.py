"""How commands find what `chatfleet serve` runs."""

import os
import stat
from pathlib import Path

import pytest

from chatfleet.cli.local_fleet import (
    DEFAULT_CONTROLLER,
    DEFAULT_ENDPOINT,
    LocalFleet,
    find_controllers,
    find_endpoint,
    known_certificate,
    published,
    run_folder,
    running_fleets,
    runs_folder,
)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def fleet(name: str, started_at: float = 0.0) -> LocalFleet:
    return LocalFleet(f"http://{name}", f"http://{name}-controller", f"token-of-{name}", os.getpid(), started_at)


def test_without_a_fleet_the_usual_places_are_tried() -> None:
    assert find_endpoint() == DEFAULT_ENDPOINT
    assert find_controllers([], "given") == ([DEFAULT_CONTROLLER], "given")


def test_a_fleet_is_found_for_as_long_as_it_runs(runtime: Path) -> None:
    with run_folder() as folder:
        assert folder is not None
        with published(folder, fleet("a")):
            assert find_endpoint() == "http://a"
            assert find_controllers([], None) == (["http://a-controller"], "token-of-a")
            assert running_fleets() == [fleet("a")]
        assert running_fleets() == []
    assert list(runs_folder().iterdir()) == []


def test_what_is_given_wins() -> None:
    with run_folder() as folder:
        assert folder is not None
        with published(folder, fleet("a")):
            assert find_controllers(["http://mine"], None) == (["http://mine"], None)


def test_the_newest_of_several_is_taken() -> None:
    with run_folder() as one, run_folder() as two:
        assert one is not None and two is not None
        with published(one, fleet("new", 2.0)), published(two, fleet("old", 1.0)):
            assert find_endpoint() == "http://new"


def test_a_certificate_is_known_at_its_own_address_only() -> None:
    local = LocalFleet("https://127.0.0.1:8443", "http://127.0.0.1:1", "token", os.getpid(), 0.0, "PEM")
    with run_folder() as one, run_folder() as two:
        assert one is not None and two is not None
        with published(one, local), published(two, fleet("plain")):
            assert known_certificate("https://127.0.0.1:8443/v1") == "PEM"
            others = (
                "https://127.0.0.1:8444/v1",
                "https://localhost:8443/v1",
                "http://127.0.0.1:8443/v1",
                "http://plain/v1",
            )
            assert [known_certificate(url) for url in others] == [None] * 4


def test_nobody_else_may_read_it() -> None:
    before = os.umask(0)
    try:
        with run_folder() as folder:
            assert folder is not None
            with published(folder, fleet("a")):
                modes = [stat.S_IMODE(path.stat().st_mode) for path in (runs_folder(), folder, folder / "record.json")]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700, 0o600]


def test_the_record_of_a_killed_run_is_removed() -> None:
    folder = runs_folder() / "serve-x"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"url": "http://gone"}')
    assert running_fleets() == []
    assert not folder.exists()


def test_what_cannot_be_read_is_passed_over(runtime: Path) -> None:
    with run_folder() as folder:
        assert folder is not None
        with published(folder, fleet("a")):
            (folder / "record.json").write_bytes(b"{")
            assert find_endpoint() == DEFAULT_ENDPOINT


def test_without_a_place_for_it_there_is_no_folder(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runtime / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "file"))
    with run_folder() as folder:
        assert folder is None
    assert running_fleets() == []


def test_no_token_is_shown_by_accident() -> None:
    assert "token-of" not in repr(fleet("a"))
