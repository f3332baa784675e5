"""How every command speaks: text for people, or JSON for machines; errors in one line."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, and everything else to stderr.")]


def say(answer: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the answer of a command."""
    print(json.dumps(answer, indent=2, ensure_ascii=False) if as_json else text)  # noqa: T201


@contextlib.contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """In JSON mode, send what the work prints to stderr, so that stdout holds the answer alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def guarded(command: Callable) -> Callable:
    """A command whose errors are one line on stderr (and JSON on stdout if asked for), with an exit status."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        # Network errors of huggingface_hub are OSErrors; the rest is what this library raises on bad input.
        try:
            command(*args, **kwargs)
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            if kwargs.get("as_json"):
                say({"error": one_line(error)}, True, "")
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            typer.echo("\nInterrupted; nothing is left half-written.", err=True)
            raise typer.Exit(130) from interruption

    return run
