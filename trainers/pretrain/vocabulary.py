"""The tokenizer of `pocket`: a byte-level `CLIPTokenizer` whose merges make each word of the sticker world one token.

Nothing is learned: merges are added word by word, each joining what is left of the word from the left. A merge added
later has lower priority, so it never changes how an earlier word is read, and any other text still falls back to bytes.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from trainers.stickers.world import ALL_NAMES, COLOURS, plural

WORDS = Path(__file__).parent.parent / "words"
MAX_LENGTH = 32
"""Tokens of one prompt chunk, start and end included: the captions of the sticker world are short."""


def words() -> list[str]:
    """Return all words that are to be one token, in a fixed order without repetition."""
    listed = list(ALL_NAMES) + [plural(name) for name in ALL_NAMES] + list(COLOURS)
    for source in ("pocket.txt", "object_templates.txt", "style_templates.txt"):
        listed += (WORDS / source).read_text(encoding="utf-8").replace("{}", " ").replace("-", " ").split()
    return list(dict.fromkeys(word.strip(",.") for word in listed))


def _byte_symbols() -> list[str]:
    """Return the 256 printable stand-ins of byte-level BPE, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(moved))]


def _read(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            return pieces
        i = min(pairs)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def build_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer, built from the word lists alone."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words():
        pieces = _read(word, ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _read(word, ranks)
    symbols = _byte_symbols()
    listed = symbols + [symbol + "</w>" for symbol in symbols] + [a + b for a, b in ranks]
    listed += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(listed)}
    return CLIPTokenizer(vocab=vocab, merges=list(ranks), model_max_length=MAX_LENGTH)  # pyright: ignore


def write_tokenizer(folder: Path) -> None:
    """Save the tokenizer, with the plain `vocab.json` and `merges.txt` that older readers expect."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
