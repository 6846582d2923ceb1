"""Facts that a base model tells of itself: family, sizes, licence, default settings, and whether it can be read.

Only configurations and headers are read, so that nothing of a base is loaded, and each once until its files change.
Needs no torch.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.concepts.card import read_header
from pipelines.concepts.compatibility import Stamp, base_files, family_of_names, stamp
from pipelines.errors import ConceptError
from pipelines.models import POCKET
from pipelines.models.families.known import KNOWN, Known, family_of, kind_of, said_distilled
from pipelines.request.request import Defaults

SIDES = {"pocket": 64, "": 512, "sd1": 512, "sd2": 768}
"""Side of the square pictures of a family in pixels, where its files do not say; others draw 1024."""
NATIVE = 128
"""Side of the latents of published transformers."""
README, LICENCE = "README.md", re.compile(r"^licen[sc]e(?:_name)?:\s*[\"']?([^\"'\n]{1,100})", re.MULTILINE)
LONGEST = 1 << 16
"""Bytes of a README that are searched for its licence, which stands at the top."""
AGAIN = "Get it again, or take it away."


@dataclass(frozen=True)
class BaseCard:
    """A base model, as far as its files tell.

    Attributes:
        family: its name, as on concepts; empty if unknown.
        title: of the family, as people call it.
        layout: "folder" of diffusers, or "file".
        bytes: on disk.
        numbers: of all weights that are loaded.
        licence: as the folder or the file has it; empty if it does not tell.
        defaults: settings of a request that gives none; None if it cannot be read.
        inpainting: whether a UNet that sees the rest of the picture repaints; else latents are blended.
        boxes: whether it has gated layers that place things in boxes.
        distilled: whether it was distilled to few steps.
        problem: why it cannot be read; empty if it seems whole.
        hint: what to do then.
    """

    family: str = ""
    title: str = ""
    layout: str = "folder"
    bytes: int = 0
    numbers: int = 0
    licence: str = ""
    defaults: Defaults | None = None
    inpainting: bool = False
    boxes: bool = False
    distilled: bool = False
    problem: str = ""
    hint: str = ""

    @property
    def judged(self) -> bool:
        """Presence of a judge of its pictures; assumed where the family is not known yet."""
        return not self.family or KNOWN[self.family] is KNOWN["pocket"]

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of its weights on a GPU (half precision) and on a CPU (full)."""
        return 2 * self.numbers, 4 * self.numbers


class _Unfit(Exception):  # noqa: N818 - why a base cannot be read, and what to do
    """Holds the reason and the next step."""


def base_card(base: str) -> BaseCard:
    """Return the card of a base: "pocket", a folder, or a file; of a hub id nothing is known before it is loaded."""
    path = POCKET if base == "pocket" else Path(base)
    return _read(path, stamp(path))


@lru_cache(256)
def _read(path: Path, stamp: Stamp) -> BaseCard:
    # Those of `os.path` take any text, also one that no file system does.
    layout = "folder" if os.path.isdir(path) else "file" if os.path.isfile(path) else "hub"
    size = sum(one[2] for one in stamp)
    try:
        return replace(
            {"folder": _of_folder, "file": _of_file, "hub": _unknown}[layout](path), layout=layout, bytes=size
        )
    except _Unfit as error:
        return BaseCard(layout=layout, bytes=size, problem=error.args[0], hint=error.args[1])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        why = f"Its configurations cannot be read ({type(error).__name__})."
        return BaseCard(layout=layout, bytes=size, problem=why, hint=AGAIN)


def _unknown(path: Path) -> BaseCard:
    return BaseCard()


# -- folders ------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> BaseCard:
    index = _config(folder / "model_index.json", folder)
    family = family_of(folder, index)
    parts = [part for part in (KNOWN[family].parts if family else ()) if kind_of(index, part)]
    if not family:
        titles = ", ".join(one.title for one in KNOWN.values())
        raise _Unfit("It is of a family that is not supported.", f"Known are {titles}.")
    known = KNOWN[family]
    if missing := [part for part in known.parts if part not in parts and part not in known.optional]:
        raise _Unfit(f"It has no {', '.join(missing)}.", f"Use a complete folder of {known.title}.")
    headers = {part: list(_headers(folder, part)) for part in parts if not part.startswith("tokenizer")}
    denoiser = next(part for part in ("unet", "transformer") if part in headers)
    config = _config(folder / denoiser / "config.json", folder)
    quick = _quick(folder, family, index, config)
    schedule = _config(folder / "scheduler" / "scheduler_config.json", folder)
    rescale = 0.7 if schedule.get("rescale_betas_zero_snr") and known.rescales else 0.0
    return BaseCard(
        family,
        known.title,
        numbers=sum(map(_numbers, (one for part in headers.values() for one in part))),
        licence=_licence(folder),
        defaults=known.defaults(_side(folder, family, config), quick, rescale),
        inpainting=config.get("in_channels") == 9 or (folder / "unet_inpainting").is_dir(),
        boxes=any(".fuser." in name for one in headers[denoiser] for name in one),
        distilled=quick or said_distilled(str(folder)),
    )


def _config(file: Path, folder: Path) -> dict[str, Any]:
    name = file.relative_to(folder)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        hint = "A base is a folder in the layout of diffusers, or one .safetensors file."
        raise _Unfit(f"It holds no {name}.", hint) from None
    except (OSError, ValueError, TypeError, RecursionError):
        raise _Unfit(f"Its {name} cannot be read.", AGAIN) from None


def _headers(folder: Path, part: str) -> Iterator[Mapping[str, Any]]:
    """Return the headers of the files that a part is loaded from."""
    found = sorted((folder / part).glob("*.safetensors"))
    found = [path for path in found if ".fp16" not in path.name] or found
    if not found:
        pickled = any((folder / part).glob("*.bin"))
        why = "as pickles alone (.bin), which can run code" if pickled else "not at all"
        raise _Unfit(f"The weights of its {part} are there {why}.", "Get the .safetensors files.")
    for path in found:
        try:
            yield read_header(path)
        except ConceptError:
            raise _Unfit(f"{part}/{path.name} is damaged, or not whole.", AGAIN) from None


def _numbers(header: Mapping[str, Any]) -> int:
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")


def _quick(folder: Path, family: str, index: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether a base's default settings are those of few steps, as its family has it."""
    if "unet" in KNOWN[family].parts:
        return bool(config.get("time_cond_proj_dim"))
    schnell = KNOWN[family].told_scale and not config.get("guidance_embeds")
    return schnell or bool(index.get("is_distilled")) or said_distilled(str(folder))


def _side(folder: Path, family: str, config: Mapping[str, Any]) -> int:
    """Return the side of the pictures that a base was made for: of its latents, times the pixels per latent."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        halved = (
            vae.get("temperal_downsample") or (vae.get("block_out_channels") or vae["decoder_block_out_channels"])[1:]
        )
        known = KNOWN[family]
        latents = config["sample_size"] if known.sized or "unet" in known.parts else NATIVE
        return int(latents) * 2 ** len(halved) * known.packed
    return SIDES.get(family, 1024)


def _licence(folder: Path) -> str:
    """Return the licence that a folder tells: at the top of its README, or by a file of its own."""
    with suppress(OSError), (folder / README).open(encoding="utf-8", errors="replace") as stream:
        if found := LICENCE.search(stream.read(LONGEST)):
            return found[1].strip()
    files = sorted(path.name for path in folder.glob("LICEN[SC]E*"))
    return f"see {files[0]}" if files else ""


# -- files --------------------------------------------------------------------------------------------------------


def _of_file(path: Path) -> BaseCard:
    if path.suffix != ".safetensors":
        raise _Unfit("It is no .safetensors file; other checkpoints are pickles, which can run code.", "Convert it.")
    try:
        header = read_header(path)
    except ConceptError:
        raise _Unfit("It is damaged, or not whole.", AGAIN) from None
    family = family_of_names(header)
    first = header.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is None:
        raise _Unfit(
            "It is no checkpoint of Stable Diffusion: it has no UNet.", "A LoRA or an embedding is imported instead."
        )
    if not family:
        raise _Unfit("It holds no text encoder that is known.", "Get the folder in the layout of diffusers.")
    known: Known = KNOWN[family]
    side = SIDES.get(family, 1024)
    return BaseCard(
        family,
        known.title,
        numbers=_numbers(header),
        licence=str(header.get("__metadata__", {}).get("modelspec.license", ""))[:100],
        defaults=known.defaults(side, quick=False),
        inpainting=first["shape"][1] == 9,
        distilled=said_distilled(str(path)),
    )


def side_of(base: str) -> int:
    """Return the side in pixels of the pictures a base was made for, as far as its files tell."""
    found = base_card(base).defaults
    return found.size if found else SIDES.get(base_files(base).family, 1024)
