"""Access to every route, in every way."""

from __future__ import annotations

import base64

import pytest
from starlette.routing import Mount
from starlette.testclient import TestClient

from pipelines.errors import ConfigError
from studio.api import guard
from studio.api.app import guarded, rest, with_page
from studio.api.guard import Door
from studio.jobs.jobs import Jobs

SECRET = "correct horse"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("guarded"), warm=False)  # nothing is begun
    return with_page(rest(jobs), jobs)


def client(app, door, **more):
    return TestClient(guarded(app, door), base_url="http://localhost", **more)


def routes(app):
    """Every path with its methods, however deep it is mounted."""

    def inside(router, prefix):
        for route in router.routes:
            own = getattr(route, "original_router", None)
            if own is not None:
                yield from inside(own, prefix + route.include_context.prefix)
            elif isinstance(route, Mount):
                yield prefix + route.path + "/", {"GET"}
                if hasattr(route.app, "routes"):
                    yield from inside(route.app, prefix + route.path)
            else:
                yield prefix + route.path, getattr(route, "methods", None) or {"GET"}

    yield from inside(app, "")


def test_every_route_is_closed_without_credentials(app):
    listed = [(path, method) for path, methods in routes(app) for method in methods]
    described = {(path, method.upper()) for path, ways in app.openapi()["paths"].items() for method in ways}
    assert len(described) > 50 and described <= set(listed)
    outside, inside = client(app, Door(secrets=(SECRET,))), client(app, Door(secrets=(SECRET,)))
    inside.headers["authorization"] = f"Bearer {SECRET}"
    for path, method in [*listed, ("/", "GET"), ("/docs", "GET"), ("/no/such/thing", "POST"), ("/config", "GET")]:
        answer = outside.request(method, path)
        assert answer.status_code == 401, (method, path)
        assert method == "HEAD" or answer.json()["title"] == "Unauthorized"
    assert inside.get("/api/v1/openapi.json").status_code == inside.get("/").status_code == 200
    described = inside.get("/docs").text
    assert "https://" not in described and "/api/v1/openapi.json" in described
    assert inside.get("/docs/swagger-ui.css").text.startswith(".swagger-ui")  # it arrives unpacked
    assert inside.get("/docs/README.md").status_code == inside.get("/docs/..%2fstudio.css").status_code == 404


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {SECRET}", 200),
        ("Basic " + base64.b64encode(f"anyone:{SECRET}".encode()).decode(), 200),
        ("Bearer wrong", 401),
        (SECRET, 401),
        ("Basic !", 401),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), 401),
        ("Bearer ", 401),
        ("", 401),
    ],
)
def test_only_right_credentials_open(app, given, status):
    answer = client(app, Door(secrets=("another one", SECRET))).get("/api/v1/methods", headers={"authorization": given})
    assert answer.status_code == status
    assert status == 200 or answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    ("host", "door", "status"),
    [
        ("localhost:7860", Door(), 200),
        ("127.0.0.1", Door(), 200),
        ("[::1]:80", Door(), 200),
        ("evil.example", Door(), 421),
        ("localhost.evil.example", Door(), 421),
        ("evil.example:localhost", Door(), 421),
        ("user@evil.example", Door(), 421),
        ("192.168.1.5", Door(), 421),
        ("192.168.1.5", Door("0.0.0.0", (SECRET,)), 200),
        ("studio.home:80", Door("0.0.0.0", (SECRET,)), 421),
        ("studio.home:80", Door("0.0.0.0", (SECRET,), ("Studio.Home",)), 200),
        ("[bad", Door(), 421),
        ("", Door(), 421),
    ],
)
def test_only_known_names_are_answered(app, host, door, status):
    headers = {"host": host, "authorization": f"Bearer {SECRET}"}
    assert client(app, door).get("/api/v1/methods", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"origin": "http://localhost"}, 201),
        ({"origin": "http://localhost:81"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost.evil.example"}, 403),
        ({"origin": "file://localhost"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 201),
    ],
)
def test_other_sites_change_nothing(app, headers, status):
    assert client(app, Door()).post("/api/v1/datasets", json={}, headers=headers).status_code == status


def test_large_bodies_are_not_read(app, monkeypatch):
    monkeypatch.setattr(guard, "BODY", 1000)
    web = client(app, Door())
    assert web.post("/api/v1/datasets", content=b"x" * 1001).status_code == 413
    chunks = (b"x" * 100 for _ in range(100))
    assert web.post("/api/v1/datasets", content=chunks, headers={"content-type": "application/json"}).status_code == 413
    assert web.post("/api/v1/datasets", content=b"", headers={"content-length": "-1"}).status_code in (400, 413)


@pytest.mark.parametrize("path", ["/api/v1/generations", "/sdapi/v1/txt2img", "/gradio_api/queue/join"])
def test_bodies_of_too_many_values_are_not_checked(app, path):
    web = client(app, Door())
    many = b'{"request": {"concepts": [' + b"1," * (guard.VALUES + 1) + b"1]}}"
    answer = web.post(path, content=many, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and "more than 100,000 values" in answer.json()["detail"]
    if not path.startswith("/gradio"):
        few = b'{"request": {"x' + b"y" * 100_000 + b'": 1}, "prompt": 3}'
        assert len(web.post(path, content=few, headers={"content-type": "application/json"}).content) < 5000
    else:
        answer = web.post(path, content=many, headers={"content-type": "multipart/form-data; boundary=x"})
        assert answer.status_code == 415


def test_a_server_open_to_others_needs_a_password():
    for host in ("0.0.0.0", "192.168.1.5", "::", "studio.home"):
        with pytest.raises(ConfigError, match="other machines"):
            Door(host)
        assert Door(host, (SECRET,)).secrets
    with pytest.raises(ConfigError, match="8 letters"):
        Door("0.0.0.0", ("short",))


def test_the_page_gives_out_nothing_of_the_folder_by_its_path(app):
    folder = app.state.jobs.folder
    (folder / "worker.log").write_text("secret")
    (folder / "concepts" / "x.preview.png").write_bytes(b"secret")
    web = client(app, Door())
    for name in (
        "jobs.sqlite",
        "worker.log",
        "concepts/x.preview.png",
        "concepts/../worker.log",
        "concepts/%2e%2e/worker.log",
        "../../etc/passwd",
    ):
        answer = web.get(f"/gradio_api/file={folder}/{name}")
        assert answer.status_code in (403, 404) and b"secret" not in answer.content
