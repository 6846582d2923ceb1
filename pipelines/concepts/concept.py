"""Concept: what was learned, as one file; the only thing training gives and generation takes.

A concept is a card and a tuple of parts: a word, changes of the base's weights, and whatever a method registers in
`registry`. A word alone is written in the layout of its family that
most programs read: the diffusers layout (one tensor, named by its token) for one text encoder, `clip_l` and `clip_g`
for SDXL. Changed weights are written in kohya's names, which ComfyUI, AUTOMATIC1111, InvokeAI and (low-rank ones)
diffusers read; a DoRA, and low-rank changes with a word of their own beside them, as diffusers and PEFT read them.
Further parts stand behind prefixes of their own. Everything else about it is in the header: our card and the
`modelspec.*` fields.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.concepts.card import CARD_KEY, HASH_KEY, ConceptCard, card_of, read_card, read_header
from pipelines.concepts.formats import delta_tensors as storing
from pipelines.concepts.formats.kohya import named, to_kohya
from pipelines.concepts.formats.peft_folders import read_adapter
from pipelines.concepts.formats.pickles import read_tensors
from pipelines.concepts.formats.png_embeddings import read_picture
from pipelines.concepts.headers import misfit, words
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.part import Part
from pipelines.concepts.parts.changed_weights import ChangedWeights
from pipelines.concepts.parts.token_rows import TokenRows
from pipelines.concepts.registry import by_prefix, kinds_of, part_class
from pipelines.concepts.weight_deltas import Change, Difference, LowRank
from pipelines.errors import ConceptError
from pipelines.files import whole_file
from pipelines.models.components import Components
from pipelines.models.families.known import KNOWN
from pipelines.words import file_stem

_SPELLED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, init=False)
class Concept:
    """A learned thing: a card and parts, each of another kind.

    `Concept(card, rows, changes)` makes the parts for a new word and for changed weights; `rows` and `changes` in
    `dataclasses.replace` take the place of the parts that are there.

    Attributes:
        card: what it is and where it comes from.
        parts: at most one of each kind, in the order they are attached: changed weights, token rows, others.
        partners: what was learned in the same run, with the same changes; each is a file of its own.
    """

    card: ConceptCard
    parts: tuple[Part, ...]
    partners: tuple[Concept, ...]

    def __init__(
        self,
        card: ConceptCard,
        rows: Sequence[Tensor] | None = None,
        changes: Mapping[str, Change] | None = None,
        partners: tuple[Concept, ...] = (),
        *,
        parts: Sequence[Part] = (),
    ) -> None:
        """Put a concept together.

        Args:
            card: what it is.
            rows: (vectors, dim) float32 for each text encoder; empty for no new word, None for that of `parts`.
            changes: weight -> what was learned for it; None for those of `parts`.
            partners: what was learned in the same run.
            parts: any parts.
        """
        weights: Part | None = next((one for one in parts if isinstance(one, ChangedWeights)), None)
        word: Part | None = next((one for one in parts if isinstance(one, TokenRows)), None)
        if changes is not None:
            weights = ChangedWeights(changes) if changes else None
        if rows is not None:
            word = TokenRows(tuple(rows)) if rows else None
        others = (one for one in parts if not isinstance(one, ChangedWeights | TokenRows))
        listed = tuple(one for one in (weights, word, *others) if one is not None)
        for name, value in (("card", card), ("parts", listed), ("partners", partners)):
            object.__setattr__(self, name, value)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Rows (vectors, dim) of the new word for each text encoder; empty without token rows."""
        return next((one.rows for one in self.parts if isinstance(one, TokenRows)), ())

    @property
    def changes(self) -> Mapping[str, Change]:
        """Changes by the name of the weight; empty without changed weights."""
        return next((one.changes for one in self.parts if isinstance(one, ChangedWeights)), {})

    @property
    def further(self) -> tuple[Part, ...]:
        """Parts that are neither token rows nor changed weights, which other programs do not read."""
        return tuple(one for one in self.parts if not isinstance(one, ChangedWeights | TokenRows))

    @property
    def adds_word(self) -> bool:
        """Return whether it brings a word of its own, instead of being called by words of the base."""
        return any(part.vectors for part in self.parts)

    @property
    def token(self) -> str:
        """The word prompts use; for a concept without a new word of its own, the words that call it."""
        return self.card.token

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> Path:
        """Write the concept; the file is either whole or not there."""
        created = self.card.created or datetime.now(UTC).isoformat(timespec="seconds")
        card = self.card.model_copy(update={"created": created})
        metadata = {CARD_KEY: card.model_dump_json(), **replace(self, card=card).modelspec()}
        if not self._in_kohyas_names and (lora := storing.lora_metadata(self.changes)):
            metadata[storing.LORA_METADATA] = json.dumps(lora)
        return write_tensors(path, self.tensors(), metadata)

    def modelspec(self) -> dict[str, str]:
        """The `modelspec` fields of this concept (version 1.0.1), by which other programs know it."""
        card = self.card
        whole = any(isinstance(change, Difference) for change in self.changes.values())
        layout = "difference" if whole else "lora" if self.changes else "textual-inversion"
        if self.further:
            layout = kinds_of(self.tensors()).replace(", ", "-").replace(" ", "-")
        fields = {
            "sai_model_spec": "1.0.1",
            "architecture": f"{KNOWN[card.family].architecture if card.family in KNOWN else 'unknown'}/{layout}",
            "implementation": "diffusers",
            "title": card.token,
            "trigger_phrase": "" if card.kind == "slider" else card.token,
            "tags": card.kind,
            "date": card.created,
        }
        if card.init:
            fields["description"] = f"{card.kind}, learned from {card.init} by {card.method}"
        if isinstance(resolution := card.recipe.get("resolution"), int):
            fields["resolution"] = f"{resolution}x{resolution}"
        return {f"modelspec.{key}": value for key, value in fields.items() if value}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as they are stored."""
        rows = TokenRows(self.rows).stored()
        others = {name: tensor for part in self.further for name, tensor in part.tensors().items()}
        if self._in_kohyas_names:
            bundled = self._bundled(rows) if rows else {}
            return to_kohya(self.changes, self.card.family == "sdxl") | bundled | others
        if self.changes or (others and rows):
            return {name: tensor for part in self.parts for name, tensor in part.tensors().items()}
        if not rows:
            return others
        names = KNOWN[self.card.family].rows if self.card.family in KNOWN else ()
        return dict(zip(names or ("clip_l", "clip_g"), rows, strict=False)) if len(rows) > 1 else {self.token: rows[0]}

    @property
    def _in_kohyas_names(self) -> bool:
        """Return whether the changes are stored in kohya's names, which all programs read.

        Not where only diffusers and PEFT have a layout (magnitudes of rows), and not where diffusers would refuse the
        whole file for the word beside them, unless it cannot read the changes anyhow.
        """
        if not self.changes or any(key.startswith("transformer.") for key in self.changes):
            return False
        if not named(self.changes, self.card.family == "sdxl"):
            return False
        theirs = all(isinstance(change, LowRank) and not change.columns for change in self.changes.values())
        return not (theirs and self.rows)

    def _bundled(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """A word beside changes in kohya's names, as AUTOMATIC1111 and ComfyUI read it."""
        names = ("emb_params",) if len(rows) == 1 else ("clip_l", "clip_g")
        stem = file_stem(self.token).replace(".", "-")
        return {f"bundle_emb.{stem}.{name}": part for name, part in zip(names, rows, strict=False)}

    @classmethod
    def load(cls, path: Path) -> Concept:
        """Read a concept, or an embedding or LoRA of another program in one of the known layouts.

        Raises:
            ConceptError: if it is missing, damaged, a pickle or none of these.
        """
        card = read_card(path)
        said: dict[str, str] = read_header(path).get("__metadata__", {})
        try:
            return cls._gathered(path.name, card, load_file(path), said)
        except (SafetensorError, OSError, ValueError) as error:
            raise ConceptError(f"{path.name} cannot be read: {error}.", "Get or train it again.") from None

    @classmethod
    def load_pickle(cls, path: Path) -> Concept:
        """Read an embedding or LoRA that another program kept as a pickle (`.pt`, `.bin`), running nothing of it.

        Raises:
            ConceptError: if it holds anything else.
        """
        return cls._of_tensors(path.name, *read_tensors(path))

    @classmethod
    def load_picture(cls, path: Path) -> Concept:
        """Read an embedding from the text or the pixels of a PNG of AUTOMATIC1111.

        Raises:
            ConceptError: if it holds none.
        """
        return cls._of_tensors(path.name, *read_picture(path))

    @classmethod
    def load_adapter(cls, folder: Path) -> Concept:
        """Read a LoRA from a folder of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            ConceptError: if it is damaged or holds anything else.
        """
        return cls._of_tensors(folder.name, *read_adapter(folder))

    @classmethod
    def _of_tensors(cls, file: str, tensors: dict[str, Tensor], said: dict[str, str]) -> Concept:
        header = {
            name: {"dtype": _SPELLED.get(tensor.dtype, "I64"), "shape": list(tensor.shape)}
            for name, tensor in tensors.items()
        }
        return cls._gathered(file, card_of(file, {**header, "__metadata__": said}), tensors, said)

    @classmethod
    def _gathered(cls, file: str, card: ConceptCard, tensors: dict[str, Tensor], said: Mapping[str, str]) -> Concept:
        """A concept of the tensors of a file."""
        tensors = {name: tensor.float() if tensor.dtype in _EIGHT_BITS else tensor for name, tensor in tensors.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ConceptError(f"{file} holds numbers that are not finite.", "Train it again with a lower rate.")
        held = {name for names in by_prefix(tensors).values() for name in names}
        rest = {name: tensor for name, tensor in tensors.items() if name not in held}
        found = words([name for name in rest if parsed(name) is None])
        weights = ChangedWeights.read(rest, said)
        parts: list[Part | None] = [weights, TokenRows.named(rest, found.names)]
        for prefix, names in by_prefix(tensors).items():
            parts.append(part_class(prefix).read({name: tensors[name] for name in names}, said))
        concept = cls(card, parts=[part for part in parts if part is not None])
        counts = {len(rows) for rows in concept.rows} | {part.vectors for part in concept.further if part.vectors}
        if counts != ({card.vectors} if card.vectors else set()):
            raise ConceptError(f"{file} does not hold the {card.vectors} vectors its card tells of.", "Get it again.")
        partners = tuple(
            cls(
                card.model_copy(update={"token": other.token, "vectors": own.vectors}),
                parts=[part for part in (weights, own) if part is not None],
            )
            for other in found.others
            for own in [TokenRows.named(rest, other.names)]
            if own is not None
        )
        return replace(concept, partners=partners)

    def digest(self) -> str:
        """16 hex digits of what was learned, whatever the file says around it."""
        hashed = hashlib.sha256(self.token.encode())
        for key, tensor in sorted(storing.stored(self.changes).items()):
            hashed.update(key.encode() + tensor.float().numpy().tobytes())
        for rows in self.rows:
            hashed.update(rows.detach().cpu().float().contiguous().numpy().tobytes())
        for part in self.further:
            for key, tensor in sorted(part.tensors().items()):
                hashed.update(key.encode() + tensor.float().numpy().tobytes())
        return hashed.hexdigest()[:16]

    # -- use -----------------------------------------------------------------------------------------------------

    def check_fits(self, components: Components) -> None:
        """Refuse a base this concept was not made for.

        A concept of a Stable Diffusion family works on the fine-tunes of that family; one of `pocket` only on the very
        weights it was trained on.

        Raises:
            ConceptError: with both names.
        """
        made, family = self.card.family, components.family.name
        hint = "Use it with its own base, or train it again on this one."
        if why := misfit(self.token, made, family, self.card.base, components.name):
            raise ConceptError(why, hint)
        words, weights = [one for one in self.parts if one.vectors], [one for one in self.parts if not one.vectors]
        for part in words:
            part.fits(components, self.card)
        if components.family.world == "pocket" and self.card.base_fingerprint not in ("", components.fingerprint()):
            raise ConceptError(
                f"{self.token} was trained on other weights of pocket than these.", "Train it again; it takes minutes."
            )
        for part in weights:
            part.fits(components, self.card)

    def require_plain(self, what: str) -> None:
        """Refuse to write this concept for other programs if it has parts that they do not read.

        Args:
            what: where it was to be written, for the message.

        Raises:
            ConceptError: naming those parts.
        """
        if self.further:
            raise ConceptError(
                f"{self.token} consists of {kinds_of(self.tensors())}, for which {what} has no layout.",
                "Use its file with the studio, or teach it by textual-inversion.",
            )

    @contextmanager
    def attach(self, components: Components, strength: float = 1.0) -> Iterator[Components]:
        """Give the base this word and these weights while the `with` lasts; afterwards it is bit-identical to before.

        Args:
            components: the base.
            strength: 0 gives the base with the word training started from (the average word if that is unknown), 1
                what was learned, -1 the opposite of changed weights.

        Raises:
            ConceptError: if it does not fit the base, its word is taken, or the strength is out of its range.
        """
        self.check_fits(components)
        self.card.require_strength(strength)
        # Parts put together in memory have no fingerprint yet, and with this concept in them it would be another.
        components = replace(components, identity=components.fingerprint())
        with ExitStack() as attached:
            for part in self.parts:
                components = attached.enter_context(part.attach(components, self.card, strength))
            yield components

    def described(self, recipe: Mapping[str, Any], base_fingerprint: str) -> Concept:
        """Return the concept and its partners with the settings of their training and the base on their cards."""
        about = {"recipe": dict(recipe), "base_fingerprint": base_fingerprint}
        partners = tuple(one.described(recipe, base_fingerprint) for one in self.partners)
        return replace(self, card=self.card.model_copy(update=about), partners=partners)

    def with_scores(self, scores: dict[str, float]) -> Concept:
        """The same concept with figures on its card; what is no number is left out, as JSON has no word for it."""
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        return replace(self, card=self.card.model_copy(update={"scores": {**self.card.scores, **finite}}))


@contextmanager
def attached(components: Components, uses: Sequence[tuple[Concept, float]]) -> Iterator[Components]:
    """Give the base several concepts, each with its strength, while the `with` lasts.

    Weights that are the same in several concepts were learned together: they are laid in once, at the largest of their
    strengths.

    Args:
        components: the base; bit-identical afterwards.
        uses: concepts and strengths, in any order.

    Raises:
        ConceptError: if one does not fit the base, or a word is taken.
    """
    for concept, _ in uses:
        concept.check_fits(components)
    with ExitStack() as stack:
        laid: list[Mapping[str, Change]] = []
        for concept, strength in uses:
            together = [amount for other, amount in uses if storing.same(other.changes, concept.changes)]
            if not any(storing.same(concept.changes, changes) for changes in laid):
                weights = Concept(concept.card, (), concept.changes)
                components = stack.enter_context(weights.attach(components, max(together)))
                laid.append(concept.changes)
            components = stack.enter_context(replace(concept, changes={}).attach(components, strength))
        yield components


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file, either whole or not at all, with the SHA-256 of its tensors in its header.

    The sum is `modelspec.hash_sha256`: of all bytes behind the header.
    """
    blank = "0x" + 64 * "0"
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **metadata, HASH_KEY: blank})
        with temporary.open("rb+") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            place = 8 + stream.read(length).index(f'"{blank}"'.encode()) + 1
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(place)
            stream.write(f"0x{digest}".encode())
    return path
