"""Whether a hosted offer serves a model itself or one of its relatives (a distilled, smaller or newer one)."""

from __future__ import annotations

import re
from collections import Counter

from moeplan.spec.model import ModelArchitecture

# Words of an offer's identifier that change neither architecture nor size: training variants, number formats, vendors,
# regions and the sellers' speed classes.
_SAME = frozenset(
    ("instruct", "chat", "it", "thinking", "fp", "fw", "bf", "nvfp", "hf", "maas", "turbo", "fast", "highspeed",
     "basic", "instant", "tee", "v", "qwen", "moonshotai", "moonshot", "openai", "meta", "mistral", "minimax", "zai",
     "deepseek", "databricks", "us", "eu", "in", "global", "gov")
)  # fmt: skip
_VERSION = re.compile(r"[-.]?v?\d:\d$|[-.]v0\.\d$")  # "-v1:0", "-v0.1"
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([be])(?![a-z0-9])")  # "671b", "128e"
_FORMAT = re.compile(r"(fp|bf|int)(4|8|16)")
_ACTIVE = re.compile(r"-a\d+(\.\d+)?b")


def serves(offer_name: str, model: ModelArchitecture) -> bool:
    """Whether the identifier names ``model`` and nothing else: an unknown word or number makes it a relative."""
    own = model.name.lower()
    text = _VERSION.sub("", offer_name.rsplit("/", 1)[-1].lower())
    text = re.sub(r"(\d)p(\d)", r"\1.\2", _FORMAT.sub("", text))  # fireworks writes 5p2 for 5.2
    text = _SIZE.sub(lambda found: found.group() if found.group() in own or not _fits(found, model) else "", text)
    if not _ACTIVE.search(text):
        own = _ACTIVE.sub("", own)
    words, named = _words(text), _words(own)
    if named - words:
        return False
    return all(word in _SAME or (word.isdecimal() and len(word) == 4) for word in words - named)  # 0528: a release


def _fits(found: re.Match[str], model: ModelArchitecture) -> bool:
    """Whether a size in an identifier is the model's own: parameters in billions, or experts."""
    value = float(found[1])
    if found[2] == "e":
        return any(block.n_experts == value for block in model.moe_blocks)
    return any(abs(n / (value * 1e9) - 1.0) < 0.05 for n in (model.n_params_total, model.n_params_active))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+|\d+", text))
