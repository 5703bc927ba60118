"""User text to clean text: what every CLIP tokenizer reads the same way."""

from __future__ import annotations

import html
import re
from unicodedata import category

import ftfy

from ldm.errors import Code, LdmError

MAX_BYTES = 20_000  # of one prompt, before and after wildcards are filled in

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # C0 without tab and line ends
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPECIAL = re.compile(r"<(\|?)(\w+)(\|?)>")
_SPECIAL_WORD = re.compile(r"(start|end)_?of_?text", re.IGNORECASE)
_IOTA_BELOW = "\u0345"  # left alone by NFC; open_clip's case-blind pattern skips it, the other tokenizer does not
_WORD = re.compile(r"\S+")
_ROUNDS = 8  # ftfy and html.unescape are repeated until nothing changes; more rounds were never needed in tests


def clean(text: str) -> str:
    """NFC without lone surrogates, C0 controls, mojibake and character references; special tokens spelled apart.

    A fixed point of what CLIP's own tokenizer does first (ftfy, twice `html.unescape`), so that the tokenizers of
    transformers and of open_clip give equal ids. Case and line ends stay, because the prompt grammar needs them.
    """
    if _SURROGATE.search(text):  # pairs become their character, lone ones go
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    for _ in range(_ROUNDS):
        before, text = text, _one_round(text)
        if text == before:
            break
    return text


def check_size(text: str, name: str = "prompt") -> None:
    """Refuse what would take long to clean: `MAX_BYTES` of UTF-8 is the limit of a request, too."""
    if len(text) > MAX_BYTES or (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_BYTES:
        size = len(text) if len(text) > MAX_BYTES else size
        raise LdmError(
            Code.USAGE,
            f"{name} is {size} bytes long",
            f"at most {MAX_BYTES} bytes are read, wildcards included",
            f"shorten the {name} to {MAX_BYTES} bytes",
        )


def _one_round(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text, normalization="NFC")))
    text = _SPECIAL.sub(_apart, _CONTROLS.sub("", text).replace(_IOTA_BELOW, ""))
    if not text.isascii():
        text = "".join(c for c in text if category(c) != "Cn" or "\U0001f000" <= c <= "\U0001fbff")
    # The two tokenizers disagree about these two letters: one lowers a final sigma to the end-of-word form, the other
    # does not; one takes the long s after an apostrophe for an s.
    if "Σ" in text:
        text = _WORD.sub(lambda m: m.group().lower() if "Σ" in m.group() else m.group(), text)
    return text.replace("'ſ", "' ſ").strip()


def _apart(match: re.Match[str]) -> str:
    """`<|endoftext|>` as `<| endoftext |>`: the same letters, but no longer one token."""
    left, word, right = match.groups()
    special = (left and right) or _SPECIAL_WORD.fullmatch(word)
    return f"<{left} {word} {right}>" if special else match.group()
