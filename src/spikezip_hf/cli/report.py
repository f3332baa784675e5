"""How every command speaks: text for people, or JSON for machines; errors in one line."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any

import typer
from huggingface_hub.errors import StrictDataclassError

from spikezip_hf.errors import is_out_of_memory, one_line

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, and everything else to stderr.")]


def say(answer: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the answer of a command."""
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False) if as_json else text)


@contextlib.contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """In JSON mode, send what the work prints to stderr, so that stdout holds the answer alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def is_expected(error: Exception) -> bool:
    """Whether an error says what is wrong with the input or the world, and is no mistake of this library.

    Memory used up is the world's. Network errors of huggingface_hub are OSErrors; it and datasets have classes of
    their own for bad files.
    """
    kinds = (ValueError, TypeError, OSError, ImportError, FloatingPointError, StrictDataclassError)
    return isinstance(error, kinds) or is_out_of_memory(error) or type(error).__module__.startswith("datasets.")


def guarded(command: Callable) -> Callable:
    """A command whose errors are one line on stderr (and JSON on stdout if asked for), with an exit status."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Exception as error:
            if not is_expected(error):
                raise
            if kwargs.get("as_json"):
                say({"error": one_line(error)}, True, "")
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            typer.echo(
                "\nInterrupted; nothing is left half-written. The same command again goes on where it can.", err=True
            )
            raise typer.Exit(130) from interruption

    return run
