"""The file that remembers registered servers."""

import stat
from pathlib import Path

import pytest

from chatfleet.controller.state_file import StateFile, default_state_file
from chatfleet.core.fleet import ServerRegistration

SERVERS = (
    ServerRegistration(url="http://a:1", model_names=("m",), api_key="secret-key", allowed_fields=("top_a",)),
    ServerRegistration(url="http://b:2"),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "new" / "folder" / "state.json")
    assert file.load() == ()
    file.save(SERVERS)
    assert file.load() == SERVERS
    file.save(SERVERS[1:])
    assert file.load() == SERVERS[1:]


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{}")
    path.chmod(0o644)
    StateFile(path).save(SERVERS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"servers": [{"url": "nonsense"}]}', b"\xff" * 10])
def test_a_broken_file_is_kept_aside_and_said(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    file = StateFile(path)
    assert file.load() == ()
    assert (tmp_path / "state.json.broken").read_bytes() == content
    assert str(path) in caplog.text and "state.json.broken" in caplog.text
    file.save(SERVERS)
    assert file.load() == SERVERS


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    StateFile(tmp_path / "file" / "state.json").save(SERVERS)
    assert "cannot be written" in caplog.text and "secret-key" not in caplog.text
    (tmp_path / "folder").mkdir()
    assert StateFile(tmp_path / "folder").load() == ()
    assert "cannot be read" in caplog.text


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(tmp_path / "state.json")
    file.save(SERVERS)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    file.save(SERVERS[1:])
    assert file.load() == SERVERS
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_the_default_place_is_by_port_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_file(21001) == tmp_path / "chatfleet" / "controller-21001.json"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_state_file(5) == tmp_path / ".local" / "state" / "chatfleet" / "controller-5.json"
