"""A stand-in for the Hugging Face Hub: serves the files of local folders on a loopback port."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import threading
import urllib.parse

from huggingface_hub import constants


class HubServer:
    """The repositories of a stand-in, and what it was asked for.

    Attributes:
      repositories: folder of every commit by repository and revision: {"a/b": {"main": folder}}.
      refusals: HTTP status and the Hub's error code by repository, for those that refuse.
      files: names of the files whose content was sent, in order.
      requests: number of requests.
      url: address of the stand-in.
    """

    def __init__(self):
        self.repositories, self.refusals = {}, {}
        self.files, self.requests, self.url = [], 0, ""

    def commit(self, repository, revision):
        """The folder and the commit of a revision; the commit is a hash of the files."""
        folders = self.repositories[repository]
        for folder in [folders[revision]] if revision in folders else folders.values():
            commit = hashlib.sha1()
            for path in sorted(folder.iterdir()):
                commit.update(path.name.encode() + path.read_bytes())
            if revision in (commit.hexdigest(), *folders):
                return folder, commit.hexdigest()
        raise KeyError(revision)


def handler_of(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            """Prints nothing."""

        def answer(self, content, status=200, **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.requests += 1
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path)
            if api is None and file is None:
                return self.answer(b"", 404)
            repository = (api or file)[1]
            revision = (api[3] if api else file[2]) or "main"
            if repository in hub.refusals:
                status, code = hub.refusals[repository]
                return self.answer(b"", status, X_Error_Code=code)
            if repository not in hub.repositories:
                return self.answer(b"", 404, X_Error_Code="RepoNotFound")
            try:
                folder, commit = hub.commit(repository, revision)
            except KeyError:
                return self.answer(b"", 404, X_Error_Code="RevisionNotFound")
            names = sorted(path.name for path in folder.iterdir())
            sizes = {name: (folder / name).stat().st_size for name in names}
            if api and api[2] == "tree":
                tree = [
                    {"type": "file", "path": name, "size": size, "oid": name}
                    for name, size in sizes.items()
                ]
                return self.answer(json.dumps(tree).encode(), Content_Type="application/json")
            if api:
                files = [{"rfilename": name, "size": size} for name, size in sizes.items()]
                info = {"id": repository, "sha": commit, "siblings": files, "tags": []}
                return self.answer(json.dumps(info).encode(), Content_Type="application/json")
            if file[3] not in names:
                return self.answer(b"", 404, X_Error_Code="EntryNotFound")
            content = (folder / file[3]).read_bytes()
            if self.command == "GET":
                hub.files.append(file[3])
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=commit)

    return Handler


@contextlib.contextmanager
def serve(cache, monkeypatch):
    """Runs a stand-in that huggingface_hub asks, with a cache of its own.

    Args:
      cache: folder of the cache.
      monkeypatch: pytest's; restores huggingface_hub's settings.

    Yields:
      The stand-in.
    """
    hub = HubServer()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    point_to(hub.url, cache, monkeypatch)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_to(url, cache, monkeypatch):
    """Makes huggingface_hub ask `url`, as HF_ENDPOINT and HF_HUB_CACHE at its import would."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def closed_port():
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def environment(hub, cache):
    """The same settings as environment variables, for other processes."""
    names = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **names}
