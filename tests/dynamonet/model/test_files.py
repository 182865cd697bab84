from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants, file_download

from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.files import locate
from dynamonet.model.network import DynamoNet

TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine that serves a folder as the revision `main` of lab/model."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_POST(self) -> None:
            """Takes a commit as the hub does: a line of JSON a file, its content in base64."""
            lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
            sent = [json.loads(line) for line in lines]
            if self.path == "/api/repos/create":
                if (sent[0]["organization"], sent[0]["name"]) != ("lab", "model"):
                    self.send_error(403, "You have no rights to create a model there")
                    return
                answer = {"url": f"http://{self.headers['Host']}/lab/model"}
            elif self.path == "/api/validate-yaml":
                answer = {"errors": [], "warnings": []}
            elif self.path.startswith("/api/models/lab/model/preupload/"):
                files = [each["path"] for each in sent[0]["files"]]
                kinds = {"uploadMode": "regular", "shouldIgnore": False}
                answer = {"files": [{"path": name, **kinds} for name in files]}
            else:
                assert self.path.startswith("/api/models/lab/model/commit/main")
                for each in (line["value"] for line in sent if line["key"] == "file"):
                    (folder / each["path"]).write_bytes(base64.b64decode(each["content"]))
                where = f"http://{self.headers['Host']}/lab/model/commit/{'c' * 40}"
                answer = {"commitUrl": where, "commitOid": "c" * 40, "hookOutput": ""}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def answer(self, *, with_body: bool) -> None:
            wanted = self.path.split("?")[0]
            file = folder / wanted.rsplit("/", 1)[-1]
            asked = wanted == "/api/models/lab/model/revision/main"  # by versions before 1.0
            if not asked and not (wanted.startswith("/lab/model/resolve/main/") and file.is_file()):
                self.send_response(404)
                missing = "Entry" if wanted.startswith("/lab/model/") else "Repo"
                self.send_header("X-Error-Code", f"{missing}NotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = b'{"id": "lab/model", "xetEnabled": false}' if asked else file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # versions before 1.0 have a copy in the latter
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    server.server_close()


def test_a_model_is_loaded_by_its_hub_id(hub: Path) -> None:
    model = DynamoNet(TINY).eval()
    model.save_pretrained(hub)
    again = DynamoNet.from_pretrained("lab/model@main")
    clip = torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(again(clip).pooled, model(clip).pooled)
    assert locate("lab/model").name == "c" * 40


def test_a_model_that_transformers_saved_is_downloaded_too(hub: Path) -> None:
    (hub / "model.safetensors").write_bytes(b"weights")
    (hub / "config.json").write_text("{}")
    assert {path.name for path in locate("lab/model").iterdir()} == {
        "model.safetensors",
        "config.json",
    }


def test_a_model_is_put_on_the_hub_and_comes_back_with_all_it_knew(hub: Path) -> None:
    model = DynamoNet(TINY).eval()
    model.facts = {"classes": ["left", "right"]}
    assert model.push_to_hub("lab/model", token="hf_secret").endswith("/commit/" + "c" * 40)
    assert 'from_pretrained("lab/model")' in (hub / "README.md").read_text()
    again = DynamoNet.from_pretrained("lab/model")
    assert again.facts == model.facts
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_what_the_hub_refuses_is_told_without_a_traceback(hub: Path) -> None:
    with pytest.raises(UserError, match=r"lab/other: cannot be uploaded to the hub: .*403"):
        DynamoNet(TINY).push_to_hub("lab/other", token="hf_secret")


def test_a_name_that_is_neither_folder_nor_on_the_hub_is_refused(hub: Path) -> None:
    with pytest.raises(UserError, match="lab/other: no folder here and cannot be downloaded"):
        DynamoNet.from_pretrained("lab/other")


def test_a_folder_comes_before_a_hub_id(tmp_path: Path) -> None:
    DynamoNet(TINY).save_pretrained(tmp_path / "lab" / "model")
    assert locate("lab/model") == tmp_path / "lab" / "model"


def test_without_the_hubs_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'dynamonet\[hub\]'"):
        locate("lab/model")
