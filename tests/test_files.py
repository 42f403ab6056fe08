import errno
import os
import shlex
import stat
import sys
import warnings
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentrobust.errors import InputError, in_short, one_line, warn
from latentrobust.files import disk_of, quoted, read_json, read_text, remove_partial, replacing
from latentrobust.lock import holder_of
from latentrobust.measure import warning_lines
from latentrobust.refusals import describe_error
from latentrobust.run_folder import run_folder
from latentrobust.streams import prepare_streams


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(bytes([104, 97][: 1 // 0]))
    assert path.read_text() == "before"
    with replacing(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_full_disk_names_file_and_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as error, replacing(tmp_path / "file") as file:
        file.write(b"x")
    assert error.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())
    assert str(tmp_path / "file") in describe_error(error.value)
    assert "the disk at /" in describe_error(error.value)
    assert "MiB free" in disk_of(tmp_path / "not" / "there")


def test_what_a_killed_process_was_writing_goes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".x-123.partial").write_text("half")
    (tmp_path / ".y-1.partial").mkdir()
    (tmp_path / ".y-1.partial" / "z").write_text("half")
    (tmp_path / "kept.partial").write_text("somebody's")
    remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept.partial"]


def test_small_files_are_small_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_text(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
        read_json(tmp_path / "deep")
    (tmp_path / "large").write_text(" " * 2000)
    with pytest.raises(ValueError, match="2,000 bytes"):
        read_text(tmp_path / "large", most=1000)


def test_messages_keep_passwords_and_bad_advice_to_themselves():
    assert one_line("no answer from https://me:secret@host/x\n  at all") == "no answer from https://…@host/x at all"
    assert "weights_only" not in one_line("Weights only load failed: set `weights_only=False`")
    assert describe_error(InputError("http://a:b@c")) == "http://…@c"


def test_what_other_programs_say_is_cut_between_words():
    assert in_short("a high likelihood\n of damage", 17) == "a high …"
    assert in_short("a high likelihood\n of damage") == "a high likelihood of damage"


def test_warnings_that_were_seen_are_counted(monkeypatch):
    assert warning_lines(["one", "two"]) == ["warning: one", "warning: two"]
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    assert warning_lines(["one"]) == ["warning: one"]  # errors go elsewhere
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    assert warning_lines(["one", "two"]) == ["2 warnings about these results: above, and in metrics.json"]
    assert warning_lines([]) == []


def test_a_value_taken_from_a_part_that_is_left_out_names_the_value():
    config = OmegaConf.create({"model": None, "task": {"width": "${model.width}"}})
    with pytest.raises(OmegaConfBaseException) as error:
        OmegaConf.to_container(config, resolve=True)
    assert describe_error(error.value).startswith("task.width is taken from model.width, which is left out here: give")
    config = OmegaConf.create({"model": {}, "task": {"width": [3, "${model.width}"]}})
    with pytest.raises(OmegaConfBaseException) as error:
        OmegaConf.to_container(config, resolve=True)
    assert (
        describe_error(error.value)
        == "task.width is taken from model.width, which these choices do not have: choose others, or give task.width=…"
    )


def test_a_run_that_cannot_say_it_is_done_has_failed(tmp_path, monkeypatch):
    """A full disk at the last moment is told, and the folder is free again."""

    def sync(handle):
        if "DONE" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="No space left"), run_folder(tmp_path / "run", {}) as claimed:
        claimed.begin()
    assert not (tmp_path / "run" / "DONE").exists()
    assert holder_of(tmp_path / "run") is None


@pytest.mark.parametrize("value", ["mein_ö", "a#b", "a (1)", "a=b", "it's", r"C:\data\a#b", "$x`y`ö", "ö\\"])
def test_a_value_that_hydra_cannot_read_is_answered_with_quotes(value):
    with pytest.raises(HydraException) as error:
        OverridesParser.create().parse_overrides([f"data.root={value}"])
    said = describe_error(error.value)
    assert said.startswith(f"cannot read data.root={value}: quote the value, data.root='")
    able = said.partition("quote the value, ")[2].partition(" (in a shell")[0]
    assert OverridesParser.create().parse_overrides([able])[0].value() == value
    assert shlex.split(said.partition("(in a shell ")[2].removesuffix(")")) == [able]


@pytest.mark.parametrize("override", ["a.ö=1", "data.size=[1,ö"])
def test_what_quotes_cannot_mend_is_not_answered_with_them(override):
    with pytest.raises(HydraException) as error:
        OverridesParser.create().parse_overrides([override])
    said = describe_error(error.value)
    assert said.startswith(f"cannot read {override} (")
    assert "quote the value" not in said


@pytest.mark.parametrize("text", ["/plain/path", r"/tmp/a\b", "a\\", "it's", r"a\'b", "a, b", "[x]", "ü {y}", "mein_ö"])
def test_quoted_values_are_read_as_they_were(text):
    assert OverridesParser.create().parse_overrides([f"key={quoted(text)}"])[0].value() == text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_output_to_a_full_disk_ends_nothing_and_is_said(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        prepare_streams()
        for _ in range(3):
            print("a line " * 10_000, flush=True)
        monkeypatch.undo()
    assert capsys.readouterr().err == "latentrobust: what follows on stdout is lost: No space left on device\n"


def test_a_warning_about_a_result_is_a_line_without_code(capsys):
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        prepare_streams()
        prepare_streams()  # by a command that another one calls
        warn("the attack is weak")
        warnings.warn("somebody else's", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the attack is weak\n"
    assert [str(other.message) for other in others] == ["somebody else's"]
