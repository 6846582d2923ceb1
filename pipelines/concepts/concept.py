"""Concept: what was learned, as one file; the only thing training gives and generation takes.

A concept is a word, changes of the base's weights, or both. A word alone is written in the layout of its family that
most programs read: the diffusers layout (one tensor, named by its token) for one text encoder, `clip_l` and `clip_g`
for SDXL. Changed weights are written in kohya's names, which ComfyUI, AUTOMATIC1111, InvokeAI and (low-rank ones)
diffusers read; a DoRA, and low-rank changes with a word of their own beside them, as diffusers and PEFT read them.
Everything else about it is in the header: our card and the `modelspec.*` fields.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.concepts import weight_deltas as changing
from pipelines.concepts.card import CARD_KEY, HASH_KEY, ConceptCard, card_of, read_card, read_header
from pipelines.concepts.formats import delta_tensors as storing
from pipelines.concepts.formats.kohya import named, to_kohya
from pipelines.concepts.formats.peft_folders import read_adapter
from pipelines.concepts.formats.pickles import read_tensors
from pipelines.concepts.formats.png_embeddings import read_picture
from pipelines.concepts.headers import WORD, misfit, words
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.token_embeddings import embed_ids, new_words
from pipelines.concepts.weight_deltas import Change, Difference, LowRank
from pipelines.errors import ConceptError
from pipelines.files import whole_file
from pipelines.models.components import Components, word_table
from pipelines.words import file_stem

_ARCHITECTURE = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "pocket": "promptstudio-pocket",
}
_SPELLED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Concept:
    """A learned word, changed weights, or both.

    Attributes:
        card: what it is and where it comes from.
        rows: (vectors, dim) float32 for each text encoder of its family; empty if it brings no new word.
        changes: `unet.path.weight` (or `text_encoder.`, `text_encoder_2.`) -> what was learned for that weight.
        partners: what was learned in the same run, with the same changes; each is a file of its own.
    """

    card: ConceptCard
    rows: tuple[Tensor, ...] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)
    partners: tuple[Concept, ...] = ()

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
        fields = {
            "sai_model_spec": "1.0.1",
            "architecture": f"{_ARCHITECTURE.get(card.family, 'unknown')}/{layout}",
            "implementation": "diffusers",
            "title": card.token,
            "trigger_phrase": card.token,
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
        rows = [part.detach().cpu().float().contiguous() for part in self.rows]
        if self._in_kohyas_names:
            return to_kohya(self.changes, self.card.family == "sdxl") | self._bundled(rows)
        if self.changes:
            return storing.stored(self.changes) | {f"{WORD}{i}": part for i, part in enumerate(rows)}
        return {self.card.token: rows[0]} if len(rows) == 1 else {"clip_l": rows[0], "clip_g": rows[1]}

    @property
    def _in_kohyas_names(self) -> bool:
        """Whether the changes are stored in kohya's names, which all programs read.

        Not where only diffusers and PEFT have a layout (magnitudes of rows), and not where diffusers would refuse the
        whole file for the word beside them, unless it cannot read the changes anyhow.
        """
        if not self.changes or not named(self.changes, self.card.family == "sdxl"):
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
        lora = json.loads(said.get(storing.LORA_METADATA, "{}"))
        changes = storing.read_stored(tensors, lora if isinstance(lora, dict) else {})
        found = words([name for name in tensors if parsed(name) is None])

        def rows_of(names: Sequence[str]) -> tuple[Tensor, ...]:
            return tuple(tensors[name].float().reshape(-1, tensors[name].shape[-1]) for name in names)

        rows = rows_of(found.names)
        if {len(row) for row in rows} != ({card.vectors} if card.vectors else set()):
            raise ConceptError(f"{file} does not hold the {card.vectors} vectors its card tells of.", "Get it again.")
        partners = tuple(
            cls(card.model_copy(update={"token": other.token, "vectors": len(own[0])}), own, changes)
            for other in found.others
            for own in [rows_of(other.names)]
        )
        return cls(card, rows, changes, partners)

    def digest(self) -> str:
        """16 hex digits of what was learned, whatever the file says around it."""
        hashed = hashlib.sha256(self.token.encode())
        for key, tensor in sorted(storing.stored(self.changes).items()):
            hashed.update(key.encode() + tensor.float().numpy().tobytes())
        for rows in self.rows:
            hashed.update(rows.detach().cpu().float().contiguous().numpy().tobytes())
        return hashed.hexdigest()[:16]

    # -- use -----------------------------------------------------------------------------------------------------

    def check_fits(self, components: Components) -> None:
        """Refuse a base this concept was not made for.

        A concept of a Stable Diffusion family works on the fine-tunes of that family; one of `pocket` only on the very
        weights it was trained on.

        Raises:
            ConceptError: with both names.
        """
        made, family = self.card.family, components.family
        dims = [row.shape[1] for row in self.rows]
        wanted = [encoder.config.hidden_size for encoder in components.text_encoders]
        hint = "Use it with its own base, or train it again on this one."
        if why := misfit(self.token, made, family, self.card.base, components.name):
            raise ConceptError(why, hint)
        if dims and dims != wanted:
            raise ConceptError(
                f"{self.token} was made for {self.card.base or 'another model'}: "
                f"its rows have {', '.join(map(str, dims))} numbers, "
                f"and the text encoders of {components.name} ({family}) read {', '.join(map(str, wanted))}.",
                hint,
            )
        if family == "pocket" and self.card.base_fingerprint not in ("", components.fingerprint()):
            raise ConceptError(
                f"{self.token} was trained on other weights of pocket than these.", "Train it again; it takes minutes."
            )
        changing.check_fits(components, self.changes, self.token)

    @contextmanager
    def attach(self, components: Components, strength: float = 1.0) -> Iterator[Components]:
        """Give the base this word and these weights while the `with` lasts; afterwards it is bit-identical to before.

        Args:
            components: the base.
            strength: 0 gives the base with the word training started from (the average word if that is unknown), 1
                what was learned.

        Raises:
            ConceptError: if it does not fit the base or its word is taken.
        """
        self.check_fits(components)
        rows = self.rows if strength == 1.0 else self._blended(components, strength)
        # Parts put together in memory have no fingerprint yet, and with this concept in them it would be another.
        components = replace(components, identity=components.fingerprint())
        with ExitStack() as attached:
            attached.enter_context(changing.applied(components, self.changes, strength))
            if rows:
                words = attached.enter_context(new_words(components, self.token, rows))
                for parameter in words.rows:
                    parameter.requires_grad_(False)
                components = words.components
            yield components

    def _blended(self, components: Components, strength: float) -> tuple[Tensor, ...]:
        blended: list[Tensor] = []
        # Without a word of its own there is nothing to blend.
        for rows, encoder, tokenizer in zip(self.rows, components.text_encoders, components.tokenizers, strict=False):
            ids = tokenizer(self.card.init, add_special_tokens=False).input_ids if self.card.init else []
            table = word_table(encoder)
            start = embed_ids(encoder, ids[:1]) if ids else table.weight.detach().float().mean(0, keepdim=True)
            start = start.to(rows)
            blended.append(start + strength * (rows - start))
        return tuple(blended)

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
