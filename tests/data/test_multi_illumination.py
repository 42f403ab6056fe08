"""The published layout: a real scene, made-up ones for whole splits, bad files, and downloads."""

import functools
import http.server
import io
import multiprocessing
import shutil
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentrobust.data import download
from latentrobust.data.__main__ import main
from latentrobust.data.lights import fetching, multi_illumination, packed, scene_folder
from latentrobust.data.lights.materials import MATERIALS, to_classes
from latentrobust.data.lights.module import LightPairs
from latentrobust.data.lights.multi_illumination import mip_size, read_scene, scene_files, scene_names
from latentrobust.errors import InputError

SAMPLE = Path(__file__).parent / "multi_illumination_sample" / "everett_kitchen2"
LEVEL = 8  # images of 15×23
NAMES = ("everett_a1", "everett_b2", "main_drylab1", "main_x1", "main_x2", "willow_y3")


def write_scene(folder, level=LEVEL, seed=0, lights=25):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    height, width = mip_size(level)
    for light in range(lights):
        pixels = np.full((height, width, 3), 8 * light + 20, np.uint8)
        Image.fromarray(pixels).save(folder / f"dir_{light}_mip{level}.jpg", quality=95)
    indices = generator.integers(0, len(MATERIALS), (height, width)).astype(np.uint8)
    picture = Image.fromarray(indices, "L").convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.save(folder / f"materials_mip{level}.png")
    return indices


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(NAMES):
        write_scene(tmp_path / "multi_illumination" / name, seed=number)
    return tmp_path


def test_the_real_scene():
    images, indices = read_scene(scene_files(SAMPLE, 6), 6)
    assert images.shape == (25, 3, 62, 93)
    assert indices.shape == (62, 93)
    with Image.open(SAMPLE / "dir_7_mip6.jpg") as picture:
        np.testing.assert_array_equal(images[7].permute(1, 2, 0), np.array(picture))
    with Image.open(SAMPLE / "materials_mip4.png") as picture:
        whole = np.array(picture)
    listed = {0: 0.1, 1: 2.6, 12: 19.9, 17: 8.0, 18: 21.3, 20: 40.0, 21: 4.7, 23: 2.0, 30: 0.6, 32: 0.7}
    for index, percent in listed.items():
        assert 100 * (whole == index).mean() == pytest.approx(percent, abs=0.06)
        assert 100 * (indices == index).float().mean() == pytest.approx(percent, abs=0.5)
    assert set(np.unique(whole)) == set(listed)
    names = {MATERIALS[index] for index in listed if index > 2}
    assert names == {"Glass", "Metal", "Mirror", "Painted", "Paper/tissue", "Plastic - opaque", "Wax", "Wood"}
    assert to_classes(indices).max() == 35


def test_a_missing_level_is_made_by_area_from_a_larger_one():
    images, indices = read_scene(scene_files(SAMPLE, 7), 7)
    assert images.shape == (25, 3, 31, 46)
    assert indices.shape == (31, 46)
    large, _ = read_scene(scene_files(SAMPLE, 6), 6)
    # 62 rows are halved exactly; 93 columns are not, so means over whole rows are compared.
    rows = large.float().reshape(25, 3, 31, 2, 93).mean((3, 4))
    assert (images.float().mean(3) - rows).abs().max() < 1.5
    with pytest.raises(InputError, match=r"everett_kitchen2: MIP 5 of light 0 cannot be made from the smaller MIP 6"):
        scene_files(SAMPLE, 5)


def test_names_and_sizes_are_the_published_ones():
    names = scene_names()
    assert len(names) == len(set(names)) == 1015
    assert sum(name.startswith("everett") for name in names) == 30
    assert sum("drylab" in name for name in names) == 25
    assert [mip_size(level) for level in (3, 4, 5, 6)] == [(500, 750), (250, 375), (125, 187), (62, 93)]


def test_splits_follow_the_names(root):
    found = multi_illumination(str(root), level=LEVEL)
    assert found.test.names == ("everett_a1", "everett_b2")
    assert found.validation.names == ("main_drylab1",)
    assert found.train.names == ("main_x1", "main_x2", "willow_y3")
    assert found.lights == tuple(f"dir_{light}" for light in range(25))
    assert found.train.images.shape == (3, 25, 3, 15, 23)
    assert found.train.images[1, :, 0].float().mean((1, 2)).diff().gt(5).all()
    data = LightPairs(lambda: found, "multi_illumination", batch_size=2, resident=False)
    data.setup()
    assert data.pairs("test", torch.arange(3)).labels.shape == (3, 15, 23)


def test_packed_files_are_read_again_until_a_file_changes(root, monkeypatch):
    first = multi_illumination(str(root), level=LEVEL)
    packs = root / "multi_illumination" / "packed"
    assert len(list(packs.iterdir())) == 9
    for end in (".npy", ".materials.npy", ".json"):
        for split in ("train", "validation", "test"):
            assert len(list(packs.glob(f"{split}-{'?' * 16}{end}"))) == 1
    with monkeypatch.context() as only_packed:
        only_packed.setattr(packed.Packing, "_write", lambda *_: pytest.fail("packed again"))
        again = multi_illumination(str(root), level=LEVEL)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.materials, again.train.materials)
    scene = root / "multi_illumination" / "main_x1"
    Image.fromarray(np.zeros((15, 23, 3), np.uint8)).save(scene / "dir_3_mip8.jpg")
    assert multi_illumination(str(root), level=LEVEL).train.images[0, 3].max() == 0
    # Other settings have packs of their own.
    few = multi_illumination(str(root), level=LEVEL, scenes=["main_x2", "main_drylab1", "everett_a1"])
    assert few.train.names == ("main_x2",)
    with monkeypatch.context() as only_packed:
        only_packed.setattr(packed.Packing, "_write", lambda *_: pytest.fail("packed again"))
        assert multi_illumination(str(root), level=LEVEL).train.names == ("main_x1", "main_x2", "willow_y3")


def test_two_processes_may_pack_at_once(root):
    """Started together, as by multi-node runs: both end with whole files."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.map(_packed_sum, [str(root)] * 2)
    assert found[0] == found[1] > 0
    assert not list((root / "multi_illumination" / "packed").glob(".*"))


def _packed_sum(root):
    return int(multi_illumination(root, level=LEVEL).train.images.long().sum())


def test_a_folder_that_cannot_be_written_is_named(root):
    blocked = root / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"cannot pack scenes into .*file.*data.source.cache"):
        multi_illumination(str(root), level=LEVEL, cache=str(blocked / "sub"))


def break_lights(scene):
    (scene / "dir_4_mip8.jpg").unlink()
    (scene / "dir_9_mip8.jpg").unlink()


def break_size(scene):
    Image.fromarray(np.zeros((15, 20, 3), np.uint8)).save(scene / "dir_4_mip8.jpg")


def break_map_size(scene):
    Image.fromarray(np.zeros((10, 23), np.uint8), "L").save(scene / "materials_mip8.png")


def break_map_mode(scene):
    Image.fromarray(np.zeros((15, 23, 3), np.uint8)).save(scene / "materials_mip8.png")


def remove_map(scene):
    (scene / "materials_mip8.png").unlink()


def break_image(scene):
    (scene / "dir_2_mip8.jpg").write_bytes(b"no image")


def cut_image(scene):
    noise = np.random.default_rng(0).integers(0, 256, (15, 23, 3)).astype(np.uint8)
    Image.fromarray(noise).save(scene / "dir_2_mip8.jpg")
    whole = (scene / "dir_2_mip8.jpg").read_bytes()
    (scene / "dir_2_mip8.jpg").write_bytes(whole[:-100])  # the header is whole


def lose_first_light(scene):
    (scene / "dir_0_mip8.jpg").unlink()


def unknown_index(scene):
    Image.fromarray(np.full((15, 23), 41, np.uint8), "L").save(scene / "materials_mip8.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_lights, r"main_x1 lacks light 4, 9 of 25"),
        (break_size, r"main_x1/dir_4_mip8.jpg is 20×15, MIP 8 is 23×15"),
        (break_map_size, r"main_x1/materials_mip8.png is 23×10"),
        (break_map_mode, r"materials_mip8.png is a RGB image; maps of materials are indexed"),
        (remove_map, r"main_x1 has no materials_mip8.png"),
        (break_image, r"dir_2_mip8.jpg is not an image"),
        (cut_image, r"dir_2_mip8.jpg cannot be read"),
        (lose_first_light, r"main_x1 lacks light 0 of 25"),
        (unknown_index, r"materials_mip8.png has index 41; materials are 0 to 40"),
    ],
)
def test_a_bad_scene_is_named_and_skipped_only_when_asked(root, damage, message, capsys):
    damage(root / "multi_illumination" / "main_x1")
    with pytest.raises(InputError, match=message):
        multi_illumination(str(root), level=LEVEL)
    assert not list((root / "multi_illumination").glob("packed/*"))
    found = multi_illumination(str(root), level=LEVEL, incomplete="skip")
    assert found.train.names == ("main_x2", "willow_y3")
    assert found.left_out == ("main_x1",)
    LightPairs(lambda: found, "multi_illumination", batch_size=2).setup()
    assert "1 scene was left out: main_x1." in capsys.readouterr().err


def test_other_bad_input(root, tmp_path):
    with pytest.raises(InputError, match=r"no scenes .* in .*nothing.*download=true"):
        multi_illumination(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"MIP 3 of light 0 cannot be made"):
        multi_illumination(str(root), level=3)
    with pytest.raises(InputError, match="level must be a whole number at least 0 and at most 8, got 9"):
        multi_illumination(str(root), level=9)
    with pytest.raises(InputError, match=r"lacks the scenes main_x9"):
        multi_illumination(str(root), level=LEVEL, scenes=["main_x9"])
    with pytest.raises(InputError, match=r"none for validation.*'nowhere'"):
        multi_illumination(str(root), level=LEVEL, validation="nowhere")
    shutil.copytree(root / "multi_illumination" / "main_x1", root / "multi_illumination" / "deeper" / "main_x1")
    with pytest.raises(InputError, match="two scenes are called main_x1"):
        multi_illumination(str(root), level=LEVEL)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server with two scenes, as archives; it breaks off the first archive that it is asked for."""
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    monkeypatch.setattr(download, "BLOCK", 1000)
    folder = tmp_path / "server"
    contents = {}
    for number, name in enumerate(("main_drylab1", "everett_a1", "main_x1")):
        scene = folder / name
        write_scene(scene, seed=number)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for image in sorted(scene.glob("*.jpg")):
                file.write(image, f"{name}/{image.name}")
                image.unlink()
        (scene / f"{name}_mip{LEVEL}_jpg.zip").write_bytes(archive.getvalue())
        contents[name] = archive.getvalue()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            breaks = self.path.endswith("main_x1_mip8_jpg.zip") and not start
            self.wfile.write(content[start:] if not breaks else content[:3000])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, asked, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_scenes_are_fetched_once_and_a_broken_connection_goes_on(published, tmp_path):
    _, asked, url = published
    names = ["main_drylab1", "everett_a1", "main_x1"]
    settings = {"level": LEVEL, "download": True, "scenes": names, "url": url}
    found = multi_illumination(str(tmp_path), **settings)
    assert found.train.names == ("main_x1",)
    assert [bytes_ for path, bytes_ in asked if path.endswith("main_x1_mip8_jpg.zip")] == [None, "bytes=3000-"]
    assert not [path for path in (tmp_path / "multi_illumination").rglob(".*") if path.is_file()]
    count = len(asked)
    multi_illumination(str(tmp_path), **settings)
    assert len(asked) == count


def test_what_the_server_lacks_or_damages_is_named(published, tmp_path):
    folder, _, url = published
    fetch = functools.partial(fetching.fetch_scenes, level=LEVEL, folder=tmp_path / "root", url=url)
    with pytest.raises(InputError, match=r"cannot download .*nowhere_mip8_jpg.zip \(status 404\)"):
        fetch(["nowhere"])
    archive = folder / "everett_a1" / "everett_a1_mip8_jpg.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-200])
    with pytest.raises(InputError, match="is damaged"):
        fetch(["everett_a1"])
    archive.write_bytes(whole)
    picture = folder / "everett_a1" / "materials_mip8.png"
    whole = picture.read_bytes()
    for wrong in (b"<html>", whole[:60] + b"x" + whole[61:]):
        picture.write_bytes(wrong)
        with pytest.raises(InputError, match=r"materials_mip8.png is damaged \(an image cannot be decoded"):
            fetch(["everett_a1"])
    # Mended, it is fetched anew, beside another that still cannot be had; a name given twice is fetched once.
    picture.write_bytes(whole)
    with pytest.raises(InputError, match=r"nowhere_mip8_jpg.zip \(status 404\).*; 2 scenes were fetched"):
        fetch(["nowhere", "everett_a1", "main_drylab1", "everett_a1"])
    assert fetch(["everett_a1", "main_drylab1"]) == []
    with pytest.raises(InputError, match="0 scenes were fetched"):  # and it does not ask for every scene
        fetching.fetch_scenes([f"s{n}" for n in range(500)], LEVEL, tmp_path / "none", url="http://127.0.0.1:9/")
    assert not any((tmp_path / "none").iterdir())
    with pytest.raises(InputError, match="levels from 0 to 8"):
        fetching.fetch_scenes(["a"], 9, tmp_path / "none", url=url)
    with pytest.raises(InputError, match="ConnectionError"):
        fetching.fetch_scenes(["a"], LEVEL, tmp_path / "root", url="http://127.0.0.1:9/")


def test_the_fetch_command(published, tmp_path, capsys):
    _, _, url = published
    arguments = ["fetch", "--level", str(LEVEL), "--url", url, "--data-dir", str(tmp_path)]
    main([*arguments, "--scenes", "main_x1", "everett_a1"])
    assert "2 scenes fetched, 0 were there" in capsys.readouterr().out
    main([*arguments, "--scenes", "main_x1"])
    assert "0 scenes fetched, 1 were there" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--scenes", "nowhere"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def write_plain(folder, scenes=4, grey=True, size=(12, 18)):
    for scene in range(scenes):
        (folder / f"room{scene}").mkdir(parents=True)
        for light in ("left", "right", "top"):
            pixels = np.full((*size,) if grey else (*size, 3), 40 * scene + len(light), np.uint8)
            Image.fromarray(pixels).save(folder / f"room{scene}" / f"{light}.png")


@pytest.mark.parametrize("grey", [True, False])
def test_a_folder_of_plain_images(tmp_path, grey):
    write_plain(tmp_path, grey=grey)
    found = scene_folder(str(tmp_path), validation=["room2"], test=1)
    assert found.lights == ("left", "right", "top")
    assert found.train.images.shape == (2, 3, 1 if grey else 3, 12, 18)
    assert found.train.materials is None
    assert found.validation.names == ("room2",)
    assert found.validation.images[0, 1].unique().tolist() == [85]
    assert {*found.train.names, *found.test.names} == {"room0", "room1", "room3"}
    small = scene_folder(str(tmp_path), validation=["room2"], size=[6, 9])
    assert small.train.images.shape[-2:] == (6, 9)


def test_sixteen_bits_of_grey_become_eight_and_floats_are_refused(tmp_path):
    write_plain(tmp_path)
    for scene in range(4):
        for number, light in enumerate(("left", "right", "top")):
            levels = np.full((12, 18), 257 * (10 * scene + number), np.uint16)
            Image.fromarray(levels).save(tmp_path / f"room{scene}" / f"{light}.png")
    found = scene_folder(str(tmp_path), validation=["room2"], test=["room3"])
    assert found.validation.images.shape[2] == 1
    assert found.validation.images[0, :, 0, 0, 0].tolist() == [20, 21, 22]
    (tmp_path / "room1" / "top.png").unlink()
    Image.fromarray(np.zeros((12, 18), np.float32)).save(tmp_path / "room1" / "top.tif")
    with pytest.raises(InputError, match=r"room1/top.tif has pixels of type F"):
        scene_folder(str(tmp_path), validation=["room2"], test=["room3"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: (place / "room1" / "top.png").unlink(), r"room1 lacks top"),
        (
            lambda place: Image.fromarray(np.zeros((5, 5), np.uint8)).save(place / "room3" / "left.png"),
            r"room3/left.png is 5×5 and grey, most scenes are 18×12 and grey",
        ),
        (
            lambda place: Image.fromarray(np.zeros((12, 18, 3), np.uint8)).save(place / "room3" / "left.png"),
            r"room3/left.png is 18×12 and colour",
        ),
        (
            lambda place: shutil.copy(place / "room2" / "left.png", place / "room2" / "left.bmp"),
            r"room2 has two files for light left",
        ),
    ],
)
def test_scenes_unlike_the_first_are_named_and_skipped_only_when_asked(tmp_path, change, message):
    write_plain(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        scene_folder(str(tmp_path))
    assert len(scene_folder(str(tmp_path), incomplete="skip").left_out) == 1


def test_folders_without_scenes(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        scene_folder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no folders of scenes"):
        scene_folder(str(tmp_path))
    write_plain(tmp_path, scenes=2)
    with pytest.raises(InputError, match="2 scenes are too few"):
        scene_folder(str(tmp_path))
    with pytest.raises(InputError, match=r"data.source.test names cellar"):
        scene_folder(str(tmp_path), test=["cellar"])
    twice = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())[:1] * 2
    with pytest.raises(InputError, match=f"data.source.test names {twice[0]} more than once"):
        scene_folder(str(tmp_path), test=twice)
    write_plain(tmp_path / "more")
    with pytest.raises(InputError, match="larger than the images"):
        scene_folder(str(tmp_path / "more"), size=[40, 40])


def lit(place, *names, **saved):
    """A scene of one picture under several names."""
    picture = saved.pop("picture")
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture.save(place / name, **saved)


def test_lights_and_scenes_come_in_natural_order(tmp_path):
    for scene in ("2", "10", "1", "30"):
        for light in range(12):
            lit(tmp_path / scene, f"{light}.png", picture=Image.new("L", (6, 4), 20 * light))
    found = scene_folder(str(tmp_path), validation=["30"], test=["10"])
    assert found.lights == tuple(map(str, range(12)))
    assert found.train.names == ("1", "2")
    assert found.train.images[0, :, 0, 0, 0].tolist() == [20 * light for light in range(12)]


def test_orientation_tags_are_honoured(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, :3] = [200, 100, 50]  # the upper left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    for scene in range(3):
        lit(tmp_path / f"{scene}", "a.png", "b.png", picture=Image.fromarray(pixels), exif=exif)
    found = scene_folder(str(tmp_path))
    assert found.train.images.shape == (1, 2, 3, 6, 4)
    turned = np.rot90(pixels, -1)
    assert np.array_equal(found.train.images[0, 0].permute(1, 2, 0).numpy(), turned)


def test_transparent_pixels_lie_on_the_stated_background(tmp_path):
    pixels = np.full((4, 6, 4), [250, 10, 10, 255], np.uint8)
    pixels[:, 3:] = [1, 2, 3, 0]  # a hidden colour
    palette = Image.fromarray(pixels[..., :3]).quantize(4)
    palette.info["transparency"] = palette.getpixel((5, 0))
    for scene in range(3):
        lit(tmp_path / f"{scene}", "a.png", picture=Image.fromarray(pixels))
        lit(tmp_path / f"{scene}", "b.png", picture=palette, transparency=palette.info["transparency"])
        lit(tmp_path / f"{scene}", "c.png", picture=Image.new("CMYK", (6, 4)).convert("RGB"))
    for background, options in ((255, {}), (0, {"background": 0}), (128, {"background": 128})):
        images = scene_folder(str(tmp_path), **options).train.images[0]
        for light in (0, 1):
            assert images[light, :, 0, 5].tolist() == [background] * 3
            assert images[light, 0, 0, 0] > 240
    with pytest.raises(InputError, match="background must be a whole number at least 0 and at most 255, got 256"):
        scene_folder(str(tmp_path), background=256)


def test_sixteen_bits_in_either_byte_order_become_eight(tmp_path):
    levels = np.full((4, 6), 257 * 77, np.uint16)
    for scene in range(3):
        lit(tmp_path / f"{scene}", "a.tif", picture=Image.fromarray(levels))
        (tmp_path / f"{scene}" / "b.tif").write_bytes(big_endian_tiff(levels))
    found = scene_folder(str(tmp_path))
    assert found.train.images.unique().tolist() == [77]


def big_endian_tiff(levels):
    """A TIFF of one strip of 16-bit grey, most significant byte first."""
    height, width = levels.shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 3, height), (279, 4, 2 * height * width),
    ]  # fmt: skip
    pixels = levels.astype(">u2").tobytes()
    raw = b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        raw += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    return raw + struct.pack(">I", 0)


@pytest.mark.parametrize("name", ["b.tif", "b.webp", "b.png"])
def test_pictures_of_several_pages_or_frames_are_refused_by_name(tmp_path, name):
    frames = [Image.new("RGB", (6, 4), (level, 0, 0)) for level in (10, 250)]
    for scene in range(3):
        lit(tmp_path / f"{scene}", "a.png", picture=frames[0])
        lit(tmp_path / f"{scene}", name, picture=frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=rf"{name} has 2 pages or frames"):
        scene_folder(str(tmp_path))
