"""Metadata of a picture: AUTOMATIC1111's `parameters` for other programs, and our JSON with the exact request.

The JSON is only ever parsed, never evaluated; its size is capped, because pictures come from anywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.concepts.card import ConceptCard
from pipelines.errors import DataError, RequestError
from pipelines.files import whole_file
from pipelines.pictures.files import decoded
from pipelines.pictures.foreign_metadata import ForeignSettings, read_fields
from pipelines.pictures.png import texts
from pipelines.pictures.sources import found_again, recall, remember, shared_name
from pipelines.request.enlarge import Enlarge
from pipelines.request.request import SCHEMA, Request
from pipelines.request.samplers import SAMPLERS, SPACINGS
from pipelines.request.settings import Quantised, with_files

KEY = "promptstudio"
LIMIT = 1 << 20  # bytes of JSON that are read
Attention = Literal["sdpa", "xformers", "eager"]
Dtype = Literal["float32", "float16", "bfloat16"]
ATTENTIONS, DTYPES = get_args(Attention), get_args(Dtype)


class Network(NamedTuple):
    """A file of a concept as AUTOMATIC1111 names it in a picture."""

    name: str
    """Of the file, without its ending."""

    sum: str
    """The first digits of its SHA-256."""

    strength: float

    word: str = ""
    """Of an embedding, as prompts say it here; empty for a LoRA."""


@dataclass(frozen=True)
class Made:
    """The settings a picture was made with.

    Attributes:
        request: the resolved request.
        index: which of its pictures this is, from 0.
        base: name or path of the base model.
        fingerprint: of that base.
        concepts: cards of the concepts used.
        digests: digests of their contents, `Concept.digest()`; empty where an early picture does not tell them.
        attention: implementation used.
        dtype: precision used.
        networks: files of the concepts as other programs name them; only written into the text for these.
        quantise: what the base was kept in instead, if it was.
    """

    request: Request
    index: int
    base: str
    fingerprint: str
    concepts: tuple[ConceptCard, ...] = ()
    digests: tuple[str, ...] = ()
    attention: Attention = "sdpa"
    dtype: Dtype = "float32"
    networks: tuple[Network, ...] = ()
    quantise: Quantised | None = None


def own_version() -> str:
    """Return the version of this package, or "unknown" outside an installation."""
    try:
        return version("promptstudio")
    except PackageNotFoundError:
        return "unknown"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',\n:"') else text


def parameters(made: Made) -> str:
    """Return the text AUTOMATIC1111 writes for a picture, so that other programs read the basics."""
    request = made.request
    tags = [f"<lora:{one.name}:{one.strength:g}>" for one in made.networks if not one.word]
    lines = [" ".join([request.prompt, *(tag for tag in tags if tag not in request.prompt)])]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    fields: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": SAMPLERS[request.scheduler or "ddim"],
        "CFG scale": f"{request.guidance.scale:g}",
        "Seed": request.seed + made.index,
        "Size": f"{request.width}x{request.height}",
        "Model hash": made.fingerprint[:10],
        "Model": Path(made.base).name.removesuffix(".safetensors"),
    }
    if request.spacing != "own":
        fields["Schedule type"] = SPACINGS[request.spacing]
    if request.clip_skip > 1:
        fields["Clip skip"] = request.clip_skip
    if request.eta:
        fields["Eta"] = f"{request.eta:g}"
    fields |= _larger(request.enlarge)
    if request.inpaint is not None:
        fields["Denoising strength"] = f"{request.inpaint.strength:g}"
    if request.guidance.rescale:
        fields["CFG rescale"] = f"{request.guidance.rescale:g}"
    said = f"{request.prompt}\n{request.negative_prompt}"
    for name, files in (
        ("Lora hashes", [one for one in made.networks if not one.word]),
        ("TI hashes", [one for one in made.networks if one.word and one.word in said]),
    ):
        if files:
            fields[name] = ", ".join(f"{one.name}: {one.sum}" for one in files)
    if made.concepts:
        fields["Concepts"] = ", ".join(
            f"{card.token}: {use.strength:g}" for card, use in zip(made.concepts, request.concepts, strict=True)
        )
    fields["Version"] = f"Prompt Studio {own_version()}"
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items()))
    return "\n".join(lines)


def _larger(enlarge: Enlarge) -> dict[str, object]:
    """Return the fields of the second pass, if there is one."""
    if not enlarge.acts:
        return {}
    usual = "Latent" if enlarge.by == "latents" else "None"
    return {
        "Denoising strength": f"{enlarge.strength:g}",
        "Hires upscale": f"{enlarge.factor:g}",
        "Hires upscaler": Path(enlarge.upscaler).stem if enlarge.upscaler else usual,
    }


def save_png(picture: Image.Image, path: Path, made: Made) -> Path:
    """Write the picture with its metadata; the file is either complete or absent.

    Files outside the working folder are named without their folders; where they lie is kept on this machine.
    """
    files: dict[str, str] = {}

    def named(kind: str, text: str) -> str:
        files[shared_name(text)] = text
        return shared_name(text)

    told, base = with_files(made.request, named), shared_name(made.base)
    if made.base != "pocket":
        files[base] = made.base
    remember([base, made.fingerprint, list(made.digests), sorted(files)], files)
    info = PngInfo()
    info.add_itxt("parameters", parameters(made))
    own = {
        "schema": SCHEMA,
        "request": told.model_dump(mode="json"),
        "index": made.index,
        "base": base,
        "fingerprint": made.fingerprint,
        "attention": made.attention,
        "dtype": made.dtype,
        **({"quantise": made.quantise} if made.quantise else {}),
        "digests": list(made.digests),
        "concepts": [
            card.model_dump(mode="json", include={"token", "base", "base_fingerprint"}) for card in made.concepts
        ],
    }
    info.add_itxt(KEY, json.dumps(own, ensure_ascii=False))
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)
    return path


def read_foreign(path: Path) -> ForeignSettings | None:
    """Read the settings in a picture of AUTOMATIC1111, InvokeAI or ComfyUI; None if there are none."""
    try:
        chunks = texts(path)
    except OSError:
        return None
    return None if KEY in chunks else read_fields(chunks)


def read_made(path: Path) -> Made:
    """Read the settings a picture was made with.

    Raises:
        RequestError: if it is no such picture, or its data are damaged or from a newer version.
    """
    hint = "Give a PNG that studio generate wrote, unedited: other programs drop the data when they save."
    try:
        text = texts(path).get(KEY)
        if text is None:
            decoded(path, path.name)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", hint) from None
    except DataError as error:
        raise RequestError(error.message, hint) from None
    if text is None or len(text) > LIMIT:
        raise RequestError(f"{path.name} does not say how it was made.", hint)
    try:
        own = json.loads(text)
        if own["schema"] > SCHEMA:
            raise RequestError(
                f"{path.name} was made by a newer version (schema {own['schema']}).", "Update Prompt Studio."
            )
        request = Request.read(_as_then(own["request"]))
        index, base, fingerprint = int(own["index"]), str(own["base"]), str(own["fingerprint"])
        # The first pictures say neither what their concepts held nor how they were computed, which had one way then.
        digests = tuple(str(digest) for digest in own.get("digests", [""] * len(request.concepts)))
        attention, dtype = own.get("attention", ATTENTIONS[0]), own.get("dtype", DTYPES[0])
        form = own.get("quantise")
        known = attention in ATTENTIONS and dtype in DTYPES and form in (None, *get_args(Quantised))
        if len(digests) != len(request.concepts) or not known:
            raise ValueError("concepts or machine settings do not fit")
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise RequestError(f"What {path.name} says about itself is damaged: {error}.", hint) from None
    if not 0 <= index < request.count:
        raise RequestError(f"{path.name} claims to be picture {index} of {request.count}.", hint)
    return Made(request, index, base, fingerprint, (), digests, attention, dtype, quantise=form)


def _as_then(fields: Any) -> Any:
    """Return the fields of a picture's request with what was done before there was a field for it."""
    if isinstance(fields, dict) and isinstance(asked := fields.get("in_context"), dict):
        return fields | {"in_context": {"detail": 0.0} | asked}
    return fields


def with_its_files(made: Made, picture: Path) -> Made:
    """Return the settings of a picture with the files it names where they are on this machine; else as they are."""
    names = set() if made.base == "pocket" else {made.base}
    with_files(made.request, lambda kind, text: (names.add(text), text)[1])
    known = recall([made.base, made.fingerprint, list(made.digests), sorted(names)])
    base = made.base if made.base == "pocket" else found_again(made.base, picture, known)
    return replace(
        made, request=with_files(made.request, lambda kind, text: found_again(text, picture, known)), base=base
    )
