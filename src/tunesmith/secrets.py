"""What looks like a secret in a text: the one list of patterns, for what is published and for what is
learnt.
"""

from __future__ import annotations

import re

SECRETS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "an OpenAI or Anthropic key": r"(?<![A-Za-z0-9])sk-(?:ant-|proj-)?(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{24,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Slack token": r"xox[abprs]-[A-Za-z0-9-]{10,}",
    "a Google key": r"AIza[A-Za-z0-9_-]{35}",
    "a key or password": r"(?i)(?:api[_-]?key|access[_-]?key|secret|passwd|password)['\"]?\s*[:=]\s*['\"]?"
                         r"[A-Za-z0-9+/_-]{20,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
#: Of each pattern something that any match has, for texts that hold nothing to be dealt with at once.
_SIGNS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "AKIA", "ASIA", "xox", "AIza",
          "-----BEGIN")
_SIGNS_OF_ANY_CASE = ("key", "secret", "passw")


def secrets_in(text: str) -> list[str]:
    """What kinds of secrets a text seems to hold."""
    lower = text.lower()
    if not (any(sign in text for sign in _SIGNS) or any(sign in lower for sign in _SIGNS_OF_ANY_CASE)):
        return []
    return [kind for kind, pattern in SECRETS.items() if re.search(pattern, text)]
