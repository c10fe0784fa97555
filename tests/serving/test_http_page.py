"""The page at ``/`` in a headless Chromium: its images are those of `Sampler.sample`."""

from __future__ import annotations

import io

import javascript
import numpy as np
import pytest
import torch
from http_service import live
from networks import make_unet
from onnx_exports import tiny_sampler
from PIL import Image

from fastddpm import NoiseSchedule, Sampler
from fastddpm.images import to_uint8
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service

LARGE = 2**63 - 2
"""A seed that no double of JavaScript holds."""
STATUS = "document.querySelector('#status').textContent"
PIXELS = """(async () => {
    const images = [...document.querySelectorAll('#images img')];
    await Promise.all(images.map((image) => image.decode()));
    return images.map((image) => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext('2d').drawImage(image, 0, 0);
        return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data);
    });
})()"""


@pytest.fixture(scope="module")
def sampler():
    return Sampler(
        make_unet(),
        NoiseSchedule.linear(100),
        shape=(3, 8, 8),
        engine="eager",
        num_inference_steps=7,
        clip_sample_range=1.0,
        timestep_spacing="trailing",
        class_names=("cat", "dog", "7", "fox"),
    )


@pytest.fixture(scope="module")
def client(sampler):
    samplers = {"tiny": sampler, "superres": tiny_sampler("superres")}
    with live(Service(samplers, Limits(images=8))) as found:
        yield found


def close(found, images):
    pixels = np.array(found, np.uint8).reshape(len(images), 8, 8, 4)[..., :3].astype(int)
    wanted = to_uint8(images).astype(int)
    assert wanted.std() > 20
    return np.abs(pixels - wanted).max() <= 1


def visited(client, *acts):
    """The page once it is ready, and acts; nothing may go wrong, nor be asked of another place."""
    address = f"http://127.0.0.1:{client.port}/"
    visit = javascript.visited(address, [["wait", f"{STATUS} != 'Loading'"], *acts])
    assert visit.said == []
    assert {one for one in visit.asked if not one.startswith((address, "data:", "blob:"))} == set()
    return visit.results[1:]


def test_images_are_the_samplers_and_form_before_the_eyes(client, sampler):
    count = """(() => {
        window.forming = 0;
        new MutationObserver(() => {
            window.forming += document.querySelectorAll('img[alt$=forming]').length;
        }).observe(document.querySelector('#images'), { subtree: true, attributes: true, childList: true });
    })()"""
    results = visited(
        client,
        ["evaluate", STATUS],
        ["evaluate", count],
        ["fill", "#seeds", f"3-4,{LARGE}"],
        ["select", "#class", "3"],
        ["select", "#method", "ddim"],
        ["fill", "#steps", "5"],
        ["fill", "#eta", "0.5"],
        ["fill", "#guidance", "1.5"],
        ["press", "#guidance", "Enter"],
        ["wait", f"{STATUS}.endsWith('done')"],
        ["evaluate", PIXELS],
        ["evaluate", "[...document.querySelectorAll('#images img')].map((image) => image.alt)"],
        ["evaluate", "[...document.querySelectorAll('#images a')].map((link) => link.getAttribute('href'))"],
        ["evaluate", "window.forming"],
        ["wait", "document.querySelector('#waiting .line').getAttribute('points') !== null"],
        ["evaluate", "document.querySelector('#slots').getAttribute('aria-label')"],
    )
    call = {"seeds": [3, 4, LARGE], "class_labels": 3, "guidance_scale": 1.5, "progress": False}
    images = sampler.replace(method="ddim", num_inference_steps=5, eta=0.5).sample(**call)
    assert results[0] == "Ready"
    assert close(results[10], images)
    assert results[11] == [f"seed {seed}, class fox" for seed in (3, 4, LARGE)]
    assert results[13] > 3
    assert results[15].endswith(" slots used")
    # An image's link is that image.
    for link, image in zip(results[12], images, strict=True):
        found = np.asarray(Image.open(io.BytesIO(client.get(link).body))).astype(int)
        assert np.abs(found - to_uint8(image[None])[0]).max() <= 1


def test_what_is_wrong_is_said(client):
    results = visited(
        client,
        ["fill", "#seeds", "9-3"],
        ["click", "#draw"],
        ["wait", f"{STATUS}.includes('accepted')"],
        ["evaluate", STATUS],
        ["fill", "#seeds", "1-9"],
        ["click", "#draw"],
        ["wait", f"{STATUS}.startsWith('seeds: more')"],
        ["evaluate", "document.querySelector('#status').getAttribute('role')"],
        # A label for everything that can be filled in.
        ["evaluate", "[...document.querySelectorAll('input, select')].every(({ labels }) => labels.length)"],
    )
    assert results[3].startswith("seeds: '9-3' given, integers and rising ranges")
    assert results[7:] == ["status", True]


def test_a_picture_is_the_condition(client):
    """Of the size that the model takes, so that no scaling is in it."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    dropped = f"""(() => {{
        const file = new File([new Uint8Array({[*file.getvalue()]})], 'a.png', {{ type: 'image/png' }});
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(file);
        document.body.dispatchEvent(new DragEvent('drop', {{ dataTransfer, bubbles: true }}));
    }})()"""
    results = visited(
        client,
        ["select", "#model", "superres"],
        ["fill", "#seeds", "2,5"],
        ["evaluate", dropped],
        ["click", "#draw"],
        ["wait", f"{STATUS}.endsWith('done')"],
        ["evaluate", PIXELS],
    )
    condition = torch.from_numpy(levels).permute(2, 0, 1)[None] / 127.5 - 1
    images = tiny_sampler("superres").sample(seeds=[2, 5], condition=condition, progress=False)
    assert close(results[5], images)


def test_the_page_may_ask_nothing_of_another_place(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy
    for name in ("page.css", "page.js", "requests.js", "seeds.js", "load.js", "picture.js"):
        answer = client.get(f"/static/{name}")
        assert answer.status == 200
        assert b"://" not in answer.body
