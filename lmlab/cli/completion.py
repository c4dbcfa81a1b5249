"""`lmlab completion bash|zsh|fish`: a script for the shell, made from the table of commands.

The script holds every word it offers, so completing never starts Python. Options are read from the source of each command, without
running it: importing them would take seconds.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from lmlab.cli import guide
from lmlab.cli.dispatch import COMMANDS

SHELLS = ("bash", "zsh", "fish")
HOW = {
    "bash": 'eval "$(lmlab completion bash)"     # in ~/.bashrc',
    "zsh": 'eval "$(lmlab completion zsh)"      # in ~/.zshrc, after compinit',
    "fish": "lmlab completion fish | source       # in ~/.config/fish/config.fish",
}


def main(argv: list[str]) -> int:
    """Prints the script.

    Args:
        argv: The shell.
    """
    lines = [f"  {line}" for line in HOW.values()]
    parser = argparse.ArgumentParser(
        prog="lmlab completion",
        description="Print a completion script.",
        epilog="\n".join(["to use it:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    print(script(parser.parse_args(argv).shell))
    return 0


def script(shell: str) -> str:
    """The completion script.

    Args:
        shell: One of `SHELLS`.

    Returns:
        Source text for that shell.
    """
    options = {name: options_of(name) for name in COMMANDS}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](options)


def options_of(command: str) -> tuple[str, ...]:
    """The options of a command.

    Args:
        command: Its name in `COMMANDS`.

    Returns:
        Those spelled out in the source of its module, `--help` first; for `fit` and the like those of its guide.
    """
    if command in guide.COMMANDS:
        return guide.options_of(command)
    if command == "completion":
        return ("--help", *SHELLS)
    module, _, function = COMMANDS[command].target.partition(":")
    source = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py")
    if not source.is_file():
        return ("--help",)
    body = ast.parse(source.read_text(encoding="utf-8")).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    return ("--help", *dict.fromkeys(_words_of(function, functions)))


def _words_of(name: str, functions: dict[str, ast.FunctionDef]) -> list[str]:
    """What a function declares, itself or through the functions of its module that it calls."""
    function = functions.pop(name, None)  # each is looked at once
    words = []
    for node in ast.walk(function) if function else ():
        words += _declared(node)
        if isinstance(node, ast.Name):
            words += _words_of(node.id, functions)
    return words


def _declared(node: ast.AST) -> list[str]:
    """Long options and words of subcommands that one call of argparse declares."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("add_argument", "add_parser")):
        return []
    words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return words if node.func.attr == "add_parser" else [word for word in words if word.startswith("--")]


def _bash(options: dict[str, tuple[str, ...]]) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(words)}" ;;' for name, words in options.items())
    return f"""# lmlab completion for bash
_lmlab() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(options)} --help --version" -- "$current"))
    return
  fi
  case "$previous" in
    -c|--config) COMPREPLY=($(compgen -f -X '!*.y*ml' -- "$current") $(compgen -d -S / -- "$current")); compopt -o nospace; return ;;
  esac
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
}}
complete -o filenames -F _lmlab lmlab"""


def _zsh(options: dict[str, tuple[str, ...]]) -> str:
    commands = "\n".join(f"    '{name}:{_quiet(COMMANDS[name].summary)}'" for name in options)
    cases = "\n".join(f"    {name}) words_of=({' '.join(words)}) ;;" for name, words in options.items())
    return f"""#compdef lmlab
# lmlab completion for zsh
_lmlab() {{
  local -a commands words_of
  commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "$words[CURRENT-1]" in
    -c|--config) _files -g '*.y*ml'; return ;;
  esac
  case "$words[2]" in
{cases}
  esac
  compadd -a words_of
  _files
}}
compdef _lmlab lmlab"""


def _fish(options: dict[str, tuple[str, ...]]) -> str:
    lines = ["# lmlab completion for fish"]
    for name, words in options.items():
        lines.append(f"complete -c lmlab -n __fish_use_subcommand -f -a {name} -d '{_quiet(COMMANDS[name].summary)}'")
        for word in words:
            given = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]} -r" if word.startswith("-") else f"-a {word}"
            lines.append(f"complete -c lmlab -n '__fish_seen_subcommand_from {name}' {given}")
    return "\n".join(lines)


def _quiet(text: str) -> str:
    """A summary without what the shells would read as their own."""
    return text.partition(": lmlab ")[0].replace("'", "").replace(":", "")
