"""Redaction: removes secrets from command lines and configurations."""

from collections.abc import Sequence
import re
from typing import Any

REDACTED = '[redacted]'

# Names with one of these words are secret anywhere.
_PASSWORDS = r'passw(?:or)?d|passphrase|secret|credentials?'

# In a configuration, keys and tokens need a second word: `label_key` and
# `pad_token` are no secrets, and a redacted value has to be given again.
_SECRET = re.compile(
  rf'(?i)(?:.*_)?(?:{_PASSWORDS}'
  r'|(?:api|access|secret|private|account|auth)_?key'
  r'|(?:(?:api|access|auth|bearer|refresh|session|hf|wandb)_?)token)'
  r'|token'
)

# On a command line, which run.json keeps only for people to read, they do not.
_SECRET_FLAG = re.compile(
  rf'(?i)([\w./-]*(?:{_PASSWORDS}|token|key)(?![a-z])\w*)(\s*=\s*)?(.*)',
  re.DOTALL,
)


def is_secret(name: str) -> bool:
  """Returns whether a parameter or macro is named like a secret."""
  return bool(_SECRET.fullmatch(name.rpartition('/')[2].rpartition('.')[2]))


def redacted(value: Any, *, force: bool = False) -> Any:
  """Returns a value with its secret strings replaced by REDACTED.

  Args:
    value: Value of a parameter. The keys of dictionaries count as names.
    force: Whether all strings in `value` are secret.
  """
  if isinstance(value, dict):
    return {
      key: redacted(
        item, force=force or (isinstance(key, str) and is_secret(key))
      )
      for key, item in value.items()
    }
  if type(value) in (list, tuple):
    return type(value)(redacted(item, force=force) for item in value)
  return REDACTED if force and isinstance(value, str) and value else value


def is_redacted(value: Any) -> bool:
  """Returns whether `redacted` has replaced a part of a value."""
  if isinstance(value, dict):
    return any(is_redacted(item) for item in value.values())
  if isinstance(value, list | tuple):
    return any(is_redacted(item) for item in value)
  return bool(value == REDACTED)


def redacted_argv(argv: Sequence[str]) -> list[str]:
  """Returns a command line without the values of flags named like secrets."""
  clean: list[str] = []
  hide = False
  for word in argv:
    if hide:
      clean.append(REDACTED)
      hide = False
      continue
    found = _SECRET_FLAG.search(word)
    # `--api_key=x`, a binding `load.api_key = 'x'`, or `--api_key x`.
    if found and found[2]:
      word = word[: found.start(3)] + REDACTED
    hide = bool(found) and word.startswith('-') and '=' not in word
    clean.append(word)
  return clean
