"""Options of learning on bases of rectified flow: on the two smallest, under the laws that UNets are under."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled
from tests import tiny, tiny_flows
from trainers.data.batches import LatentSet
from trainers.loop.train import train
from trainers.losses import conditioning, uncropped
from trainers.methods import methods
from trainers.run import run_of

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("z-image", "sd3")
SUBJECT = {"token": "zwx", "class_word": "fox", "steps": 4, "batch": 2, "learning_rate": 0.02, "scale_lr": False}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request):
    return tiny_flows.base(request.param)


def run(name="dreambooth", **more):
    return run_of(
        methods()[name], {"images": "x", "resolution": 32, **(SUBJECT if name == "dreambooth" else {}), **more}
    )


def equal(one, other):
    mine, others = one.tensors(), other.tensors()
    return set(mine) == set(others) and all(torch.equal(mine[key], others[key]) for key in mine)


def test_a_stopped_run_goes_on_bit_for_bit_and_keeps_its_candidates(base, tmp_path):
    before = tiny.snapshot(base)
    offered, again, asked = {}, {}, iter((False, False, True))
    whole = train(base, run(candidates=2), tiny.examples(), offer=offered.__setitem__)
    with pytest.raises(Cancelled):
        train(base, run(candidates=2), tiny.examples(), keep=tmp_path / "s", should_stop=lambda: next(asked))
    resumed = train(base, run(candidates=2), tiny.examples(), keep=tmp_path / "s", offer=again.__setitem__)
    assert equal(whole, resumed) and tiny.same(before, base)
    assert list(offered) == [2, 4] and equal(offered[4], whole) and not equal(offered[2], whole)
    assert equal(again[4], whole)


def test_masks_say_what_is_learned_and_captions_are_read(base):
    white, left = (Image.new("L", (16, 16), 255) for _ in range(2))
    left.paste(0, (8, 0, 16, 16))
    example = replace(tiny.examples(1)[0], source=tiny.examples(1)[0].picture.resize((16, 16)))
    found = []
    for mask, captions in ((None, ()), (white, ()), (left, ()), (None, ("a {} on a hat",))):
        one = replace(example, mask_source=mask, captions=captions)
        found.append(train(base, run(steps=2, background=0.0, flip=0.0), [one]))
    plain, everywhere, half, captioned = found
    pairs = zip(plain.tensors().values(), everywhere.tensors().values(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs), "all white is no mask"
    assert not equal(plain, half) and not equal(plain, captioned)


def test_two_subjects_are_learned_apart_also_side_by_side(base, tmp_path):
    the_run = run(also=("x:vqj:cat",), cut_mix=0.5, steps=3, flip=0.0)
    words = ["zwx fox", "vqj cat"]
    examples = [replace(one, word=words[place % 2]) for place, one in enumerate(tiny.examples(4))]
    concept = train(base, the_run, examples)
    assert [concept.card.token, *(one.card.token for one in concept.partners)] == words
    loaded = [Concept.load(one.save(tmp_path / f"{place}.safetensors")) for place, one in
              enumerate((concept, *concept.partners))]  # fmt: skip
    assert all(one.changes.keys() == concept.changes.keys() for one in loaded)
    with the_run.method.prepare(base, the_run.config, torch.Generator().manual_seed(0)) as trainable:
        mixed = [one for one in trainable.completed(examples, the_run.data, 0) if one not in examples]
        assert any("of" in text or "above" in text or "below" in text for one in mixed for text in one.captions)


def test_a_relation_is_learned_where_the_encoder_takes_a_row(base, tmp_path):
    settings = {"token": "<thing>", "init": "fox", "left": "fox", "right": "cat", "steps": 3, "batch": 2}
    settings |= {"basis": ("fox", "cat", "hat")}
    the_run = run("reversion", **settings, learning_rate=0.02, scale_lr=False)
    before = tiny.snapshot(base)
    concept = train(base, the_run, tiny.examples())
    assert equal(concept, train(base, the_run, tiny.examples())) and tiny.same(before, base)
    loaded = Concept.load(concept.save(tmp_path / "c.safetensors"))
    assert len(concept.rows) == len(base.text_encoders) and equal(concept, loaded)
    with loaded.attach(base) as taught:
        told, plain = (conditioning(taught, [text], uncropped(1, (32, 32)), (32, 32))
                       for text in ("fox <thing> cat", "fox fox cat"))  # fmt: skip
    key = next(iter(told))
    assert told[key].shape == plain[key].shape and not torch.equal(told[key], plain[key])


ALL = {"sd": tiny.sd, "sdxl": tiny.sdxl} | {one: lambda one=one: tiny_flows.base(one) for one in tiny_flows.PIPELINES}


@pytest.mark.parametrize("family", ALL)
def test_checkpointed_gradients_are_those_of_kept_activations(family):
    base, the_run = ALL[family](), run(token="cow")
    data = LatentSet(base, tiny.examples(), resolution=32)
    found = []
    with the_run.method.prepare(base, the_run.config, torch.Generator().manual_seed(0)) as trainable:
        for checkpointed in (False, True):
            if checkpointed:
                base.denoiser.enable_gradient_checkpointing()
            calls: list[object] = []
            blocks = [one for one in base.denoiser.modules() if type(one).__name__.endswith(("Block", "Block2D"))]
            hooks = [one.register_forward_pre_hook(lambda *of, calls=calls: calls.append(of)) for one in blocks]
            batch = data.draw(0, 1, "cow", trainable.templates, torch.Generator().manual_seed(0))
            terms = the_run.method.losses(trainable, batch, torch.Generator().manual_seed(1))
            torch.stack(list(terms.values())).sum().backward()
            found.append(([one.grad for one in trainable.parameters.values() if one.grad is not None], len(calls)))
            for one in trainable.parameters.values():
                one.grad = None
            for hook in hooks:
                hook.remove()
    (kept, once), (again, twice) = found
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(kept, again, strict=True))
    assert twice > once, "blocks are computed again in the backward pass"
