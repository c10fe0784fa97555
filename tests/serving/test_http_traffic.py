"""Many clients at once, some of them wrong and some that go away: every good answer is right."""

from __future__ import annotations

from http_crowd import Crowd
from http_service import live
from test_http import close, make_sampler, pixels_of, wanted

from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service


def test_a_crowd_is_answered_rightly():
    sampler = make_sampler()
    with live(Service({"tiny": sampler}, Limits(batch=8, waiting=16, images=4, steps=100))) as client:
        crowd = Crowd(client)
        crowd.run()
        assert not crowd.errors, crowd.errors[:3]
        assert client.get("/v2/health/ready").status == 200
    assert set(crowd.statuses) <= {200, 400, 413, 503}
    assert len(crowd.good) > 30
    for asked, picture in crowd.good:
        options = {name: asked[name] for name in ("method", "num_inference_steps") if name in asked}
        expected = wanted(sampler, [asked["seed"]], asked["class"], asked["guidance_scale"], **options)
        assert close(pixels_of(picture), expected[0]), asked
