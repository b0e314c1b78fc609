"""Which layer wins, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kwdb_build import config
from kwdb_build.errors import UsageError


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KWDB_BUILD_HOME", str(tmp_path / "home"))


def test_each_layer_beats_the_one_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config.load({}).jobs == 0
    (tmp_path / "kwdb-build.toml").write_text("jobs = 2\nmemory = '8g'\n", encoding="utf-8")
    assert config.load({}).jobs == 2
    monkeypatch.setenv("KWDB_BUILD_JOBS", "3")
    assert config.load({}).jobs == 3
    assert config.load({"jobs": 4}).jobs == 4
    assert config.load({"jobs": None}).memory == "8g"


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "kwdb-build.toml").write_text("toolchian = 'x'\n", encoding="utf-8")
    with pytest.raises(UsageError, match="toolchian") as caught:
        config.load({})
    assert "did you mean toolchain" in caught.value.hint


def test_bad_value_and_bad_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jobs"):
        config.load({"jobs": -1})
    with pytest.raises(UsageError, match="no settings file"):
        config.load({}, config=tmp_path / "absent.toml")
    (tmp_path / "kwdb-build.toml").write_text("jobs = = 2", encoding="utf-8")
    with pytest.raises(UsageError, match="not valid TOML"):
        config.load({})


def test_redirects_of_the_environment_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWDB_BUILD_REDIRECT", "https://a/=https://b/ https://c/=https://d/")
    assert config.load({}).redirect == ("https://a/=https://b/", "https://c/=https://d/")


def test_the_fail_point_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWDB_BUILD_FAILPOINT", "stop:before")
    assert config.load({}).home.name == "home"
