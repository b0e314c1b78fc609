"""The few instructions of an image recipe that are understood without a builder."""

from __future__ import annotations

import pytest

from kwdb_build.engine import dockerfile
from kwdb_build.errors import EngineError
from kwdb_build.toolchain.load import image_recipe


def test_the_real_recipe_is_understood() -> None:
    steps = dockerfile.parse(image_recipe().read_text(encoding="utf-8"))
    assert [step.keyword for step in steps][:3] == ["ARG", "FROM", "COPY"]
    assert {step.keyword for step in steps} <= {"ARG", "FROM", "ENV", "COPY", "RUN"}
    run = next(step for step in steps if step.keyword == "RUN")
    assert "\\" not in run.rest.replace("\\n", "").replace("\\|", ""), "lines are joined"
    assert dockerfile.copied(next(step.rest for step in steps if step.keyword == "COPY")) == ("root", "/")


def test_lines_comments_and_joins() -> None:
    steps = dockerfile.parse("# one\n\nfrom base\nRUN a; \\\n  # inside\n  b; \\\n  c\n")
    assert [str(step) for step in steps] == ["FROM base", "RUN a;   b;   c"]


@pytest.mark.parametrize(
    "text",
    [
        "RUN true\n", "", "FROM x\nUSER me\n", "FROM x\nRUN --mount=type=cache true\n", 'FROM x\nRUN ["a", "b"]\n',
        "FROM x\nRUN <<EOF\ntrue\nEOF\n", "FROM x\nCOPY\n", "NONSENSE here\n",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="cannot carry out this image recipe") as caught:
        dockerfile.parse(text)
    assert "--engine docker" in caught.value.hint


def test_words() -> None:
    assert dockerfile.argument("BASE_IMAGE") == ("BASE_IMAGE", None)
    assert dockerfile.argument('A="b c"') == ("A", "b c")
    assert dockerfile.argument("A=") == ("A", "")
    assert dockerfile.expand("${A}/$B/$C", {"A": "1", "B": "2"}) == "1/2/"
    assert dockerfile.assignments('A=1 B="two words"') == {"A": "1", "B": "two words"}
    for refused in ("A", "A 1", '"A=1'):
        with pytest.raises(EngineError):
            dockerfile.assignments(refused)


@pytest.mark.parametrize("rest", ["file /x", "../ /x", "a/../../ /x", "a/ relative", "a/ b/ /c"])
def test_copies_of_one_directory_only(rest: str) -> None:
    with pytest.raises(EngineError, match="cannot carry out"):
        dockerfile.copied(rest)
