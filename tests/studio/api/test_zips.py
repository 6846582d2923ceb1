"""Zips that are sent while they are written."""

from __future__ import annotations

import io
import zipfile

from studio.api.zips import _pieces


def test_a_file_larger_than_a_plain_zip_takes_is_sent_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # two gigabytes, in fact
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"x" * 5000)
    sent = b"".join(_pieces([("unet/weights.safetensors", weights), ("gone", tmp_path / "gone")]))
    with zipfile.ZipFile(io.BytesIO(sent)) as archive:
        assert archive.namelist() == ["unet/weights.safetensors"]
        assert archive.read("unet/weights.safetensors") == b"x" * 5000
