"""Grounding: phrases and boxes as inputs of the gated self-attention of GLIGEN (Li et al., arXiv:2301.07093).

A picture has `SLOTS` places for things. A thing is the pooled text of its phrase beside the Fourier features of its
box; a place without one holds two learned vectors instead, as the whole of the null form does. Places that are empty
are read like the others, so their number is part of the model: it is the same in training and in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import ModelError, RequestError
from pipelines.files import whole_file
from pipelines.models.fingerprint import is_gated
from pipelines.request.box_files import SLOTS

if TYPE_CHECKING:
    from pipelines.models.components import Components

UNNAMED = {"pocket": "a sticker"}
"""Phrase that names nothing, of families whose gated layers were also trained on boxes told with it: what the prompt
says then goes there."""

FORM = "studio-grounding"
"""Format named in the header of an adapter file."""


def has_grounding(unet: nn.Module) -> bool:
    """Return whether a UNet has gated layers, trained or not."""
    return hasattr(unet, "position_net")


def read_as(phrases: Sequence[str], family: str, learned: Mapping[str, str]) -> list[str]:
    """Return the phrases of a picture's boxes as the gated layers can read them, without learned words.

    Given the embedding of a learned word they put something else in its box, or nothing. A single one is told as a
    thing without a name: what goes there comes from the prompt. Several are told by what kind of thing each is, which
    also says whose box is whose.

    Args:
        phrases: of the boxes.
        family: of the base.
        learned: learned word -> the word it started from, empty if unknown.
    """
    unknown = [phrase for phrase in phrases if any(token in phrase for token in learned)]
    if family in UNNAMED and len(unknown) == 1:
        return [UNNAMED[family] if phrase in unknown else phrase for phrase in phrases]
    read = list(phrases)
    for token, kind in learned.items():
        read = [phrase.replace(token, kind or token) for phrase in read]
    return read


def phrase_embeddings(components: Components, phrases: Sequence[str]) -> Tensor:
    """Return the inputs of the gated layers for phrases: the text encoder's last state at the phrase's end.

    It is the pooled output before any projection, of `CLIPTextModel`, taken at the first end token whatever the
    configuration says (old ones pool at the largest token, which a learned word would be). Words of several vectors
    are expanded. Differentiable.

    Args:
        components: the base; its first text encoder reads the phrases.
        phrases: plain text, without the syntax of weights.

    Returns:
        (n, dim) float32 on the device of the text encoder.

    Raises:
        RequestError: for a phrase that is empty or longer than the encoder's window.
    """
    tokenizer, encoder = components.tokenizers[0], components.text_encoders[0]
    window = int(tokenizer.model_max_length)
    special: Any = tokenizer  # its special ids are typed as anything
    rows: list[list[int]] = []
    for phrase in phrases:
        found = tokenizer(phrase, add_special_tokens=False, verbose=False).input_ids
        ids = [meant for token in found for meant in components.expansions.get(token, (token,))]
        if not ids or len(ids) > window - 2:
            what = f"has {len(ids)} tokens, room is for {window - 2}" if ids else "is empty"
            raise RequestError(f"The phrase {phrase!r:.60} of a box {what}.", "Name the thing in a few words.")
        rows.append([special.bos_token_id, *ids, special.eos_token_id])
    table = torch.tensor([row + [special.pad_token_id] * (window - len(row)) for row in rows], device=encoder.device)
    states = encoder(table).last_hidden_state
    ends = torch.tensor([len(row) - 1 for row in rows], device=states.device)
    return states[torch.arange(len(rows), device=states.device), ends].float()


def grounding_input(embeddings: Tensor, boxes: Tensor, masks: Tensor) -> dict[str, Any]:
    """Return `cross_attention_kwargs` of a UNet call, padded to `SLOTS` things a picture.

    Args:
        embeddings: (B, n, dim) of the phrases; the UNet's precision.
        boxes: (B, n, 4) float32, x0 y0 x1 y1 in fractions of the picture from its top left corner. They stay float32:
            in half precision the Fourier features would be off by pixels.
        masks: (B, n), 1 where there is a thing, 0 where the null vectors stand instead. All 0 is the null form.
    """
    more = SLOTS - embeddings.shape[1]
    if more < 0:
        raise ValueError(f"{embeddings.shape[1]} things, room is for {SLOTS}")
    return {
        "gligen": {
            "boxes": F.pad(boxes, (0, 0, 0, more)),
            "masks": F.pad(masks, (0, more)).to(embeddings.dtype),
            "positive_embeddings": F.pad(embeddings, (0, 0, 0, more)),
        }
    }


# -- adapter files ----------------------------------------------------------------------------------------------


def gated_parameters(unet: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the named parameters of the gated layers."""
    return ((name, parameter) for name, parameter in unet.named_parameters() if is_gated(name))


def save_adapter(
    tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write gated layers by themselves.

    Args:
        tensors: by their names in the UNet.
        path: `.safetensors` file.
        about: strings for the header beside the format: base, fingerprint, steps.
        dtype: precision in the file.
    """
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(stored, temporary, metadata={"format": "pt", "form": FORM, **about})


def load_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of an adapter file, and the strings of its header.

    A whole gated UNet is read too: its other tensors are left out.

    Raises:
        ModelError: if the file cannot be read or holds no gated layers.
    """
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys() if is_gated(name)}  # noqa: SIM118
            about = stored.metadata() or {}
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Give a .safetensors file of gated layers.") from None
    if not tensors:
        raise ModelError(f"{path} holds no gated layers.", "Give a file of fuser and position_net tensors.")
    return tensors, about
