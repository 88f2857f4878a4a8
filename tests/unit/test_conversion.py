"""What a conversion leaves behind: all of it or nothing, once. The converter is a script that stands in for it."""

import signal
from pathlib import Path

import psutil
import pytest

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.cache import cache_folder, entry_name, make_once
from chatfleet.worker.conversion import Original
from chatfleet.worker.steps import StepFailed
from support.converter import ORIGINAL, WRITE, calls, conversions, converting_process
from support.fleet import until
from support.serve import running
from support.wire import PATIENCE_S


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_it_is_made_once_and_found_again(source: Path, tmp_path: Path) -> None:
    ours = conversions(tmp_path)
    assert ours.find(ORIGINAL) is None
    made = ours.convert(ORIGINAL, source, "Qwen2ForCausalLM")
    assert sorted(path.name for path in made.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]
    assert ours.find(ORIGINAL) == made == ours.convert(ORIGINAL, source, "Qwen2ForCausalLM")
    (call,) = calls(tmp_path)
    assert call[:5] == ["-I", "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    options = dict(zip(call[5::2], call[6::2], strict=False))
    assert options["--model"] == str(source)
    assert (options["--task"], options["--weight-format"]) == ("text-generation-with-past", "int8")


def test_another_commit_format_or_content_is_another_conversion(source: Path, tmp_path: Path) -> None:
    ours = conversions(tmp_path)
    ours.convert(ORIGINAL, source, "")
    assert ours.find(Original("org/m", "other")) is None
    assert conversions(tmp_path, weight_format="int4").find(ORIGINAL) is None
    before = Original.of_folder(source)
    assert before == Original.of_folder(source)
    (source / "model.safetensors").write_bytes(b"other weights")
    assert before != Original.of_folder(source)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('ValueError: the disk is on fire')", r"the disk is on fire\. The whole output is in .*\.log"),
        (f"{WRITE}; sys.exit(1)", "exit status 1"),
        ("pass", "made no openvino_model.xml"),
        ("sys.exit('Trying to export a foo model, that is a custom or unsupported architecture')", "FooForCausalLM"),
        ("sys.exit('model type `foo` but Transformers does not recognize this architecture.')", "FooForCausalLM"),
    ],
)
def test_one_that_fails_says_why_names_the_other_engine_and_leaves_nothing(
    source: Path, tmp_path: Path, body: str, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words) as failed:
        conversions(tmp_path, body).convert(ORIGINAL, source, "FooForCausalLM")
    assert "--engine transformers" in str(failed.value)
    assert conversions(tmp_path).find(ORIGINAL) is None
    assert not [path for path in (tmp_path / "cache" / "converted").iterdir() if path.is_dir()]
    conversions(tmp_path).convert(ORIGINAL, source, "FooForCausalLM")


def test_a_full_disk_is_said_before_anything_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatfleet.worker.conversion.shutil.disk_usage", lambda _: shutil_usage(free=3))
    with pytest.raises(ConfigurationError, match=r"--cache.*--engine transformers"):
        conversions(tmp_path).convert(ORIGINAL, source, "")
    assert not calls(tmp_path)


def shutil_usage(free: int) -> object:
    return type("Usage", (), {"free": free})()


def test_two_workers_that_want_the_same_make_it_once(source: Path, tmp_path: Path) -> None:
    workers = [converting_process(tmp_path, source, f"time.sleep(0.5); {WRITE}") for _ in range(2)]
    assert [worker.wait(PATIENCE_S) for worker in workers] == [0, 0]
    assert len(calls(tmp_path)) == 1


def pid_in(path: Path) -> int:
    """What a command has written there as its first act."""
    until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path}")
    return int(path.read_text())


def until_dead(pid: int) -> None:
    until(lambda: not psutil.pid_exists(pid) or not running(psutil.Process(pid)), f"the end of {pid}")


def test_a_worker_that_is_killed_takes_its_converter_along_and_the_next_begins_anew(
    source: Path, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    body = (
        f'import os; (out / "openvino_model.xml").write_text("half"); print(os.getpid(), file=open({str(told)!r}, "w"))'
        "\ntime.sleep(600)"
    )
    worker = converting_process(tmp_path, source, body)
    converter = pid_in(told)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    until_dead(converter)
    ours = conversions(tmp_path)
    assert ours.find(ORIGINAL) is None, "half a conversion was taken for a whole one"
    made = ours.convert(ORIGINAL, source, "")
    assert (made / "openvino_model.xml").read_text() == "x"


def test_one_that_is_interrupted_ends_its_converter(source: Path, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    worker = converting_process(
        tmp_path, source, f'import os; print(os.getpid(), file=open({str(told)!r}, "w")); time.sleep(600)'
    )
    converter = pid_in(told)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(PATIENCE_S) != 0
    until_dead(converter)


def test_of_a_failure_the_telling_line_is_shown() -> None:
    traceback = "Traceback (most recent call last):\n  raise\nValueError: a bad value\nSome advice behind it."
    assert StepFailed(1, traceback).reason == "ValueError: a bad value."
    assert (
        StepFailed(1, "ERROR: No matching distribution\nWARNING: old pip").reason == "ERROR: No matching distribution."
    )
    assert StepFailed(1, "one\ntwo\n").reason == "two."
    assert StepFailed(2, "").reason == "exit status 2."


def test_names_in_the_cache_are_readable_and_never_the_same() -> None:
    name = entry_name("org/Qwen2.5 0.5B", "commit")
    assert name.startswith("org-Qwen2.5-0.5B-")
    assert len({name, entry_name("org/Qwen2.5 0.5B", "other"), entry_name("org-Qwen2.5-0.5B", "commit")}) == 3
    assert "/" not in entry_name("../../etc/passwd") and not entry_name("../x").startswith(".")


def test_the_cache_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "chatfleet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "chatfleet"


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--cache"):
        make_once(tmp_path / "file" / "entry", lambda folder: None)
