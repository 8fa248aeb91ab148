"""Completion in bash of words with `:` and `=`, which bash splits."""

import os

from typer._click.shell_completion import add_completion_class, split_arg_string
from typer._completion_classes import BashComplete


class WholeWords(BashComplete):
    """Completion in bash, which splits words at `:` and `=` and replaces what follows the last of these."""

    def complete(self) -> str:
        """Return the completions, a line each, without what stays on the command line."""
        raw = split_arg_string(os.environ["COMP_WORDS"])
        at = int(os.environ["COMP_CWORD"])
        last = raw[at] if at < len(raw) else ""
        *args, incomplete = _joined(raw[1:at], last)
        typed = incomplete.partition("=")[2] if incomplete.startswith("-") else incomplete
        stays = len(typed) - len("" if _is_break(last) else last)
        return "\n".join(item.value[max(0, stays) :] for item in self.get_completions(args, incomplete))


def _is_break(word: str) -> bool:
    return bool(word) and not word.strip(":=")


def _joined(words: list[str], last: str) -> list[str]:
    """Join the words that bash split; an empty last word begins a new one."""
    out, glued = list[str](), False
    for word in words:
        out, glued = ([*out[:-1], out[-1] + word] if out and (glued or _is_break(word)) else [*out, word]), _is_break(word)
    return [*out[:-1], out[-1] + last] if out and (_is_break(last) or (glued and last)) else [*out, last]


def register() -> None:
    """Let typer complete for bash by `WholeWords`."""
    add_completion_class(WholeWords, "bash")
