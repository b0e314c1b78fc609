from __future__ import annotations

import os
import subprocess

from kwdb_build.source.environment import git_environment, origin_of
from kwdb_build.source.reference import Credentials, Redirect


def settings(environment: dict[str, str]) -> list[tuple[str, str]]:
    count = int(environment["GIT_CONFIG_COUNT"])
    return [(environment[f"GIT_CONFIG_KEY_{n}"], environment[f"GIT_CONFIG_VALUE_{n}"]) for n in range(count)]


def test_redirects_become_insteadof() -> None:
    redirect = Redirect(prefix="https://gitee.com/kwdb/", replacement="/mirror/")
    assert ("url./mirror/.insteadOf", "https://gitee.com/kwdb/") in settings(git_environment({}, redirects=(redirect,)))


def test_settings_already_in_the_environment_are_kept_and_come_first() -> None:
    base = {"GIT_CONFIG_COUNT": "2"}
    added = git_environment(base, stall_timeout_s=7)
    assert "GIT_CONFIG_KEY_0" not in added
    assert "GIT_CONFIG_KEY_2" in added
    last = int(added["GIT_CONFIG_COUNT"]) - 1
    assert f"GIT_CONFIG_KEY_{last}" in added
    assert "7" in added.values()


def test_a_password_of_a_redirect_is_no_part_of_any_setting() -> None:
    redirect = Redirect(prefix="https://gitee.com/", replacement="https://me:s3cret@mirror:8443/x/")
    environment = git_environment({}, redirects=(redirect,))
    assert not [pair for pair in settings(environment) if "s3cret" in "".join(pair)]
    assert ("url.https://mirror:8443/x/.insteadOf", "https://gitee.com/") in settings(environment)
    assert "s3cret" in environment.values()


def test_git_really_takes_the_password_from_there_and_for_that_host_only() -> None:
    secret = Credentials(user="me", password="it's \"$(odd)\" \\ `x`")
    environment = os.environ | git_environment({}, credentials={"https://host:8443": secret}) | {
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"
    }

    def fill(host: str) -> str:
        return subprocess.run(
            ["git", "credential", "fill"], input=f"protocol=https\nhost={host}\n\n", env=environment, text=True,
            capture_output=True, check=False,
        ).stdout

    assert f"username=me\npassword={secret.password}\n" in fill("host:8443")
    assert "password=" not in fill("other:8443")
    assert "password=" not in fill("host")


def test_origin() -> None:
    assert origin_of("https://host:8443/a/b") == "https://host:8443"
    assert origin_of("https://host") == "https://host"
