"""What counts as a secret in a project where most tokens are words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.run.redaction import HIDDEN, is_secret, redact, redact_command, redact_text

SECRETS = """
    api_key apiKey API_KEY --hub.token hf_token token access_token authToken password db_password passwd client_secret secrets
    WANDB_API_KEY aws_secret_access_key ssh_passphrase credentials Authorization key private-key api_tokens hf_tokens basic_auth
"""
HARMLESS = """
    tokens num_tokens tokenizer tokenizer_path max_new_tokens supervised_tokens mask_token pad_token eos_token special_token
    token_type_ids num_segments num_key_heads key_size text_key label_key sort_key query_key keys_and_values monkey keyboard
    secretary author tokens_per_second budget.tokens num_special_tokens id_key lr
"""


@pytest.mark.parametrize("key", SECRETS.split())
def test_secret_names(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", HARMLESS.split())
def test_harmless_names(key: str) -> None:
    assert not is_secret(key)


def test_a_config_keeps_everything_but_its_secrets() -> None:
    config = {
        "model": {"init_args": {"mask_token": "[MASK]", "tokens": 8_000_000, "token": 5, "key": 3}},
        "hub": {"token": "abc", "password": 12345, "empty_key": "", "api_key": None, "tokens": ["a", "b"]},
        "servers": [{"url": "https://user:pw@example.org/x", "access_token": "t"}],
        "note": "my key is sk-abcdef123456 here",
    }
    assert redact(config) == {
        "model": {"init_args": {"mask_token": "[MASK]", "tokens": 8_000_000, "token": 5, "key": 3}},
        "hub": {"token": HIDDEN, "password": HIDDEN, "empty_key": "", "api_key": None, "tokens": ["a", "b"]},
        "servers": [{"url": f"https://{HIDDEN}@example.org/x", "access_token": HIDDEN}],
        "note": f"my key is {HIDDEN} here",
    }
    assert config["hub"]["token"] == "abc"  # the run itself still needs it


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-1234567890",
        "hf_" + "a" * 34,
        "ghp_" + "a" * 36,
        "github_pat_" + "1" * 30,
        "AKIA" + "A" * 16,
        "xoxb-123456789-abc",
        "Bearer abcdef.ghi==",
    ],
)
def test_well_known_shapes_are_hidden_wherever_they_stand(secret: str) -> None:
    assert secret not in redact_text(f"curl -H '{secret}' x") and HIDDEN in redact_text(f"curl -H '{secret}' x")


@pytest.mark.parametrize(
    "text", ["task-oriented", "risk-averse-model", "sk-learn", "hf_model", "lmlab fit -c a.yaml", "step=100.ckpt", "a@b"]
)
def test_ordinary_words_are_not(text: str) -> None:
    assert redact_text(text) == text


def test_a_command_line_shows_everything_but_its_secrets() -> None:
    words = [
        "/home/marmaduke/venv/bin/lmlab", "fit", "-c", "configs/mlm.yaml",
        "--api_key=plain", "--hub.token", "plain", "--budget.tokens", "8M",
        "WANDB_API_KEY=plain", "--model.mask_token=[MASK]", '--hub={"token": "plain", "name": "n"}', "--hub={token: plain, name: n}",
        '{"password": "plain"}', "--token", "--verbose",
    ]  # fmt: skip
    shown = redact_command(words)
    assert "plain" not in " ".join(shown)
    assert shown[:4] == ["lmlab", "fit", "-c", "configs/mlm.yaml"]
    assert shown[4:7] == [f"--api_key={HIDDEN}", "--hub.token", HIDDEN]
    assert shown[7:11] == ["--budget.tokens", "8M", f"WANDB_API_KEY={HIDDEN}", "--model.mask_token=[MASK]"]
    assert json.loads(shown[11].removeprefix("--hub=")) == {"token": HIDDEN, "name": "n"}
    assert shown[12] == f"--hub={{token: {HIDDEN}, name: n}}"
    assert shown[-2:] == ["--token", "--verbose"]
    assert redact_command(["/x/lmlab/__main__.py", "runs"]) == ["python", "-m", "lmlab", "runs"]
    assert redact_command([]) == []


def test_the_home_folder_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/marmaduke"))
    assert redact_text("/home/marmaduke/data/a.txt") == "~/data/a.txt"
    assert redact_text("/home/marmaduke") == "~"
    assert redact_text("/home/marmaduke2/a") == "/home/marmaduke2/a"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(alphabet="abc ,", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet="abcdef_", max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_what_holds_no_secret_comes_back_as_it_was(value: object) -> None:
    assert redact(value) == value
