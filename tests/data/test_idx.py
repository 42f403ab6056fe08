import gzip
import hashlib
import struct

import numpy as np
import pytest

from latentrobust.data import download
from latentrobust.data.images import fashion_mnist, mnist
from latentrobust.data.images.idx import _NAMES, read_idx
from latentrobust.errors import InputError


def idx(array):
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def place(root, name="mnist", train=20, test=10, zipped=True, shape=(28, 28)):
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for (split, what), file in _NAMES.items():
        count = train if split == "train" else test
        array = rng.integers(0, 10, (count, *(shape if what == "images" else ())), dtype=np.uint8)
        raw = idx(array)
        (folder / (f"{file}.gz" if zipped else file)).write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_files_that_the_user_placed(tmp_path, zipped):
    place(tmp_path, zipped=zipped)
    images = mnist(str(tmp_path), download=False)
    assert images.train.images.shape == (20, 1, 28, 28)
    assert images.test.labels.shape == (10,)
    place(tmp_path, "fashion_mnist")
    assert len(fashion_mnist(str(tmp_path), download=False).test.images) == 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: gzip.compress(raw)[:-20], "truncated or damaged"),
        (lambda raw: gzip.compress(raw[:-5]), r"promises \[20, 28, 28\]"),
        (lambda raw: gzip.compress(raw + b"x"), "promises"),
        (lambda raw: b"PNG" + raw, "not an IDX file"),
        (lambda raw: raw[:2] + b"\x0d" + raw[3:], "not an IDX file of unsigned bytes"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_damaged_files_are_named(tmp_path, spoil, message):
    file = place(tmp_path) / "train-images-idx3-ubyte.gz"
    file.write_bytes(spoil(gzip.decompress(file.read_bytes())))
    with pytest.raises(InputError, match=message) as error:
        mnist(str(tmp_path), download=False)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_images_and_labels_must_fit(tmp_path):
    folder = place(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(9, np.uint8))))
    with pytest.raises(InputError, match="expected 10 labels"):
        mnist(str(tmp_path), download=False)


def test_images_of_another_size_are_refused(tmp_path):
    place(tmp_path, shape=(14, 14))
    with pytest.raises(InputError, match=r"\[N, 28, 28\]"):
        mnist(str(tmp_path), download=False)


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"missing.*f68b3c2dcbeaaa9fbdd348bbdeb94873.*LATENTROBUST_DATA"):
        mnist(str(tmp_path), download=False)
    with pytest.raises(InputError, match="no IDX file"):
        read_idx(tmp_path / "nothing")


@pytest.fixture
def server(tmp_path):
    """A local stand-in for the download site."""
    import functools  # noqa: PLC0415
    import http.server  # noqa: PLC0415
    import threading  # noqa: PLC0415

    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_download_verifies_and_keeps_nothing_that_is_wrong(server, tmp_path):
    folder, url = server
    (folder / "file.gz").write_bytes(b"content")
    right = download.Remote(url, {"file.gz": "9a0364b9e99bb480dd25e1f0284c8555"})  # md5 of b"content"
    target = tmp_path / "root"
    assert download.fetch(right, "file.gz", target, True).read_bytes() == b"content"
    wrong = download.Remote(url, {"file.gz": "0" * 32})
    with pytest.raises(InputError, match="does not have the checksum"):
        download.fetch(wrong, "file.gz", tmp_path / "other", True)
    assert not list((tmp_path / "other").iterdir())


@pytest.fixture
def going_on(tmp_path):
    """A server that sends parts of a file; ``sent`` collects how much of it each time."""
    import http.server  # noqa: PLC0415
    import threading  # noqa: PLC0415

    content, sent = bytes(range(256)) * 40, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            part = content[start:] if sent else content[:5000]  # the first connection breaks
            sent.append(len(part))
            self.wfile.write(part)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield content, sent, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_an_interrupted_download_goes_on(going_on, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 1000)
    content, sent, url = going_on
    remote = download.Remote(url, {"file.npy": hashlib.md5(content).hexdigest()})
    with pytest.raises(InputError, match="cannot download"):
        download.fetch(remote, "file.npy", tmp_path, True)
    assert not (tmp_path / "file.npy").exists()
    assert download.fetch(remote, "file.npy", tmp_path, True).read_bytes() == content
    assert sent == [5000, len(content) - 5000]
    assert [path.name for path in tmp_path.iterdir()] == ["file.npy"]
    # All of it was there, but not yet in place.
    (tmp_path / "file.npy").rename(tmp_path / ".file.npy.part")
    assert download.fetch(remote, "file.npy", tmp_path, True).read_bytes() == content


def test_offline_names_file_url_checksum_and_folder(tmp_path):
    offline = download.Remote("http://127.0.0.1:9/", {"file.gz": "ab" * 16})
    with pytest.raises(InputError, match="cannot download") as error:
        download.fetch(offline, "file.gz", tmp_path, True)
    for part in ("http://127.0.0.1:9/file.gz", "ab" * 16, str(tmp_path)):
        assert part in str(error.value)
