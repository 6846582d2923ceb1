"""REST on the real jobs: what is asked, what is answered, and what is said when it cannot be."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from starlette.testclient import TestClient

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_pictures
from pipelines.request.request import Request
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs.specs import of_clients
from tests.studio.library.test_datasets import archive, picture
from tests.torture.requests import fuzz
from tests.waiting import LIMIT, joined
from trainers.methods import configs, methods
from trainers.settings import TrainConfig
from trainers.stickers.world import Placed, Scene, Stickers


@pytest.fixture(scope="module")
def web(jobs):
    return TestClient(guarded(rest(jobs), Door()), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture
def dataset(web):
    return web.post("/api/v1/datasets", json={"name": "x"}).json()["id"]


def told(answer):
    """The events of a stream: number, kind, data."""
    events = []
    for block in answer.text.strip().split("\n\n"):
        if block.startswith(":"):  # a sign of life
            continue
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        events.append((int(lines["id"]), lines["event"], json.loads(lines["data"])))
    return events


def test_every_field_of_requests_and_configurations_is_in_the_description(web):
    schemas = web.get("/api/v1/openapi.json").json()["components"]["schemas"]
    assert set(schemas["Request"]["properties"]) == set(Request.model_fields)
    for method, config in configs().items():
        shown = web.get(f"/api/v1/methods/{method}").json()["properties"]
        fields = {**config.model_fields, **TrainConfig.model_fields}
        offered = {name for name, field in fields.items() if name not in config.unused and of_clients(name, field)}
        assert set(shown) >= {*offered, "keep_every"} and offered >= {"steps", "learning_rate"}
        assert not {"images", "cache", "output", "base"} & set(shown)


def test_pictures_are_asked_for_watched_and_fetched(web, ended):
    asked = {"request": {"prompt": "a fox", "steps": 3, "guidance": {"scale": 3}, "seed": 5, "count": 2}}
    answer = web.post("/api/v1/generations", json=asked, headers={"idempotency-key": "once"})
    assert answer.status_code == 202 and answer.headers["location"] == answer.json()["links"]["self"]
    where = answer.headers["location"]
    assert web.post("/api/v1/generations", json=asked, headers={"idempotency-key": "once"}).json()["id"] in where
    other = {"request": {"prompt": "a cat"}}
    assert web.post("/api/v1/generations", json=other, headers={"idempotency-key": "once"}).status_code == 409
    events = told(web.get(f"{where}/events"))  # comes to its end with the job
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert [data["step"] for _, kind, data in events if kind == "step"] == [1, 2, 3]
    assert events[-1][1:] == ("state", events[-1][2]) and events[-1][2]["state"] == "done"
    middle = str(events[2][0])
    assert told(web.get(f"{where}/events", headers={"last-event-id": middle})) == events[3:]
    assert web.get(f"{where}/events?after={events[-1][0]}").status_code == 204
    done = web.get(where).json()
    assert (done["state"], done["step"], len(done["pictures"])) == ("done", 3, 2)
    drawn = web.get(done["pictures"][1])
    assert drawn.headers["content-type"] == "image/png" and drawn.headers["x-content-type-options"] == "nosniff"
    assert "a fox" in Image.open(io.BytesIO(drawn.content)).text["parameters"]
    assert done["id"] in [one["id"] for one in web.get("/api/v1/generations?state=done").json()]
    assert web.get(where.replace("generations", "runs")).status_code == 404
    assert web.delete(where).status_code == 204
    assert web.get(where).status_code == web.get(done["pictures"][0]).status_code == 404


def test_where_words_look_is_a_job_with_a_picture_for_each_word(web, ended):
    drawn = web.post("/api/v1/generations", json={"request": {"prompt": "a fox", "steps": 2, "seed": 3, "count": 2}})
    ended(drawn.json()["id"])
    answer = web.post("/api/v1/attentions", json={"generation": drawn.json()["id"], "picture": 1})
    assert answer.status_code == 202 and answer.json()["kind"] == "attention"
    where = answer.headers["location"]
    events = told(web.get(f"{where}/events"))
    assert [data["step"] for _, kind, data in events if kind == "step"] == [1, 2]
    ((_, _, data),) = [one for one in events if one[1] == "words"]
    assert [one["word"] for one in data["words"]] == ["a", "fox"] and all(0 < one["most"] < 1 for one in data["words"])
    done = web.get(where).json()
    pictures = [web.get(one) for one in done["pictures"]]
    assert [Image.open(io.BytesIO(one.content)).size for one in pictures] == [(64, 64)] * 2
    assert pictures[0].content != pictures[1].content
    with np.load(io.BytesIO(web.get(done["files"][0]).content)) as maps:
        assert set(maps.files) == {"a", "fox"} and float(maps["fox"].max()) == pytest.approx(
            data["words"][1]["most"], abs=1e-4
        )
    for order, said in (({"picture": 2}, "has no picture 2"), ({"generation": "0" * 16}, "no job")):
        refused = web.post("/api/v1/attentions", json={"generation": drawn.json()["id"], **order})
        assert refused.status_code == 422 and said in refused.json()["detail"].lower(), refused.json()


def test_what_is_noted_of_a_request_is_answered_with_it(web, ended):
    asked = web.post("/api/v1/generations", json={"request": {"prompt": "a <my-cat>", "steps": 1}})
    assert asked.json()["notes"] == []
    assert ended(asked.json()["id"])
    (said,) = web.get(asked.json()["links"]["self"]).json()["notes"]
    assert said.startswith("<my-cat> is no word of pocket")
    listed = web.get("/api/v1/generations").json()
    assert all(one["notes"] == [] for one in listed)


@pytest.mark.parametrize("name", list(methods()))
def test_every_method_is_checked_with_the_settings_it_is_offered_with(name, web, dataset, ended):
    web.post(f"/api/v1/datasets/{dataset}/pictures", files=[("files", ("a.png", picture(), "image/png"))])
    asked = {"method": name, "dataset": dataset, "settings": methods()[name].offers[0].values}
    job = web.post("/api/v1/runs", json=asked | {"dry_run": True})
    assert job.status_code == 202, job.json()
    assert set(web.get(f"/api/v1/methods/{name}").json()["properties"]) >= set(asked["settings"])


def test_candidates_are_ordered_and_what_cannot_be_judged_is_refused(web, jobs):
    fox = {"prompt": "a fox", "steps": 1}
    order = web.post("/api/v1/generations", json={"request": fox, "best_of": 2})
    assert order.status_code == 202, order.json()
    assert jobs.get(order.json()["id"]).spec["best_of"] == 2
    jobs.cancel(order.json()["id"])
    compare = [{"field": "steps", "values": [1, 2]}]
    for wrong in ({"best_of": 65}, {"best_of": 0}, {"best_of": 2, "compare": compare}):
        assert web.post("/api/v1/generations", json={"request": fox, **wrong}).status_code == 422
    assert web.post("/api/v1/generations", json={"request": fox | {"prompt": " "}, "best_of": 2}).status_code == 422


def test_a_slider_is_ordered_without_pictures_and_used_below_zero(web, jobs):
    ends = {"token": "bluer", "between": "a fox on an orange background -> a fox on a blue background"}
    order = {"method": "slider", "settings": ends, "dry_run": True}
    run = web.post("/api/v1/runs", json=order)
    assert run.status_code == 202, run.json()
    jobs.cancel(run.json()["id"])
    without = {"method": "textual-inversion", "settings": {"token": "<x>", "init": "fox"}}
    assert web.post("/api/v1/runs", json=without).status_code == 422
    card = ConceptCard(token="bluer", kind="slider", family="pocket", vectors=0)
    changes = {"unet.conv_in.weight": Difference(torch.ones(1))}
    Concept(card, (), changes).save(jobs.learned / "bluer.safetensors")
    Concept(ConceptCard(token="<w>"), (torch.ones(1, 96),)).save(jobs.learned / "w.safetensors")
    for source, status in (("bluer", 202), ("w", 422)):
        request = {"prompt": "a fox", "concepts": [{"source": source, "strength": -1.5}]}
        answer = web.post("/api/v1/generations", json={"request": request})
        assert answer.status_code == status, answer.json()
        if status == 202:
            jobs.cancel(answer.json()["id"])
    assert "which has no opposite" in answer.json()["detail"]


def test_places_are_learned_from_pictures_or_from_composed_ones(web, dataset, jobs):
    order = {"method": "grounding", "settings": {"composed": 4}, "dry_run": True}
    answer = web.post("/api/v1/runs", json=order)
    assert answer.status_code == 202, answer.json()
    jobs.cancel(answer.json()["id"])
    for wrong, said in (
        (order | {"dataset": dataset}, "One source of pictures"),
        (order | {"settings": {}}, "picture"),
    ):
        answer = web.post("/api/v1/runs", json=wrong)
        assert answer.status_code == 422 and said in answer.json()["detail"], answer.json()


def test_a_concept_is_learned_used_and_deleted(web, dataset, ended, jobs):
    files = [("files", ("a.jpg", picture(form="JPEG"), "x/y")), ("files", ("b.zip", archive({"c.png": picture()})))]
    added = web.post(f"/api/v1/datasets/{dataset}/pictures", files=files)
    assert added.status_code == 201 and [one["name"] for one in added.json()["pictures"]] == ["0001.png", "0002.png"]
    asked = {
        "method": "textual-inversion",
        "dataset": dataset,
        "settings": {"token": "<rest>", "init": "fox", "steps": 2, "batch": 1, "preview_every": 2},
    }
    dry = web.post("/api/v1/runs", json=asked | {"dry_run": True})
    run = web.post("/api/v1/runs", json=asked)
    assert dry.status_code == run.status_code == 202
    assert web.delete(f"/api/v1/datasets/{dataset}").status_code == 409
    ended(run.json()["id"])
    done = web.get(run.headers["location"]).json()
    assert (done["state"], done["concepts"]) == ("done", ["rest"]), done
    notes = [data["text"] for _, kind, data in told(web.get(f"{dry.headers['location']}/events")) if kind == "note"]
    assert notes and web.get(dry.headers["location"]).json()["concepts"] == []
    assert web.get(f"{run.headers['location']}/previews/2").headers["content-type"] == "image/png"
    concept = web.get("/api/v1/concepts/rest").json()
    assert concept["card"]["token"] == "<rest>"
    assert set(ConceptCard.model_fields) == set(concept["card"])
    body = web.get("/api/v1/concepts/rest/file").content
    assert web.get("/sdapi/v1/embeddings").json()["loaded"]["<rest>"]["vectors"] == 1
    taken = web.post("/api/v1/concepts", files={"file": ("x.safetensors", body)}, data={"token": "<again>"})
    assert taken.status_code == 202
    ended(taken.json()["id"])
    assert web.get(taken.headers["location"]).json()["concepts"] == ["again"]
    assert {one["id"] for one in web.get("/api/v1/concepts").json()} >= {"rest", "again"}
    for name in ("rest", "again"):
        assert web.delete(f"/api/v1/concepts/{name}").status_code == 204
    assert web.get("/api/v1/concepts/rest").status_code == 404
    assert web.delete(f"/api/v1/datasets/{dataset}").status_code == 204
    assert not list((jobs.folder / "imports").iterdir())


def test_a_file_that_needs_its_base_is_imported_beside_the_one_it_fits(web, jobs, ended):
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    columns = load("pocket").unet.get_parameter(f"{layer}.weight").shape[1]
    name = f"lora_unet_{layer.replace('.', '_')}"
    body = save({f"{name}.weight": torch.full((1, columns), 0.1), f"{name}.on_input": torch.tensor(True)})
    asked = {"files": {"file": ("warm.safetensors", body)}}
    for form in ({}, {"base": "pocket"}):
        taken = web.post("/api/v1/concepts", **asked, data=form)
        assert taken.status_code == 202, taken.json()
        ended(taken.json()["id"])
        done = web.get(taken.headers["location"]).json()
        assert (done["state"], done["concepts"]) == ("done", ["warm"]), done
        assert web.delete("/api/v1/concepts/warm").status_code == 204
    refused = web.post("/api/v1/concepts", **asked, data={"base": "sdxl"})
    assert refused.status_code == 422 and "There are: pocket" in refused.text


def test_pictures_of_a_dataset_are_described_replaced_and_removed(web, dataset):
    place = f"/api/v1/datasets/{dataset}/pictures"
    web.post(place, files=[("files", ("a.png", picture()))])
    one = web.patch(f"{place}/0001.png", json={"caption": "a cat on a box", "pair": ["cat", "box"]}).json()
    assert (one["caption"], one["pair"], one["mask"]) == ("a cat on a box", ["cat", "box"], False)
    white = picture(color=(255, 255, 255))
    assert web.put(f"{place}/0001.png/mask", files={"file": ("m.png", white)}).json()["mask"]
    assert web.put(f"{place}/0001.png", files={"file": ("n.png", picture(size=(8, 8)))}).json()["width"] == 8
    assert web.get(one["href"]).headers["content-type"] == "image/png"
    assert web.delete(one["href"]).status_code == 204 and web.get(place).json() == []
    for files in ([("b.png", b"junk")], [("a.png", picture()), ("z.zip", archive({"../a.png": picture()}))]):
        refused = web.post(place, files=[("files", file) for file in files])
        assert refused.status_code == 422 and refused.headers["content-type"] == "application/problem+json"
        assert web.get(place).json() == []


def test_one_bad_picture_stops_no_upload_and_is_told(web, dataset):
    place = f"/api/v1/datasets/{dataset}/pictures"
    packed = archive({"set/b.png": picture(), "set/c.png": b"junk"})
    sent = [("a.png", picture()), ("bad\x07 name.jpg", b"junk"), ("z.zip", packed), ("cut.png", picture()[:60])]
    answer = web.post(place, files=[("files", one) for one in sent])
    assert answer.status_code == 201
    told = answer.json()
    assert (
        [one["name"] for one in told["pictures"]]
        == ["0001.png", "0002.png"]
        == [one["name"] for one in web.get(place).json()]
    )
    assert len(told["ignored"]) == 3 and all("picture" in why or "read" in why for why in told["ignored"].values())
    assert {"set/c.png", "cut.png"} < set(told["ignored"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/api/v1/generations", {"request": {"prompt": "x", "steps": 0}}, 422, "steps"),
        ("POST", "/api/v1/generations", {"request": {"prompt": "x", "no": 0}}, 422, "no"),
        ("POST", "/api/v1/generations", {"request": {"prompt": "x"}, "base": "/etc"}, 422, "no base"),
        ("POST", "/api/v1/generations", {"request": {"prompt": "x", "concepts": [{"source": "/x"}]}}, 422, "/x"),
        ("POST", "/api/v1/generations", {"request": {"prompt": "x", "inpaint": {"image": "/x"}}}, 422, "/x"),
        ("POST", "/api/v1/runs", {"method": "x", "dataset": "x", "settings": {}}, 422, "method"),
        ("POST", "/api/v1/runs", {"method": "reversion", "dataset": "x", "settings": {"token": "r"}}, 422, "pictures"),
        ("POST", "/api/v1/generations/none/cancel", None, 404, "none"),
        ("GET", "/api/v1/generations/none/pictures/0", None, 404, "none"),
        ("GET", "/api/v1/generations?limit=0", None, 422, "limit"),
        ("GET", "/api/v1/concepts/..%2f..%2fx", None, 404, "There is no"),
        ("GET", "/api/v1/datasets/..", None, 404, "There is no"),
        ("GET", "/api/v1/nothing", None, 404, "There is no"),
        ("PUT", "/api/v1/generations", None, 405, "PUT"),
        ("POST", "/sdapi/v1/txt2img", {"sampler_name": "none"}, 422, "sampler"),
        ("POST", "/sdapi/v1/png-info", {"image": "!"}, 422, "base64"),
    ],
)
def test_what_cannot_be_done_is_a_problem_in_words(web, method, path, body, status, said):
    answer = web.request(method, path, json=body)
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"] and answer.json()["status"] == status


def test_scripts_for_automatic1111_work(web):
    asked = {
        "prompt": "a fox",
        "steps": 2,
        "seed": 7,
        "batch_size": 2,
        "sampler_name": "Euler a",
        "restore_faces": True,
    }
    drawn = web.post("/sdapi/v1/txt2img", json=asked).json()
    assert json.loads(drawn["info"])["all_seeds"] == [7, 8] and len(drawn["images"]) == 2
    shown = Image.open(io.BytesIO(base64.b64decode(drawn["images"][0])))
    assert "Sampler: Euler a" in shown.text["parameters"]
    info = web.post("/sdapi/v1/png-info", json={"image": f"data:image/png;base64,{drawn['images'][0]}"}).json()
    assert info["info"] == shown.text["parameters"] and "promptstudio" in info["items"]
    assert web.get("/sdapi/v1/progress").json()["progress"] == 0
    assert web.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": "pocket"}
    assert {"DDIM", "Euler a"} <= {one["name"] for one in web.get("/sdapi/v1/samplers").json()}


def test_a_picture_is_repainted_for_a_script_where_its_mask_is_white(web):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    stream = io.BytesIO()
    mask.save(stream, "PNG")
    red, white = (base64.b64encode(one).decode() for one in (picture((64, 64), (250, 0, 0)), stream.getvalue()))
    asked = {"prompt": "a fox", "steps": 3, "seed": 1, "init_images": [red], "mask": white, "denoising_strength": 1}
    asked |= {"mask_blur": 0, "inpaint_full_res": False}
    drawn = web.post("/sdapi/v1/img2img", json=asked).json()
    shown = Image.open(io.BytesIO(base64.b64decode(drawn["images"][0])))
    assert shown.crop((0, 0, 30, 64)).getcolors() == [(30 * 64, (250, 0, 0))]
    assert len(shown.crop((34, 0, 64, 64)).getcolors(5000) or ()) > 1
    made = json.loads(shown.text["promptstudio"])["request"]["inpaint"]
    assert made["image"].startswith("pictures/")  # a place within the server's folder, which it does not tell


def test_boxes_and_questions_in_pictures_are_asked_by_ids(web, ended):
    ids = []
    for color in ("red", "white", "blue"):
        file = {"file": ("x.png", picture((64, 64), color))}
        ids.append(web.post("/api/v1/pictures", files=file).json()["id"])
    question = {"examples": [{"before": ids[0], "after": ids[1]}], "query": ids[2]}
    fox = {"phrase": "a fox", "box": [0.1, 0.2, 0.5, 0.9]}
    for asked in ({"prompt": "a fox", "boxes": [fox]}, {"prompt": "", "in_context": question}):
        job = web.post("/api/v1/generations", json={"request": asked | {"steps": 2}}).json()["id"]
        assert ended(job).state == "done", web.get(f"/api/v1/generations/{job}").json()
        (href,) = web.get(f"/api/v1/generations/{job}").json()["pictures"]
        shown = Image.open(io.BytesIO(web.get(href).content))
        assert shown.size == (64, 64) and "/tmp" not in shown.text["promptstudio"]
    for name in ("/etc/passwd", "../pictures/" + ids[0], "0" * 16):
        wrong = {"request": {"prompt": "", "in_context": question | {"query": name}}}
        assert web.post("/api/v1/generations", json=wrong).status_code == 422


def test_a_thing_is_repainted_by_its_name(web, ended):
    scene = Scene("", (Placed("fox", 6, 22, 26), Placed("house", 36, 20, 26)), "blue")
    stream = io.BytesIO()
    to_pictures(Stickers(names=("fox", "house")).render([scene]).images)[0].save(stream, format="PNG")
    stored = web.post("/api/v1/pictures", files={"file": ("fox.png", stream.getvalue())}).json()["id"]
    asked = {"prompt": "a cat", "steps": 1, "inpaint": {"image": stored, "name": "the fox"}}
    done = ended(web.post("/api/v1/generations", json={"request": asked}).json()["id"])
    assert done.state == "done", done.error
    told_ = Image.open(io.BytesIO(web.get(f"/api/v1/generations/{done.id}/pictures/0").content)).text
    (kept,) = (json.loads(one)["request"]["inpaint"] for one in told_.values() if one.startswith("{"))
    assert kept["name"] == "" and kept["box"][2] < 0.55
    asked["inpaint"]["name"] = "a crab"
    missing = ended(web.post("/api/v1/generations", json={"request": asked}).json()["id"])
    assert missing.state == "failed" and "There is no crab in the picture; found: " in missing.error


def test_two_browsers_never_mix_their_results(web, ended):
    answers = {}

    def ask(seed):
        order = {"request": {"prompt": f"a fox {seed}", "steps": 1, "seed": seed}}
        answers[seed] = web.post("/api/v1/generations", json=order).json()["id"]

    threads = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    joined(*threads)
    assert len(set(answers.values())) == 6
    for seed, job in answers.items():
        ended(job)
        (href,) = web.get(f"/api/v1/generations/{job}").json()["pictures"]
        made = json.loads(Image.open(io.BytesIO(web.get(href).content)).text["promptstudio"])
        assert (made["request"]["prompt"], made["request"]["seed"]) == (f"a fox {seed}", seed)


def test_what_a_script_asked_for_is_interrupted(web, jobs, until):
    answers = []
    asked = {"prompt": "a fox", "steps": 300}
    thread = threading.Thread(target=lambda: answers.append(web.post("/sdapi/v1/txt2img", json=asked)), daemon=True)
    thread.start()
    end = time.monotonic() + LIMIT
    while not (progress := web.get("/sdapi/v1/progress").json())["current_image"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert 0 < progress["progress"] < 1 and progress["state"]["sampling_steps"] == 300
    assert Image.open(io.BytesIO(base64.b64decode(progress["current_image"]))).size == (64, 64)
    web.post("/sdapi/v1/interrupt")
    joined(thread)
    assert answers[0].json()["images"] == []


def test_hostile_requests_are_answered_and_leave_no_file_astray(tmp_path):
    count = fuzz(500, 0, tmp_path / "alone" / "server")
    assert set(count) == {"2xx", "4xx"} and sum(count.values()) == 500 and count["2xx"] > 50
