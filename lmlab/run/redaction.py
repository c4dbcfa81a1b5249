"""Takes secrets and the person's home folder out of what is recorded or sent away.

In a language-model project `token` is mostly not a secret (`mask_token`, `num_tokens`, `tokenizer`), so a key is judged by its
words and a value by its look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = "***"

ALWAYS_SECRET = frozenset({"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey", "authorization"})
"""Words that make a key secret wherever they stand in it."""

SECRET_ENDINGS = frozenset({"key", "keys", "token", "auth"})
"""Words that make a key secret when it ends with them, unless the word before says otherwise."""

SECRET_OWNERS = frozenset(
    {"api", "access", "auth", "bearer", "hf", "hub", "huggingface", "wandb", "github", "gitlab", "session", "refresh"}
)
"""Words before `tokens` that make it secret after all: `api_tokens`."""

HARMLESS_OWNERS = {
    "token": frozenset(
        {"pad", "unk", "mask", "bos", "eos", "cls", "sep", "start", "end", "stop", "special", "sentinel", "prefix", "prompt", "per"}
    ),
    "key": frozenset(
        {"text", "label", "id", "sort", "field", "column", "source", "target", "image", "pair", "group", "metric", "monitor", "query"}
    ),
}
"""`mask_token` is a piece of vocabulary and `text_key` the name of a column."""

LOOKS_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(sk-[A-Za-z0-9_-]{6,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{12,}|xox[abprs]-[\w-]{8,}|wandb_v1_\w{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}|(?i:bearer)\s+[\w.~+/-]{8,}=*)"
)
"""The shapes of keys that well-known services hand out."""

CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")


def redact(value: Any, key: str = "") -> Any:
    """The same value with secrets replaced by `***` and the home folder by `~`.

    Args:
        value: A configuration: mappings, sequences, scalars.
        key: The name it goes by.
    """
    if isinstance(value, Mapping):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v, key) for v in value]
    if value in (None, "") or isinstance(value, bool):
        return value
    if is_secret(key) and (isinstance(value, str) or _words(key)[-1] not in SECRET_ENDINGS):
        return HIDDEN
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """Hides what looks like a service's key, a password in an address, and the home folder."""
    text = CREDENTIALS_IN_URL.sub(HIDDEN, LOOKS_SECRET.sub(HIDDEN, text))
    home = str(Path.home())
    return re.sub(re.escape(home) + r"(?=[/\\]|$)", "~", text) if len(home) > 1 else text


def redact_command(argv: Sequence[str]) -> list[str]:
    """A command line that may be shown: `--key=VALUE`, `--key VALUE`, `KEY=VALUE` and `'{"key": "VALUE"}'` are understood.

    Args:
        argv: The words of the command; the program's folder is dropped from the first.
    """
    words: list[str] = []
    secret_next = False
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if secret_next and not word.startswith("--"):
            words.append(HIDDEN)
        elif index == 0:
            words += _program(word)
        elif equals and re.fullmatch(r"[\w.+-]+", name):
            words.append(f"{name}={_redact_argument(name, value)}")
        else:
            words.append(_redact_argument("", word))
        secret_next = word.startswith("-") and not equals and is_secret(name)
    return words


def is_secret(key: str) -> bool:
    """Whether a setting, a flag or a variable of this name holds a secret.

    Args:
        key: A name in any style: `api_key`, `--hub.token`, `WANDB_API_KEY`, `accessToken`.
    """
    words = _words(key)
    if not words:
        return False
    last, owner = words[-1], words[-2] if len(words) > 1 else ""
    if ALWAYS_SECRET & set(words) or (last == "tokens" and owner in SECRET_OWNERS):
        return True
    return last in SECRET_ENDINGS and owner not in HARMLESS_OWNERS.get(last, ())


def _words(key: str) -> list[str]:
    """`--data.hubToken` is the words data, hub, token."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]


def _redact_argument(name: str, value: str) -> str:
    if value[:1] in "{[" and value:
        try:
            return json.dumps(redact(json.loads(value), name), ensure_ascii=False)
        except ValueError:
            inner = re.compile(r"""(["']?)([\w.-]+)\1(\s*[:=]\s*)(["']?)([^"',{}\[\]\s]+)\4""")  # YAML in one line
            value = inner.sub(lambda m: m[0] if not is_secret(m[2]) else f"{m[1]}{m[2]}{m[1]}{m[3]}{HIDDEN}", value)
    return str(redact(value, name))


def _program(word: str) -> list[str]:
    path = Path(word)
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]
