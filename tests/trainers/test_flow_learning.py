"""Learning on bases of rectified flow: laws of every family, and the traps that other trainers fell into."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import new_words, single_rows, word_ids
from pipelines.errors import ConceptError, ConfigError
from pipelines.events import Note
from pipelines.generation import generate
from pipelines.models.components import decode
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny, tiny_flows
from trainers.data.batches import LatentSet
from trainers.loop.train import train
from trainers.losses import conditioning, predicted, process_of, uncropped
from trainers.methods import methods
from trainers.methods.parts.identifiers import rare_identifiers
from trainers.run import Run
from trainers.settings import DataConfig, ObjectiveConfig, TrainConfig

FAMILIES = list(tiny_flows.PIPELINES)
METHODS = methods()
SETTINGS = {
    "textual-inversion": {"token": "<thing>", "init": "fox"},
    "dreambooth": {"token": "zwx", "class_word": "fox"},
    "pivotal": {"token": "<thing>", "class_word": "fox", "pivotal": True, "targets": "all"},
    "whole": {"token": "zwx", "class_word": "fox", "form": "full"},
}


def run(name, **pace):
    method = METHODS[name if name in METHODS else "dreambooth"]
    pace = {"steps": 3, "batch": 2, "learning_rate": 1e-2, "scale_lr": False} | pace
    return Run(method, method.Settings(**SETTINGS[name]), TrainConfig(**pace), DataConfig(images="x", resolution=32))


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def shape_of(base, count=2):
    return (count, base.channels, 32 // base.factor, 32 // base.factor)


def prediction(base, trigger):
    generator = seeded(3)
    clean, noise = (torch.randn(shape_of(base), generator=generator) for _ in range(2))
    with torch.no_grad():
        told = conditioning(base, [f"a photo of {trigger} on a hat", "a cat"], uncropped(2, (32, 32)), (32, 32))
        process = base.family.process(base)
        return predicted(base, clean, process.at(torch.tensor([300, 700])), noise, process, told)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_laws_of_learning_hold(family, name, tmp_path):
    """Only what is declared learns, it predicts what its file predicts, and the base is bit-equal afterwards."""
    base, the_run = tiny_flows.base(family), run(name)
    before, untaught = tiny.snapshot(base), prediction(base, the_run.config.trigger)
    data = LatentSet(base, tiny.examples(), resolution=32)
    with the_run.method.prepare(base, the_run.config, seeded()) as trainable:
        parameters = list(trainable.parameters.values())
        optimizer = torch.optim.SGD(parameters, 0.05)
        for _ in range(2):  # what starts as zero beside something lets no gradient through at first
            optimizer.zero_grad()
            batch = data.draw(0, 2, the_run.config.trigger, trainable.templates, seeded(0))
            torch.stack(list(the_run.method.losses(trainable, batch, seeded(1)).values())).sum().backward()
            optimizer.step()
        idle = [n for n, p in trainable.parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not [name for name in idle if not unread(family, name)]
        declared = {id(parameter) for parameter in parameters}
        others = [p for module in base.modules() for p in module.parameters() if id(p) not in declared]
        assert all(parameter.grad is None for parameter in others)
        with torch.no_grad():
            for n, parameter in trainable.parameters.items():
                step = 0.002 if n.endswith((".weight", ".bias", "token")) else 0.1
                parameter.add_(step * torch.randn(parameter.shape, generator=seeded(len(n))))
        wanted = prediction(trainable.components, the_run.config.trigger)
        concept = the_run.method.export(trainable)
    assert tiny.same(before, base)
    assert (wanted - untaught).abs().max() > 1e-3
    loaded = Concept.load(concept.save(tmp_path / "c.safetensors"))
    assert loaded.card.family == family
    for one in (concept, loaded):
        with one.attach(base) as taught:
            assert (prediction(taught, the_run.config.trigger) - wanted).abs().max() < 1e-4
    assert torch.equal(prediction(base, the_run.config.trigger), untaught)


def unread(family, name):
    """Return whether no picture depends on a weight: the text side of the last block goes nowhere."""
    last = ("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.ff_context", "transformer_blocks.1.txt_mlp")
    queries = ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.norm_added_q")
    if family == "sd3":  # its last block has no text side behind attention
        return any(part in name for part in queries)
    if family == "qwen-image":
        return any(part in name for part in (*last, *queries, "transformer_blocks.1.txt_mod", "txt_norm2"))
    return name.endswith("pad_token")  # sequences of these sizes need none


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_reach_every_block(family):
    """A list made for the double blocks alone would leave all single-stream blocks out."""
    base = tiny_flows.base(family)
    blocks = {
        name
        for name, module in base.denoiser.named_modules()
        if name.rpartition(".")[2].isdigit() and isinstance(base.denoiser.get_submodule(name.rpartition(".")[0]),
                                                            torch.nn.ModuleList) and name.count(".") <= 2
        and "block" in type(module).__name__.lower()
    }  # fmt: skip
    assert len(blocks) >= 4 or family in ("sd3", "qwen-image")
    concept = train(base, run("dreambooth", learning_rate=0.05), tiny.examples())
    moved = {name for name, change in concept.changes.items() if float(change.up.abs().max()) > 1e-4}
    for block in blocks:
        assert any(name.startswith(f"transformer.{block}.") for name in moved), block


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_diffusers_draws_with_the_saved_file_what_the_studio_draws(family, tmp_path):
    base = tiny_flows.base(family)
    concept = train(base, run("dreambooth", learning_rate=0.05), tiny.examples())
    path = concept.save(tmp_path / "zwx.safetensors")
    fresh = tiny_flows.pipeline(family)
    told = {"prompt": "zwx fox", "num_inference_steps": 3, "height": 32, "width": 32, "output_type": "pt"}
    told |= {"qwen-image": {"true_cfg_scale": 1.0}}.get(family, {"guidance_scale": 1.0})
    told |= {"guidance_scale": 0.0} if family in ("z-image", "krea2") else {}
    plain = fresh(**told, generator=seeded(3)).images
    fresh.load_lora_weights(str(tmp_path), weight_name=path.name)
    theirs = fresh(**told, generator=seeded(3)).images
    assert (theirs - plain).abs().max() > 5e-3, "it has an effect"
    request = Request(prompt="zwx fox", steps=3, width=32, height=32, seed=3, guidance=Guidance(scale=1.0),
                      concepts=(ConceptUse(source="x"),))  # fmt: skip
    ours = generate(base, request, concepts={"x": Concept.load(path)}).latents
    assert ((decode(base, ours) / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-5


# -- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_word_begins_as_the_row_of_a_word_within_a_sentence(family):
    """Before anything is learned, prompts with it are those with the word it starts from; its row has a gradient."""
    base = tiny_flows.base(family)
    with new_words(base, "<thing>", single_rows(base, "fox")) as words:
        both = [conditioning(one, [text], uncropped(1, (32, 32)), (32, 32))
                for one, text in ((words.components, "a <thing> on a hat"), (base, "a fox on a hat"))]  # fmt: skip
        for key, value in both[0].items():
            torch.testing.assert_close(value, both[1][key], msg=key)
        noise = torch.randn(shape_of(base, 1), generator=seeded())
        base.family.predict(words.components, noise, torch.tensor([0.5]), both[0]).square().mean().backward()
        for row in words.rows:
            assert row.grad is not None and row.grad.abs().sum() > 0


def test_byte_level_tokenizers_give_the_word_its_space():
    tokenizer = tiny_flows.qwen_tokenizer()
    assert tokenizer.convert_ids_to_tokens(word_ids(tokenizer, "fox")) == ["Ġfox"]
    base = tiny_flows.base("z-image")
    with new_words(base, "<thing>", single_rows(base, "fox")) as words:
        ids = words.components.tokenizers[0]("a <thing> cat").input_ids
        assert words.components.tokenizers[0].convert_ids_to_tokens(ids) == ["a", "<thing>", "Ġcat"]


@pytest.mark.parametrize("family", FAMILIES)
def test_words_of_several_vectors_are_written_out_in_every_encoder(family):
    base = tiny_flows.base(family)
    starts = tuple(row.expand(3, -1) for row in single_rows(base, "fox"))
    with new_words(base, "<thing>", starts) as words:
        told = conditioning(words.components, ["a <thing>"], uncropped(1, (32, 32)), (32, 32))
        same = conditioning(base, ["a fox fox fox"], uncropped(1, (32, 32)), (32, 32))
        for key, value in told.items():
            torch.testing.assert_close(value, same[key], msg=key)


def test_a_word_that_the_base_knows_is_refused_whatever_marks_its_spaces():
    for family in ("z-image", "flux1"):
        base = tiny_flows.base(family)
        with pytest.raises(ConceptError, match="already a word"), new_words(base, "hat", single_rows(base, "fox")):
            pass


# -- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"snr_gamma": 5.0}, r"--snr-gamma .*flow.*--sigmas"), ({"offset_noise": 0.1}, r"--offset-noise .*Leave it out")],
)
def test_settings_that_mean_nothing_for_flow_are_refused_in_words(settings, said):
    base = tiny_flows.base("z-image")
    for name in ("textual-inversion", "dreambooth"):
        the_run = run(name)
        config = the_run.method.Settings(**SETTINGS[name], **settings)
        with pytest.raises(ConfigError, match=said), the_run.method.prepare(base, config, seeded()):
            pass


@pytest.mark.parametrize("settings", [{"sigmas": "uniform"}, {"shift": 3.0}])
def test_settings_of_flow_are_refused_where_there_are_timesteps(settings):
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))} is for bases of rectified flow"):
        process_of(tiny.sd(), ObjectiveConfig(**settings))


@pytest.mark.parametrize("sigmas", ["logit-normal", "uniform"])
@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_follow_the_distribution_that_is_asked_for(sigmas, spread, shift):
    process = process_of(tiny_flows.base("z-image"), ObjectiveConfig(sigmas=sigmas, shift=shift))
    drawn = process.draw(4000, spread, seeded())
    assert float(drawn.min()) > 0 and float(drawn.max()) < 1
    back = drawn / (shift - (shift - 1) * drawn)  # without the shift
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    wanted = quantiles if sigmas == "uniform" else torch.special.ndtri(quantiles).sigmoid()
    assert (back.quantile(quantiles) - wanted).abs().max() < 0.025


def test_flux_learns_at_a_guidance_scale_of_one_and_schnell_is_told_none():
    for guidance, wanted in ((True, [1.0, 1.0]), (False, None)):
        base = tiny_flows.base("flux1", guidance=guidance)
        told = conditioning(base, ["a fox", "a cat"], uncropped(2, (32, 32)), (32, 32))
        assert (told["guidance"].tolist() if "guidance" in told else None) == wanted
    told = base.family.told_scale(tiny_flows.base("flux1"), 3.5, 3)
    assert told["guidance"].tolist() == [3.5] * 3


def test_distilled_bases_are_advised_against_with_the_base_to_use_instead():
    for family, options, wanted in [
        ("flux1", {"guidance": False}, "FLUX.1-dev"),
        ("flux2", {"distilled": True}, "klein-base"),
        ("krea2", {"distilled": True}, "Krea-2-Raw"),
    ]:
        said = []
        base = tiny_flows.base(family, **options)
        train(base, run("dreambooth", steps=1), tiny.examples(), on_event=said.append)
        assert [one for one in said if isinstance(one, Note) and "was distilled" in one.text and wanted in one.text]
        assert base.defaults.scale == 1.0 and base.defaults.steps <= 8
        base = tiny_flows.base(family)
        assert not base.family.better_base(base)


def test_rare_identifiers_and_text_encoders_are_refused_where_language_models_read():
    base = tiny_flows.base("qwen-image")
    with pytest.raises(ConfigError, match=r"CLIP's vocabulary.*any words"):
        rare_identifiers(base, "fox")
    method = METHODS["dreambooth"]
    config = method.Settings(token="zwx", class_word="fox", text_encoder=True)
    with pytest.raises(ConfigError, match=r"stay as they are.*--pivotal"), method.prepare(base, config, seeded()):
        pass


def test_batch_statistics_of_the_autoencoder_of_klein_are_neither_learned_nor_lost(tmp_path):
    from diffusers import Flux2KleinPipeline

    from pipelines.concepts.model_export import export_model

    base = tiny_flows.base("flux2")
    before = {name: value.clone() for name, value in base.vae.bn.named_buffers()}
    concept = train(base, run("whole", learning_rate=1e-3), tiny.examples())
    assert not [name for name in concept.changes if not name.startswith("transformer.")]
    folder = export_model(base, [(concept, 1.0)], tmp_path / "whole")
    for vae in (base.vae, Flux2KleinPipeline.from_pretrained(folder).vae):
        assert all(torch.equal(value, before[name]) for name, value in vae.bn.named_buffers())
