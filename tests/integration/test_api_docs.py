"""What docs/api/*.md tells a reader to run is run, and prints what is shown there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.documents import Example, examples, misfit
from support.processes import CommandProcess

DOCUMENTS = sorted((Path(__file__).parents[2] / "docs" / "api").glob("*.md"))
EXAMPLES = [example for path in DOCUMENTS for example in examples(path)]


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[[tuple[str, ...]], CommandProcess]]:
    """`chatfleet serve` with these arguments on a free port, once for all examples that want it."""
    running: dict[tuple[str, ...], CommandProcess] = {}
    with ExitStack() as stack:

        def serve(arguments: tuple[str, ...]) -> CommandProcess:
            if arguments not in running:
                running[arguments] = stack.enter_context(CommandProcess("serve", "--port", "0", *arguments))
            return running[arguments]

        yield serve


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_example_runs(example: Example, served: Callable[[tuple[str, ...]], CommandProcess]) -> None:
    example.run(served(example.arguments).url)


def test_every_document_has_an_example() -> None:
    assert {path.name for path in DOCUMENTS} == {example.document for example in EXAMPLES}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": "x"}, {"a": 1}),
        ({"a": None}, {"a": "x"}),
        ({"role": "user"}, {"role": "assistant"}),
        ({"id": "cmpl-1"}, {"id": "chatcmpl-..."}),
        ({"a": [{"b": 1}, {"c": 1}]}, {"a": [{"b": 1}]}),
        ({"a": True}, {"a": 1}),
        ({"a": []}, {"a": [1]}),
    ],
)
def test_what_is_not_as_shown_is_noticed(value: object, shown: object) -> None:
    assert misfit(value, shown, "$") is not None
    assert misfit(value, value, "$") is None


def test_an_example_that_prints_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\necho one two\n```\n\nwhich prints:\n\n```text\none ... three\n```\n")
    (example,) = examples(page)
    with pytest.raises(AssertionError, match="prints"):
        example.run("http://127.0.0.1:1")
