"""Views of pictures: like torchvision's, the same for the same draw, and never a crash on a bad file."""

import io
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from pydantic import ValidationError
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.transforms import functional

from datasets_manifest.stream import images, picture_files
from datasets_manifest.stream.images import PictureViews, StrongView, decode_views, draw_crop, draw_strong
from datasets_manifest.stream.picture_files import BadPicture

Pixels = npt.NDArray[np.uint8]
SPEC = PictureViews()
PLAIN_STRONG = StrongView.model_validate({"flip": 0, "jitter_p": 0, "greyscale": 0})
WEAK = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """Correlated noise from coarse to fine, as photographs have it, with hard-edged shapes that tell up from down."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.float32)
    for size in (4, 16, 64, 256):
        coarse = rng.normal(size=(max(2, height // size), max(2, width // size), 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * size**0.5 * 2
    picture[height // 8 : height // 3, width // 6 : width // 2] = (220, 40, 30)
    cv2.circle(picture, (width * 2 // 3, height // 2), min(height, width) // 5, (20, 60, 200), -1)
    return picture.clip(0, 255).astype(np.uint8)


def encoded(picture: Pixels | Image.Image, form: str = "JPEG", mode: str | None = None, **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    options = {"JPEG": {"quality": 92}, "PNG": {"compress_level": 1}}.get(form, {}) | options
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def weak(data: bytes, spec: PictureViews = SPEC) -> Pixels:
    return decode_views(data, spec, None)[0]


def distance(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


def reason(data: bytes, spec: PictureViews = SPEC) -> str:
    with pytest.raises(BadPicture) as caught:
        weak(data, spec)
    return caught.value.reason


SIZES = [(768, 1024), (1001, 641), (511, 900), (300, 400), (120, 90), (256, 256), (1025, 1203)]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", SIZES)
def test_weak_view_is_torchvisions(size: tuple[int, int], form: str) -> None:
    data = encoded(photo(*size), form)
    view, wanted = weak(data), np.asarray(WEAK(opened(data)))
    assert view.shape == (224, 224, 3) and view.dtype == np.uint8 and view.flags.c_contiguous
    assert distance(view, wanted) < 2 and abs(view.astype(float).mean() - wanted.mean()) < 0.3


def test_extreme_shapes_and_sizes_have_views_too() -> None:
    for size in ((2, 200_000), (1, 1), (1, 300), (300, 1), (3, 5)):  # the first would be 256 x 25,600,000 if enlarged
        views = decode_views(encoded(photo(*size), "PNG"), SPEC, np.random.default_rng(0))
        assert [view.shape for view in views if view is not None] == [(224, 224, 3)] * 2
    long = encoded(photo(100, 1200))  # only its middle is enlarged
    assert distance(weak(long), WEAK(opened(long))) < 1.5


@pytest.mark.parametrize("size", SIZES)
def test_strong_crop_is_torchvisions_resized_crop(size: tuple[int, int]) -> None:
    data, spec = encoded(photo(*size)), PictureViews(strong=PLAIN_STRONG)
    for seed in range(2):
        left, top, w, h = draw_strong(size[1], size[0], PLAIN_STRONG, np.random.default_rng(seed)).box
        strong = decode_views(data, spec, np.random.default_rng(seed))[1]
        assert strong is not None and strong.shape == (224, 224, 3)
        # at a reduced size a box begins at every second, fourth, eighth pixel only
        assert distance(strong, functional.resized_crop(opened(data), top, left, h, w, [224, 224])) < 2.5


@pytest.mark.parametrize("size", [(300, 400), (1000, 500), (64, 64)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    height, width = size
    torch.manual_seed(0)
    rng, blank = np.random.default_rng(3), Image.new("L", (width, height))
    ours = np.array([draw_crop(width, height, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(3000)])
    theirs = [transforms.RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    top, left, h, w = np.array(theirs).T
    x, y, ow, oh = ours.T
    for one, other in ((ow * oh, w * h), (ow / oh, w / h), (x, left), (y, top)):
        assert ks_2samp(one, other).pvalue > 1e-4
    assert (x >= 0).all() and (y >= 0).all() and (x + ow <= width).all() and (y + oh <= height).all()


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1), (1, 500)])
def test_crop_of_an_extreme_shape_falls_back_to_the_centre(size: tuple[int, int]) -> None:
    box = draw_crop(size[1], size[0], (0.9, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0))
    blank = Image.new("L", (size[1], size[0]))
    top, left, h, w = transforms.RandomResizedCrop.get_params(blank, [0.9, 1.0], [3 / 4, 4 / 3])
    assert box == (left, top, max(1, w), max(1, h))


@pytest.mark.parametrize(("name", "amounts", "bound"), [
    ("brightness", (0, 0.6, 1, 1.4), 0.2),
    ("contrast", (0, 0.6, 1, 1.4), 0.2),
    ("saturation", (0, 0.6, 1, 1.4), 0.7),
    ("hue", (-0.1, -0.03, 0, 0.05, 0.1), 1.5),
])  # fmt: skip
def test_colour_adjustments_are_torchvisions(name: str, amounts: tuple[float, ...], bound: float) -> None:
    picture = photo(224, 224)
    for amount in amounts:
        ours = getattr(images, f"adjust_{name}")(picture, amount)
        theirs = getattr(functional, f"adjust_{name}")(Image.fromarray(picture), amount)
        assert ours.dtype == np.uint8 and distance(ours, theirs) < bound


def test_choices_have_their_probabilities_and_ranges() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_strong(400, 300, SPEC.strong, rng) for _ in range(4000)]
    assert np.mean([draw.flip for draw in draws]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([draw.grey for draw in draws]) == pytest.approx(0.2, abs=0.03)
    jittered = [draw.jitter for draw in draws if draw.jitter]
    assert len(jittered) / len(draws) == pytest.approx(0.8, abs=0.03)
    for adjust, low, high in zip(images.ADJUSTMENTS, (0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1), strict=True):
        amounts = np.array([dict(jitter)[adjust] for jitter in jittered])
        assert amounts.min() >= low and amounts.max() <= high
        assert ks_2samp(amounts, rng.uniform(low, high, 4000)).pvalue > 1e-4
        assert np.mean([jitter[0][0] is adjust for jitter in jittered]) == pytest.approx(0.25, abs=0.03)


def test_flip_and_greyscale_are_carried_out() -> None:
    data = encoded(photo(300, 400))
    specs = [PLAIN_STRONG, *(PLAIN_STRONG.model_copy(update={choice: 1.0}) for choice in ("flip", "greyscale"))]
    plain, flipped, grey = (decode_views(data, PictureViews(strong=s), np.random.default_rng(5))[1] for s in specs)
    assert np.array_equal(flipped, plain[:, ::-1])
    assert np.ptp(grey.astype(int), axis=2).max() == 0 and distance(grey.mean(), plain.mean()) < 20


def test_the_generator_alone_decides() -> None:
    data = encoded(photo(768, 1024))
    (weak1, strong1), (weak2, strong2) = (decode_views(data, SPEC, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(weak1, weak2) and np.array_equal(strong1, strong2)  # type: ignore[arg-type]
    assert distance(decode_views(data, SPEC, np.random.default_rng(8))[1], strong1) > 5  # type: ignore[arg-type]
    assert decode_views(data, SPEC, None)[1] is None
    assert distance(weak(data), weak1) < 1.5  # may be decoded at another scale, shows the same


@pytest.mark.parametrize(("short", "flags"), [
    (511, cv2.IMREAD_COLOR), (512, cv2.IMREAD_REDUCED_COLOR_2), (1025, cv2.IMREAD_REDUCED_COLOR_4),
    (2048, cv2.IMREAD_REDUCED_COLOR_8),
])  # fmt: skip
def test_jpegs_are_decoded_once_and_small(short: int, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: calls.append(flags) or decode(data, flags))
    data = encoded(np.zeros((short, 2100, 3), np.uint8))
    decode_views(data, SPEC, None)
    decode_views(data, PictureViews(strong=StrongView(area=(0.01, 0.01))), np.random.default_rng(0))
    # the second one's crop is so small that it needs every pixel there is
    assert calls == [flags | cv2.IMREAD_IGNORE_ORIENTATION, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION]


def negative_behind(picture: Pixels, form: str, **options: object) -> bytes:
    """An animation (or, as MPO, a JPEG) whose second frame is the negative."""
    return encoded(picture, form, save_all=True, append_images=[Image.fromarray(255 - picture)], **options)


COLOUR = {
    "JPEG": (encoded, 2),
    "progressive JPEG": (lambda p: encoded(p, progressive=True), 2),
    "CMYK JPEG": (lambda p: encoded(p, mode="CMYK"), 3),
    "JPEG with a second": (lambda p: negative_behind(p, "MPO"), 3),
    "RGBA PNG": (lambda p: encoded(p, "PNG", "RGBA"), 0.01),
    "palette PNG": (lambda p: encoded(Image.fromarray(p).quantize(256), "PNG"), 8),
    "16-bit PNG": (lambda p: cv2.imencode(".png", p[..., ::-1].astype(np.uint16) * 256 + 77)[1].tobytes(), 1),
    "animated PNG": (lambda p: negative_behind(p, "PNG"), 0.01),
    "animated GIF": (lambda p: negative_behind(p, "GIF"), 15),
    "animated WebP": (lambda p: negative_behind(p, "WEBP", lossless=True), 0.01),
    "WebP": (lambda p: encoded(p, "WEBP", quality=95), 3),
    "BMP": (lambda p: encoded(p, "BMP"), 0.01),
    "TIFF": (lambda p: encoded(p, "TIFF", compression="tiff_lzw"), 0.01),
}


@pytest.mark.parametrize("kind", COLOUR)
def test_every_kind_of_file_shows_its_colours(kind: str) -> None:
    make, bound = COLOUR[kind]
    picture = photo(256, 320)
    assert distance(weak(make(picture)), picture[16:240, 48:272]) < bound


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "16-bit PNG", "16-bit TIFF", "1-bit PNG"])
def test_greyscale_files_become_three_equal_channels(kind: str) -> None:
    grey = cv2.cvtColor(photo(256, 256), cv2.COLOR_RGB2GRAY)
    bits, _, form = kind.rpartition(" ")
    stored = {"16-bit": grey.astype(np.uint16) * 256 + 3, "1-bit": grey > 127}.get(bits, grey)
    view = weak(encoded(stored, form))
    wanted = stored * 255 if bits == "1-bit" else grey
    assert np.ptp(view, axis=2).max() == 0 and distance(view[..., 0], wanted[16:240, 16:240]) < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_white(mode: str) -> None:
    image = Image.new("RGBA", (300, 300), (0, 0, 0, 0)).convert(mode)
    options = {} if "A" in mode else {"transparency": image.getpixel((0, 0))}
    assert (weak(encoded(image, "PNG", **options)) == 255).all()
    half = weak(encoded(Image.new("RGBA", (300, 300), (0, 0, 0, 128)), "PNG"))
    assert distance(half, 127) < 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_without_the_alpha_channel_hidden_colours_show_as_pillow_converts_them(mode: str) -> None:
    hidden = Image.new("RGBA", (300, 300), (90, 90, 90, 0)).convert(mode)
    options = {} if "A" in mode else {"transparency": hidden.getpixel((0, 0))}
    data = encoded(hidden, "PNG", **options)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").crop((0, 0, 224, 224)))
    assert (wanted == 90).all()
    for rng in (None, np.random.default_rng(0)):
        view, strong = decode_views(data, PictureViews(transparency="dropped", strong=PLAIN_STRONG), rng)
        assert np.array_equal(view, wanted)
        assert strong is None or np.array_equal(strong, wanted)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(form: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo(520, 800), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert distance(weak(data), WEAK(upright)) < 1.5
    for seed in range(3):
        left, top, w, h = draw_strong(*upright.size, PLAIN_STRONG, np.random.default_rng(seed)).box
        strong = decode_views(data, PictureViews(strong=PLAIN_STRONG), np.random.default_rng(seed))[1]
        assert distance(strong, functional.resized_crop(upright, top, left, h, w, [224, 224])) < 2.5  # type: ignore[arg-type]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "good").write_bytes(b"bytes")
    assert images.read_picture_bytes(str(tmp_path / "good")) == b"bytes"
    for name, wanted in (("none", "missing"), ("empty", "empty"), ("", "unreadable"), ("a\0b", "unreadable")):
        with pytest.raises(BadPicture) as caught:
            images.read_picture_bytes(str(tmp_path / name))
        error = pickle.loads(pickle.dumps(caught.value))  # as it comes out of another process
        assert (error.reason, error.path, str(error)) == (
            wanted,
            str(tmp_path / name),
            f"{tmp_path / name}: {error.problem}",
        )


def test_what_is_not_an_image_is_called_so() -> None:
    for data in (b"<html>not here</html>", b"\0" * 500, b"%!PS-Adobe-3.0 EPSF-3.0", b"RIFF\x24\0\0\0WAVEfmt "):
        assert reason(data) == "not an image"
    assert reason(b"") == "empty"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9, 0.99])
def test_truncated_files_are_found(form: str, part: float) -> None:
    data = encoded(photo(300, 400), form)
    assert reason(data[: int(part * len(data))]) == "truncated"


def test_a_truncated_jpeg_is_found_behind_a_whole_thumbnail() -> None:
    data = encoded(photo(300, 400), comment=encoded(photo(60, 80)))
    assert weak(data).shape == (224, 224, 3)
    for part in (0.5, 0.8, 0.99):
        assert reason(data[: int(part * len(data))]) == "truncated"


def test_bytes_after_the_end_do_no_harm() -> None:
    data = encoded(photo(300, 400))
    for tail in (b"\0" * 100, b"SEFT appended by a phone", b"\xff\xda\xff\xd8"):
        assert np.array_equal(weak(data + tail), weak(data))


def test_damage_inside_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(photo(300, 400), "PNG"))
    data[len(data) // 2] ^= 255
    assert reason(bytes(data)) == "unreadable"
    data[33] = 0xE0  # the second chunk claims 3.7 GB, which OpenCV would allocate
    with monkeypatch.context() as patched:
        patched.delattr(cv2, "imdecode")
        assert reason(bytes(data)) in ("truncated", "unreadable")
    picture = photo(256, 256)  # damaged EXIF is no reason to lose a picture
    assert distance(weak(encoded(picture, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), weak(encoded(picture))) == 0


def claims(size: tuple[int, int]) -> dict[str, bytes]:
    """Small files whose headers claim to be large pictures."""
    width, height = (side.to_bytes(4, "big") for side in size)
    png = bytearray(encoded(photo(8, 8), "PNG"))
    png[16:24] = width + height
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    jpeg = bytearray(encoded(photo(8, 8)))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = height[2:] + width[2:]
    return {"PNG": bytes(png), "JPEG": bytes(jpeg)}


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", [8_000, 9_800, 60_000])  # above ours, above Pillow's warning, above Pillow's limit
def test_bombs_are_refused_by_their_header(form: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(cv2, "imdecode", decoded)
    monkeypatch.setattr(picture_files, "_decode_with_pillow", decoded)
    assert reason(claims((side, side))[form]) == "too large"


def test_max_pixels_is_the_largest_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(100, 120))
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 12_000)
    assert weak(data, PictureViews()).shape == (224, 224, 3)
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 11_999)
    assert reason(data, PictureViews()) == "too large"


@pytest.mark.parametrize("values", [
    {"crop": 300}, {"resize": 0}, {"max_pictures": 0}, {"size": 224}, {"strong": {"area": [0, 1]}},
    {"strong": {"area": [0.5, 1.2]}}, {"strong": {"area": [0.5, 0.2]}}, {"strong": {"flip": 1.1}},
    {"strong": {"jitter": [0, 0, 0, 0.6]}}, {"strong": {"jitter": [-0.1, 0, 0, 0]}}, {"strong": {"blur": 1}},
])  # fmt: skip
def test_wrong_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PictureViews.model_validate(values)


def test_settings_come_from_yaml_lists_and_stay() -> None:
    spec = PictureViews.model_validate({"resize": 72, "crop": 64, "strong": {"area": [0.2, 0.8]}})
    assert spec.strong.area == (0.2, 0.8) and weak(encoded(photo(90, 90)), spec).shape == (64, 64, 3)
    with pytest.raises(ValidationError):
        spec.crop = 32  # type: ignore[misc]


def test_data_tasks_import_no_training_library() -> None:
    code = "import sys, datasets_manifest.stream.images, datasets_manifest.stream.text; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "ray"} & set(modules)
