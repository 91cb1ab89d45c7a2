"""What the commands show people: on stderr, so that stdout is for programs."""

from __future__ import annotations

from rich.console import Console

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line of progress."""
    console.print(text, markup=False, soft_wrap=True)
