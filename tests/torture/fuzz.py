"""Mutated concept files through the importer: each is read, or refused in one sentence; nothing runs, nothing escapes.

python -m tests.torture.fuzz --files 10000
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import resource
import shutil
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from pipelines.concepts.formats.peft_folders import CONFIG, MODEL
from pipelines.concepts.formats.png_embeddings import _sequence
from pipelines.errors import ConceptError
from studio.library.import_export import import_concept

MEMORY = 512 << 10  # KiB of growth that is allowed
FLOOD = (
    "{}",
    "null",
    "[]",
    "-1",
    "1e999",
    str(2**63),
    str(2**70),
    '"F32"',
    '"BOOL"',
    "NaN",
    "0",
    '"' + "a" * 300 + '"',
)


class Malice:
    """A pickle that makes a folder when it is run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def pickled(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def pictured(content: object) -> bytes:
    text, stream = PngInfo(), io.BytesIO()
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=text)
    return stream.getvalue()


def hidden(content: object) -> bytes:
    """A picture with an embedding at its borders."""
    data, stream = np.frombuffer(zlib.compress(json.dumps(content).encode()), np.uint8), io.BytesIO()
    blocks = []
    for half in (data & 0x0F, data >> 4):
        block = np.resize(half, -(-len(data) // 48) * 48)
        blocks.append((block ^ (_sequence(block.size) & 0x0F) | 0x50).reshape(16, -1, 3))
    gap, inside = np.zeros((16, 1, 3), np.uint8), np.full((16, 8, 3), 77, np.uint8)
    Image.fromarray(np.concatenate((blocks[0], gap, inside, gap, blocks[1]), axis=1)).save(stream, "PNG")
    return stream.getvalue()


def repainted(content: bytes, rng: random.Random) -> bytes:
    """A picture with some pixels changed."""
    pixels, stream = np.array(Image.open(io.BytesIO(content))), io.BytesIO()
    for _ in range(rng.choice((1, 3, 30))):
        pixels[rng.randrange(len(pixels)), rng.randrange(pixels.shape[1])] = rng.randrange(256)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def originals(trace: Path) -> list[bytes]:
    rows, pair = torch.ones(2, 8), {"down": torch.ones(2, 8), "up": torch.ones(8, 2)}
    query = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    lora = {f"{query}.lora_{role}.weight": tensor for role, tensor in pair.items()} | {f"{query}.alpha": torch.ones(())}
    peft = {f"unet.a.to_q.lora_{'A' if role == 'down' else 'B'}.weight": tensor for role, tensor in pair.items()}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.alpha_pattern": {"to_q": 3}})}
    return [
        save({"<x>": rows}, {"modelspec.trigger_phrase": "<x>"}),
        save({"clip_l": rows, "clip_g": torch.full((2, 12), float("nan"))}),
        save(lora, {"ss_base_model_version": "sd_v1"}),
        save(peft, header),
        pickled({"<x>": rows}),
        pickled({"string_to_param": {"*": rows}, "name": "x"}),
        pickled({"<x>": rows, "y": Malice(trace)}),
        pickled({"<x>": torch.nn.Parameter(rows.half())}),
        save({f"{query}.diff": torch.ones(8, 8), f"{query}.diff_b": torch.ones(8), f"{query}.w_norm": torch.ones(8)}),
        pictured({"string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}}, "name": "x"}),
        hidden({"string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}}, "name": "x"}),
    ]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut or repeated, header lengths and fields replaced, or members of an archive renamed."""
    changed, way = bytearray(content), rng.randrange(6)
    plain = content[:2] not in (b"PK", b"\x89P")  # safetensors
    if way == 0:
        return bytes(changed[: rng.randrange(len(changed))])
    if way == 1 and plain:
        length = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, rng.randrange(2 * len(content))))
        return struct.pack("<Q", length) + content[8:]
    if way == 2 and plain:
        (length,) = struct.unpack("<Q", content[:8])
        header, at = content[8 : 8 + length].decode(), rng.randrange(length)
        spot = next((k for k in range(at, length) if header[k] in ":[,"), at)
        header = header[: spot + 1] + rng.choice(FLOOD) + header[spot + rng.randrange(1, 12) :]
        return struct.pack("<Q", len(header)) + header.encode() + content[8 + length :]
    if way == 3 and content[:2] == b"PK":
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
            for info in old.infolist():
                prefix = rng.choice(("", "../" * 6, "/", "a/"))
                link = zipfile.ZipInfo(prefix + info.filename)
                link.external_attr = rng.choice((0o644, 0o120777)) << 16  # a link now and then
                new.writestr(link, old.read(info))
        return stream.getvalue()
    if way == 3 and content[:2] == b"\x89P":
        return repainted(content, rng)
    if way == 4:
        at, length = rng.randrange(len(changed)), rng.randrange(1, 64)
        changed[at:at] = changed[at : at + length] * rng.randrange(1, 20)
        return bytes(changed)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


def adapter(folder: Path, rng: random.Random) -> Path:
    """A folder of PEFT whose configuration, tensors or both are mutated."""
    pair = {f"base_model.model.a.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    files = {
        MODEL: save(pair, {"format": "pt"}),
        CONFIG: json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "alpha_pattern": {"to_q": 1}}).encode(),
    }
    folder.mkdir()
    for name in rng.choice(((MODEL,), (CONFIG,), (MODEL, CONFIG))):
        content = files[name]
        at = rng.randrange(len(content))
        flooded = content[:at] + rng.choice(FLOOD).encode() + content[at + rng.randrange(12) :]
        files[name] = mutated(content, rng) if name == MODEL else flooded
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def fuzz(files: int, seed: int, work: Path) -> dict[str, int]:
    """Import so many; raises at the first that does worse than a sentence."""
    rng, trace = random.Random(seed), work / "trace"
    whole, count = originals(trace), {"read": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(files):
        library = work / "library"
        if rng.random() < 0.1:
            source = adapter(work / "x", rng)
        else:
            source = work / f"x.{rng.choice(('safetensors', 'pt', 'bin'))}"
            source.write_bytes(mutated(rng.choice(whole), rng))
        try:
            import_concept(source, None, library).unlink()
            count["read"] += 1
        except ConceptError as error:
            assert error.message and "\n" not in error.message and len(str(error)) < 2000, error
            count["refused"] += 1
        source.unlink() if source.is_file() else shutil.rmtree(source)
        assert {place.name for place in work.iterdir()} <= {"library"}, "something was made outside the library"
        assert not library.exists() or not list(library.iterdir())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        print(json.dumps(fuzz(arguments.files, arguments.seed, Path(folder))))
