"""The service: its images are those of `Sampler.sample`, whatever they are asked for by."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from http_service import live, tensor, wait_for
from networks import TINY, make_unet
from PIL import Image
from tolerances import ACROSS_BATCHES

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.checks import BadArgument
from fastddpm.images import grid, to_uint8
from fastddpm.plans import METHODS
from fastddpm.plans.registry import Entry
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service

SCHEDULE = NoiseSchedule.linear(100)
SHAPE = (3, 8, 8)
NAMES = ("cat", "dog", "7", "fox")


def make_sampler(model=None, **options):
    options = {"num_inference_steps": 7, "clip_sample_range": 1.0, "timestep_spacing": "trailing"} | options
    return Sampler(
        model or make_unet(), SCHEDULE, shape=options.pop("shape", SHAPE), engine="eager", **options
    )


def with_image(x, t):
    """A model of a condition image of two channels in front of the state, which does not say so."""
    return 0.3 * x[:, 2:] + 0.1 * x[:, :1] - 0.05 * x[:, 1:2]


@pytest.fixture(scope="module")
def samplers():
    return {
        "tiny": make_sampler(class_names=NAMES),
        "other": make_sampler(method="ddim", num_inference_steps=3),
    }


@pytest.fixture(scope="module")
def client(samplers):
    with live(Service(samplers, Limits(images=8))) as found:
        yield found


def wanted(sampler, seeds, labels=None, guidance=1.0, **options):
    """The images alone, by the sampler."""
    adapted = sampler.method.adapted(**options).to_dict()
    one = Sampler(
        sampler.model, SCHEDULE, shape=SHAPE, engine="eager", class_names=sampler.class_names, **adapted
    )
    return one.sample(seeds=seeds, class_labels=labels, guidance_scale=guidance, progress=False)


def pixels_of(png):
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture).astype(int)


def close(found, images):
    """Whether pixels are those of images, to the level that they may round to in another batch."""
    difference = np.abs(found - to_uint8(images).astype(int))
    return difference.max() <= 1 and np.mean(difference > 0) < 0.02


def test_infer_gives_the_samplers_images(client, samplers):
    inputs = [
        tensor("seeds", "INT64", [5, 2**63 - 1, 0]),
        tensor("class_labels", "INT64", [2, 0, 1]),
        tensor("method", "BYTES", ["ddim"]),
        tensor("num_inference_steps", "INT64", [4]),
        tensor("eta", "FP32", [0.3]),
        tensor("guidance_scale", "FP32", [2.5]),
    ]
    outputs = [{"name": "pixels"}, {"name": "images"}]
    answer = client.post("/v2/models/tiny/infer", {"id": "4", "inputs": inputs, "outputs": outputs})
    assert answer.status == 200, answer.body
    found = answer.json
    assert (found["model_name"], found["id"]) == ("tiny", "4")
    assert [(one["name"], one["datatype"], one["shape"]) for one in found["outputs"]] == [
        ("pixels", "UINT8", [3, 8, 8, 3]),
        ("images", "FP32", [3, 3, 8, 8]),
    ]
    pixels, images = (np.array(one["data"]).reshape(one["shape"]) for one in found["outputs"])
    options = {"method": "ddim", "num_inference_steps": 4, "eta": 0.3}
    expected = wanted(samplers["tiny"], [5, 2**63 - 1, 0], [2, 0, 1], 2.5, **options)
    assert np.abs(images - expected.numpy()).max() <= ACROSS_BATCHES
    assert close(pixels, expected)


def test_every_image_of_a_request_has_its_own_options(client, samplers):
    asked = [(1, "ddim", 3, 1.0, 0), (2, "dpmpp_2m", 5, 2.0, 1), (3, "ddpm", 7, 1.5, 2)]
    seeds, methods, steps, scales, labels = (list(column) for column in zip(*asked, strict=True))
    inputs = [
        tensor("method", "BYTES", methods),
        tensor("seeds", "INT64", seeds),
        tensor("guidance_scale", "FP32", scales),
        tensor("num_inference_steps", "INT64", steps),
        tensor("class_labels", "INT64", labels),
    ]
    [output] = client.post("/v2/models/tiny/infer", {"inputs": inputs}).json["outputs"]
    assert output["name"] == "images"
    images = np.array(output["data"]).reshape(output["shape"])
    for image, (seed, method, count, scale, label) in zip(images, asked, strict=True):
        options = {"method": method, "num_inference_steps": count}
        expected = wanted(samplers["tiny"], [seed], label, scale, **options)[0]
        assert np.abs(image - expected.numpy()).max() <= ACROSS_BATCHES


@pytest.mark.parametrize("kind", ["network", "function"])
def test_infer_takes_condition_images_flat_and_nested(kind):
    config = dataclasses.replace(TINY, in_channels=5, out_channels=3, num_classes=None, null_class=False)
    sampler = make_sampler(make_unet(config) if kind == "network" else with_image)
    draw = np.random.default_rng(1)
    condition = draw.normal(size=(2, 2, 8, 8)).astype(np.float32)
    with live(Service({"restores": sampler})) as client:
        for data, shape, given in (
            (condition.tolist(), [2, 2, 8, 8], condition),
            (condition[:1].reshape(-1).tolist(), [1, 2, 8, 8], condition[:1]),
        ):
            inputs = [tensor("seeds", "INT64", [1, 2]), tensor("condition", "FP32", data, shape)]
            answer = client.post("/v2/models/restores/infer", {"inputs": inputs})
            assert answer.status == 200, answer.body
            images = np.array(answer.json["outputs"][0]["data"]).reshape(2, *SHAPE)
            expected = sampler.sample(seeds=[1, 2], condition=torch.from_numpy(given), progress=False)
            assert np.abs(images - expected.numpy()).max() <= ACROSS_BATCHES
        if kind == "network":
            assert client.get("/v1/models").json["models"][0]["condition"] == [2, 8, 8]
            inputs = [tensor("seeds", "INT64", [1])]
            without = client.post("/v2/models/restores/infer", {"inputs": inputs})
            assert (without.status, without.error) == (
                400,
                "condition: None given, (images or 1, 2, 8, 8) by this model accepted",
            )
            labelled = [*inputs, tensor("class_labels", "INT64", [0])]
            assert (
                "'class_labels' given" in client.post("/v2/models/restores/infer", {"inputs": labelled}).error
            )


def test_metadata_says_what_infer_takes_and_gives(client):
    assert client.get("/v2").json == {
        "name": "fastddpm",
        "version": fastddpm.__version__,
        "extensions": ["binary_tensor_data"],
    }
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.get("/v2/health/ready").json == {"ready": True}
    assert client.get("/v2/models/other/ready").json == {"name": "other", "ready": True}
    found = client.get("/v2/models/tiny").json
    assert found["outputs"] == [
        {"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 8, 8, 3]},
    ]
    types = {one["name"]: (one["datatype"], one["shape"]) for one in found["inputs"]}
    assert types == {
        "seeds": ("INT64", [-1]),
        "class_labels": ("INT64", [-1]),
        "method": ("BYTES", [-1]),
        "num_inference_steps": ("INT64", [-1]),
        "eta": ("FP32", [-1]),
        "guidance_scale": ("FP32", [-1]),
    }
    assert client.get("/v2/models/none").status == 404


def test_generations_give_pngs_with_their_seeds(client, samplers):
    asked = {"model": "tiny", "seeds": [3, 4], "class": "dog", "method": "dpmpp_2m", "num_inference_steps": 5}
    found = client.post("/v1/images/generations", asked).json
    assert [(one["index"], one["seed"], one["class_label"]) for one in found["data"]] == [
        (0, 3, "dog"),
        (1, 4, "dog"),
    ]
    assert {
        name: found[name] for name in ("model", "method", "num_inference_steps", "eta", "guidance_scale")
    } == {
        "model": "tiny",
        "method": "dpmpp_2m",
        "num_inference_steps": 5,
        "eta": 0.0,
        "guidance_scale": 1.0,
    }
    expected = wanted(samplers["tiny"], [3, 4], 1, method="dpmpp_2m", num_inference_steps=5)
    for one, image in zip(found["data"], expected, strict=True):
        assert close(pixels_of(base64.b64decode(one["b64_json"])), image)


def test_seeds_are_counted_on_or_drawn_and_returned(client, samplers):
    counted = client.post("/v1/images/generations", {"seed": 9, "n": 3, "class_labels": [0, "dog", "7"]}).json
    assert [one["seed"] for one in counted["data"]] == [9, 10, 11]
    expected = wanted(samplers["tiny"], [9, 10, 11], [0, 1, 2])
    for one, image in zip(counted["data"], expected, strict=True):
        assert close(pixels_of(base64.b64decode(one["b64_json"])), image)
    drawn = [client.post("/v1/images/generations", {"n": 2}).json["data"] for _ in range(2)]
    seeds = [one["seed"] for data in drawn for one in data]
    assert len(set(seeds)) == 4
    assert max(seeds) < 2**32
    again = client.post("/v1/images/generations", {"seeds": seeds[:2]}).json["data"]
    for one, other in zip(drawn[0], again, strict=True):
        first, second = (pixels_of(base64.b64decode(two["b64_json"])) for two in (one, other))
        assert np.abs(first - second).max() <= 1


def test_a_png_of_one_image_and_of_several(client, samplers):
    asked = {"seeds": [1], "class": 0, "response_format": "png"}
    one = client.post("/v1/images/generations", asked)
    assert (one.headers["content-type"], one.headers["fastddpm-seeds"]) == ("image/png", "1")
    assert close(pixels_of(one.body), wanted(samplers["tiny"], [1], 0)[0])
    several = client.post("/v1/images/generations", {**asked, "seeds": [1, 2, 5]})
    assert several.headers["fastddpm-seeds"] == "1,2,5"
    expected = grid(to_uint8(wanted(samplers["tiny"], [1, 2, 5], 0))).astype(int)
    assert np.abs(pixels_of(several.body) - expected).max() <= 1


def test_an_address_is_a_picture_with_a_tag(client, samplers):
    address = "/v1/images/8.png?class=cat&method=ddim&steps=4&eta=0.5&guidance_scale=2"
    answer = client.get(address)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    expected = wanted(samplers["tiny"], [8], 0, 2.0, method="ddim", num_inference_steps=4, eta=0.5)[0]
    assert close(pixels_of(answer.body), expected)
    before = client.service.models["tiny"].scheduler.stats()["submitted"]
    same = client.get(address, if_none_match=f'"x", {answer.headers["etag"]}')
    assert (same.status, same.body) == (304, b"")
    assert client.service.models["tiny"].scheduler.stats()["submitted"] == before
    tags = {answer.headers["etag"]}
    for other in ("class=dog", "class=cat&steps=5", "class=cat&model=other", "class=cat&guidance_scale=3"):
        tags.add(client.get(f"/v1/images/8.png?{other.replace('cat', '0')}").headers["etag"])
    tags.add(client.get("/v1/images/9.png?class=cat").headers["etag"])
    assert len(tags) == 6


def test_a_tag_is_of_the_weights(samplers):
    changed = make_sampler(class_names=NAMES)
    digests = [Service({"tiny": one}).models["tiny"].digest for one in (samplers["tiny"], changed)]
    assert digests[0] == digests[1]
    with torch.no_grad():
        next(changed.model.parameters()).view(-1)[0] += 1e-3
    assert Service({"tiny": changed}).models["tiny"].digest != digests[0]
    assert (
        Service({"tiny": samplers["tiny"].replace(eta=0.0, method="ddim")}).models["tiny"].digest
        != digests[0]
    )


def test_the_name_of_a_class_comes_before_its_number(client, samplers):
    """A class called 7 is the third; there is no label 7."""
    answer = client.get("/v1/images/8.png?class=7")
    assert close(pixels_of(answer.body), wanted(samplers["tiny"], [8], 2)[0])
    assert client.post("/v1/images/generations", {"seed": 8, "class": 7}).status == 400


def test_models_are_listed_with_what_a_client_needs(client, samplers):
    tiny, other = client.get("/v1/models").json["models"]
    assert (tiny["name"], tiny["shape"], tiny["classes"], tiny["class_names"]) == (
        "tiny",
        [3, 8, 8],
        4,
        list(NAMES),
    )
    assert (tiny["guidance"], tiny["condition"]) == (True, None)
    assert tiny["defaults"] == {"method": "ddpm", "num_inference_steps": 7, "eta": 0.0, "guidance_scale": 1.0}
    assert other["defaults"] == {
        "method": "ddim",
        "num_inference_steps": 3,
        "eta": 0.0,
        "guidance_scale": 1.0,
    }
    assert tiny["limits"] == {
        "images": 8,
        "steps": 100,
        "body_bytes": 8 * 2**20,
        "waiting": 256,
        "deadline_seconds": 300.0,
    }
    for method in tiny["methods"]:
        answer = client.post(
            "/v1/images/generations", {"seed": 1, "method": method, "num_inference_steps": 2}
        )
        assert answer.status == 200, (method, answer.body)
        eta = client.post(
            "/v1/images/generations", {"seed": 1, "method": method, "num_inference_steps": 2, "eta": 0.5}
        )
        assert eta.status == (200 if method in tiny["methods_with_eta"] else 400), (method, eta.body)


def test_methods_that_do_not_go_with_a_model_are_not_listed(monkeypatch):
    def refuses(*_):
        raise BadArgument("x", "this", "that")

    monkeypatch.setitem(METHODS, "choosy", Entry(refuses))
    methods = Service({"tiny": make_sampler()}).models["tiny"].methods
    assert set(methods) == set(METHODS) - {"choosy"}


def test_the_page_and_its_files(client):
    page = client.get("/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/static/page.css").headers["content-type"] == "text/css; charset=utf-8"
    assert client.get("/static/../app.py").status == 404
    assert client.get("/static/%2e%2e/app.py").status == 404


def test_what_is_counted(samplers):
    requests = (
        'fastddpm_requests_total{method="POST",route="/v1/images/generations",status="200"}',
        'fastddpm_requests_total{method="GET",route="/v1/images/{seed}.png",status="400"}',
        'fastddpm_requests_total{method="GET",route="none",status="404"}',
    )
    with live(Service(samplers)) as client:
        client.post("/v1/images/generations", {"seeds": [1, 2], "num_inference_steps": 3})
        client.get("/v1/images/x.png")
        client.get("/nowhere/at/all")
        # A request is counted when its answer has been sent, which its client may have read by then.
        wait_for(lambda: set(requests) <= set(_metrics(client)))
        found = _metrics(client)
    assert found['fastddpm_images_total{model="tiny"}'] == 2
    assert found['fastddpm_submitted_total{model="tiny"}'] == 2
    assert 3 <= found['fastddpm_step_seconds_count{model="tiny"}'] <= 6
    assert 0 < found['fastddpm_step_seconds_sum{model="tiny"}'] < 30
    assert [found[name] for name in requests] == [1, 1, 1]
    assert found['fastddpm_request_seconds_count{route="/v1/images/generations"}'] == 1
    assert found['fastddpm_waiting{model="tiny"}'] == found['fastddpm_running{model="other"}'] == 0


def _metrics(client):
    """Names with labels, and values, by the rules of the text format."""
    lines = client.get("/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_a_request_is_logged_on_one_line_of_json(samplers, caplog):
    from fastddpm.serving.http.logs import JsonLines

    # A request is logged when its answer has been sent: all of them are, once the service has ended.
    with caplog.at_level("INFO", logger="fastddpm.serving"), live(Service(samplers)) as client:
        client.post("/v1/images/generations", {"seeds": [1, 2]}, x_request_id="mine-1")
        client.post("/v1/images/generations", {"seeds": []}, x_request_id="not\tmine")
    good, bad = (json.loads(JsonLines().format(record)) for record in _requests(caplog))
    assert (good["id"], good["route"], good["status"], good["images"], good["model"]) == (
        "mine-1",
        "/v1/images/generations",
        200,
        2,
        "tiny",
    )
    assert 0 < good["seconds"] < 60
    assert (bad["status"], bad["images"]) == (400, 0)
    assert bad["id"] != "not\tmine"


def _requests(caplog):
    return [record for record in caplog.records if record.message == "request"]
