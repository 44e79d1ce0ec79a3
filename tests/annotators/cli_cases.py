"""What tests of the command line share: its one sentence, and a terminal to show a bar in."""

import sys
from io import StringIO

from controlnet_pack.annotators.__main__ import main


def refused(capfd, *arguments: object) -> str:
    """The one sentence on stderr of a command that fails."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capfd.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch) -> Terminal:
    """What a user sees on stderr from now on."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen
