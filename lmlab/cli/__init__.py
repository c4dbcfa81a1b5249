"""The command line; `main` imports a command's code only when it is called, so that `lmlab --help` is instant."""

from lmlab.cli.dispatch import main

__all__ = ["main"]
