"""What is said of errors: in one line, and of memory that is used up, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

NOTE = "Out of memory: "


def one_line(error: BaseException) -> str:
    """An error's message and its notes in one line; the name of its class if it has none."""
    words = [str(error), *getattr(error, "__notes__", ())]
    return " ".join(" ".join(words).split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of memory used up: Python's, of an accelerator, or of torch's allocator on a CPU.

    That of a CPU, of Apple's chips and of CUDA outside torch's allocator have no class of their own.
    """
    if isinstance(error, MemoryError):
        return True
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in told)
    )


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """To an error of memory used up inside, add a note with this advice, unless something further in has. A decorator,
    too.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) and not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(NOTE + advice)
        raise
