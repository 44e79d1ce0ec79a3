"""Files of pictures: which way up they are, what OpenCV refuses, and names of unfinished ones."""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from controlnet_pack.annotators import AnnotatorError, annotate
from controlnet_pack.annotators.files import (
    decoded,
    encoded,
    meant_for,
    read_picture,
    write_hint,
)

ORIENTATIONS = range(1, 9)


def picture(orientation: int | None, kind: str, channels: int = 4) -> bytes:
    """A picture of noise, half seen through, as a file that says which way up it is."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, channels), np.uint8)
    file = BytesIO()
    options = {} if orientation is None else {"exif": exif(orientation)}
    Image.fromarray(pixels).save(file, kind, lossless=True, exact=True, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = "what is shown"  # a tag before the one that counts
    tags[0x0112] = orientation
    return tags


def as_shown(file: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(file))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_with_alpha_are_upright(orientation, kind):
    file = picture(orientation, kind)
    assert np.array_equal(decoded(file, "x"), as_shown(file))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *ORIENTATIONS])
def test_pictures_without_alpha_are_upright(orientation, kind):
    file = picture(orientation, kind, channels=3)
    assert np.array_equal(decoded(file, "x"), as_shown(file))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("channels", [3, 4])
def test_usual_pictures_are_decoded_once(monkeypatch, kind, channels):
    decode, flags = cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda *args: flags.append(args[1]) or decode(*args))
    decoded(picture(None, kind, channels=3 if kind == "JPEG" else channels), "x")
    assert len(flags) == 1


@pytest.mark.parametrize("orientation", [6, 8])
def test_pictures_without_alpha_are_turned_once(orientation):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = 200
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif(orientation))
    found = decoded(file.getvalue(), "x").astype(int)
    assert np.abs(found - as_shown(file.getvalue())).max() < 12


def test_motorola_s_order_of_bytes_is_read_too():
    content = struct.pack(">2sHIHHHIH", b"MM", 42, 8, 1, 0x0112, 3, 1, 6) + bytes(6)
    chunk = struct.pack(">I4s", len(content), b"eXIf") + content
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    file = picture(None, "PNG")
    start = file.index(b"IDAT") - 4
    file = file[:start] + chunk + file[start:]
    assert np.array_equal(decoded(file, "x"), as_shown(file))
    assert decoded(file, "x").shape == (8, 5, 4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_that_say_nothing_are_as_they_are(kind):
    file = picture(None, kind)
    assert np.array_equal(decoded(file, "x"), as_shown(file))


@pytest.mark.parametrize("length", [0, 1, 5, 9, 12, 19])
def test_half_of_what_is_said_is_nothing(length):
    content = struct.pack("<2sHIHHHIH", b"II", 42, 8, 1, 0x0112, 3, 1, 6)[:length]
    chunk = struct.pack(">I4s", len(content), b"eXIf") + content
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    plain = picture(None, "PNG")
    start = plain.index(b"IDAT") - 4
    found = decoded(plain[:start] + chunk + plain[start:], "x")
    assert np.array_equal(found, decoded(plain, "x"))


def test_more_pixels_than_opencv_reads_are_a_sentence():
    """The header alone says 40,000 x 40,000."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", 40_000, 40_000, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    file += struct.pack(">I", zlib.crc32(header))
    file += struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    file += struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    with pytest.raises(AnnotatorError, match=r"^x is refused by OpenCV: it has more than 2\^30"):
        decoded(file, "x")


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_a_hint_that_is_too_large_for_its_format_is_a_sentence(ending):
    hint = np.zeros((1, 70_000, 3), np.uint8)
    sentence = f"^A {ending} can't hold 70000 x 1 pixels in colour; use .png"
    with pytest.raises(AnnotatorError, match=sentence):
        encoded(ending, hint)


def test_a_version_of_opencv_that_raises_says_the_same(monkeypatch):
    def refuses(*_: object) -> None:
        raise cv2.error("CV_Assert(code)")

    monkeypatch.setattr(cv2, "imencode", refuses)
    with pytest.raises(AnnotatorError, match=r"^A \.png can't hold 3 x 2 pixels"):
        encoded(".png", np.zeros((2, 3, 3), np.uint8))


def test_a_strip_that_is_too_long_to_shuffle_is_a_sentence():
    with pytest.raises(AnnotatorError, match="has 32767 x 2 pixels, but shuffle takes 32766 at a"):
        annotate("shuffle", np.zeros((2, 32_767, 3), np.uint8))
    longest = np.zeros((2, 32_766, 3), np.uint8)
    assert annotate("shuffle", longest).shape == longest.shape


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("000001.42.part.tar", "000001.tar"),
        ("000001.failed.42.part.txt", "000001.failed.txt"),
        ("book.part.png", None),
        ("x.part.rar", None),
        ("000001.42.part", None),
        ("000001.tar", None),
    ],
)
def test_names_of_unfinished_files(name, meant):
    assert meant_for(name) == meant


def test_paths_may_be_texts(tmp_path):
    hint = np.full((3, 4, 3), 7, np.uint8)
    write_hint(str(tmp_path / "hint.png"), hint)
    assert np.array_equal(read_picture(str(tmp_path / "hint.png")), hint)
