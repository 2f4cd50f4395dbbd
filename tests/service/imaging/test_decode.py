import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from uploads import FORMATS, chunk, exif, png16, png_of, saved, seeds, smooth

from service.errors import ImageTooLarge, ImageTypeUnknown, ImageUnreadable
from service.imaging.decode import MEDIA_TYPES, decode, inspect, sniff
from service.imaging.limits import Limits

LIMITS = Limits()


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_is_read(fmt):
    rgb = smooth(40, 30)
    decoded = decode(saved(rgb, fmt), LIMITS)
    assert decoded.rgb.shape == (40, 30, 3) and decoded.rgb.dtype == np.uint8 and decoded.alpha is None
    assert (decoded.header.fmt, decoded.header.width, decoded.header.height) == (fmt, 30, 40)
    distance = np.abs(decoded.rgb.astype(int) - rgb)
    if fmt in ("PNG", "TIFF", "BMP"):
        assert distance.max() == 0
    else:
        assert distance.mean() < 16


@pytest.mark.parametrize("name", sorted(seeds()))
def test_every_kind_of_file_is_read(name):
    decoded = decode(seeds()[name], LIMITS)
    assert sorted(decoded.rgb.shape) == [3, 23, 31]


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_a_plane_of_its_own(fmt):
    rgba = smooth(20, 24, 4)
    rgba[:, :, 3] = np.linspace(0, 255, 24).astype(np.uint8)
    decoded = decode(saved(rgba, fmt, lossless=True, exact=True), LIMITS)
    np.testing.assert_array_equal(decoded.alpha, rgba[:, :, 3])
    np.testing.assert_array_equal(decoded.rgb, rgba[:, :, :3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(fmt, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255, 0, 0
    upright[:8, 16:] = 0, 255, 0
    upright[8:, :16] = 0, 0, 255
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    undo |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(undo[orientation](upright))  # lies so that the tag brings it upright
    extra = {"tiffinfo": {274: orientation}} if fmt == "TIFF" else {"exif": exif(orientation)}
    extra |= {"quality": 95, "subsampling": 0} if fmt == "JPEG" else {"lossless": True}
    decoded = decode(saved(stored, fmt, **extra), LIMITS)
    assert decoded.rgb.shape == upright.shape
    for y, x in ((3, 5), (3, 26), (12, 5), (12, 26)):
        assert np.abs(decoded.rgb[y, x].astype(int) - upright[y, x]).max() < 30


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_rounded_not_cut(channels):
    wide = np.random.RandomState(channels).randint(0, 65536, (11, 13, channels)).astype(np.uint16)
    right = np.floor(wide.astype(np.float64) / 257 + 0.5).astype(np.uint8)
    decoded = decode(png16(wide), LIMITS)
    np.testing.assert_array_equal(decoded.rgb, np.broadcast_to(right[:, :, : 1 if channels < 3 else 3], (11, 13, 3)))
    if channels in (2, 4):
        np.testing.assert_array_equal(decoded.alpha, right[:, :, -1])
    else:
        assert decoded.alpha is None


def tiff16(wide: np.ndarray, order: str, packing: int, **more: int) -> bytes:
    """A TIFF of [H, W, C] uint16 in one strip. `more`: t262=0 and the like."""
    height, width, channels = wide.shape
    strip = wide.astype(order + "u2").tobytes()
    strip = zlib.compress(strip) if packing == 8 else strip
    tags = {256: width, 257: height, 259: packing, 262: 2 if channels == 3 else 1, 277: channels, 278: height}
    tags |= {279: len(strip)} | {int(tag[1:]): value for tag, value in more.items()}
    entries, bits_at = len(tags) + 2, 8
    directory = bits_at + 2 * channels
    data = directory + 2 + 12 * entries + 4
    fields = {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items()}
    where = struct.pack(order + "I", bits_at) if channels > 2 else struct.pack(order + "HH", 16, 0)
    fields[258] = struct.pack(order + "HHI", 258, 3, channels) + where
    fields[273] = struct.pack(order + "HHII", 273, 4, 1, data)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory)
    body = struct.pack(order + "H", entries) + b"".join(fields[tag] for tag in sorted(fields)) + b"\0\0\0\0"
    return head + struct.pack(order + f"{channels}H", *[16] * channels) + body + strip


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_tiffs_are_rounded(order, packing, channels):
    wide = np.random.RandomState(3).randint(0, 65536, (9, 7, channels)).astype(np.uint16)
    right = np.floor(wide.astype(np.float64) / 257 + 0.5).astype(np.uint8)
    decoded = decode(tiff16(wide, order, packing), LIMITS)
    np.testing.assert_array_equal(decoded.rgb, np.broadcast_to(right, (9, 7, 3)))


def test_white_may_be_zero_with_sixteen_bits():
    wide = np.random.RandomState(4).randint(0, 65536, (9, 7, 1)).astype(np.uint16)
    right = np.floor((65535 - wide.astype(np.float64)) / 257 + 0.5).astype(np.uint8)
    decoded = decode(tiff16(wide, "<", 1, t262=0), LIMITS)
    np.testing.assert_array_equal(decoded.rgb, np.broadcast_to(right, (9, 7, 3)))


def test_what_pillow_does_not_know_is_said_without_its_internals():
    wide = np.zeros((9, 7, 1), np.uint16)
    for data in (tiff16(wide, ">", 1, t262=0), tiff16(np.zeros((4, 4, 3), np.uint16), "<", 1, t284=2)):
        with pytest.raises(ImageUnreadable, match="not read") as caught:
            decode(data, LIMITS)
        assert "0x" not in str(caught.value) and "object" not in str(caught.value)


@pytest.mark.parametrize("depth, levels", [(1, 2), (2, 4), (4, 16)])
def test_a_key_of_few_bits_is_met(depth, levels):
    for key in range(levels):
        rows = np.arange(8, dtype=np.uint8)[None].repeat(2, axis=0) % levels
        bits = "".join(format(value, f"0{depth}b") for value in rows[0])
        line = b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, depth, 0, 0, 0, 0))
        body = chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(line * 2)) + chunk(b"IEND", b"")
        decoded = decode(b"\x89PNG\r\n\x1a\n" + header + body, LIMITS)
        np.testing.assert_array_equal(decoded.alpha, np.where(rows == key, 0, 255))
        np.testing.assert_array_equal(decoded.rgb[:, :, 0], rows * (255 // (levels - 1)))


def test_a_key_of_sixteen_bits_is_met_exactly():
    wide = np.full((2, 2, 3), 1000, np.uint16)
    wide[0, 0] = 1001
    key = chunk(b"tRNS", struct.pack(">HHH", 1000, 1000, 1000))
    np.testing.assert_array_equal(decode(png16(wide, key), LIMITS).alpha, [[255, 0], [0, 0]])


def test_gray_one_bit_and_palette_with_transparency():
    gray = Image.fromarray(smooth(9, 9)).convert("L")
    decoded = decode(saved(gray, "PNG"), LIMITS)
    assert np.array_equal(decoded.rgb[:, :, 0], np.asarray(gray)) and np.ptp(decoded.rgb, axis=2).max() == 0
    assert set(np.unique(decode(saved(gray.convert("1"), "PNG"), LIMITS).rgb)) == {0, 255}
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    decoded = decode(saved(palette, "PNG", transparency=bytes([255, 128, 0])), LIMITS)
    np.testing.assert_array_equal(decoded.alpha, [[255, 128], [0, 128]])
    np.testing.assert_array_equal(decoded.rgb[0], [[255, 0, 0], [0, 255, 0]])


def test_gray_with_alpha():
    pair = np.stack([np.full((4, 4), 90), np.arange(16).reshape(4, 4)], axis=2).astype(np.uint8)
    decoded = decode(saved(Image.fromarray(pair, "LA"), "PNG"), LIMITS)
    assert (decoded.rgb == 90).all()
    np.testing.assert_array_equal(decoded.alpha, pair[:, :, 1])


def linear(space: bytes, name: bytes) -> bytes:
    """An ICC 2 profile of linear light with sRGB's colours, or of gray."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79,
        b"cprt": b"text\0\0\0\0none\0",
    }
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    straight = struct.pack(">4sII", b"curv", 0, 0)
    if space == b"GRAY":
        tags[b"kTRC"] = straight
    else:
        colours = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
        for one, values in colours.items():
            tags[one + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))
            tags[one + b"TRC"] = straight
    return packed_profile(space, tags)


def packed_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {name: data + b"\0" * (-len(data) % 4) for name, data in tags.items()}
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    white = struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ") + b"\0" * 12
    return (head + b"acsp" + b"\0" * 28 + white).ljust(128, b"\0") + table + body


def rotated_profile() -> bytes:
    """An ICC 2 profile whose red, green and blue are sRGB's green, blue and red, with its gamma of about 2.2."""
    srgb = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\x08rotated\0" + b"\0" * 78, b"cprt": b"text\0\0\0\0none\0"}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    curve = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 255 / 12.92 for v in range(256)]
    for mine, theirs in ((b"r", "g"), (b"g", "b"), (b"b", "r")):
        tags[mine + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in srgb[theirs]))
        tags[mine + b"TRC"] = struct.pack(">4sII256H", b"curv", 0, 256, *(round(v * 65535) for v in curve))
    return packed_profile(b"RGB ", tags)


def test_a_profile_is_applied_and_a_broken_one_passed_over():
    rgb = smooth(8, 8)
    for fmt in ("PNG", "TIFF"):
        moved = decode(saved(rgb, fmt, icc_profile=rotated_profile()), LIMITS).rgb
        assert np.abs(moved.astype(int) - rgb[:, :, [2, 0, 1]]).max() <= 3
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(decode(saved(rgb, "PNG", icc_profile=srgb), LIMITS).rgb, rgb)
    np.testing.assert_array_equal(decode(saved(rgb, "PNG", icc_profile=b"nonsense" * 40), LIMITS).rgb, rgb)


def encoded(light: np.ndarray) -> np.ndarray:
    """Linear light as sRGB has it, both 0 to 255."""
    value = light / 255
    return 255 * np.where(value <= 0.0031308, 12.92 * value, 1.055 * np.maximum(value, 1e-9) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", [b"linear", b"built-in Linear sRGB"])
def test_a_profile_is_known_by_what_it_does_not_by_its_name(name):
    rgb = smooth(8, 8)
    moved = decode(saved(rgb, "PNG", icc_profile=linear(b"RGB ", name)), LIMITS).rgb
    assert np.abs(moved - encoded(rgb)).max() <= 3


def test_gray_profiles_are_applied_to_every_kind_of_gray():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    profile, right = linear(b"GRAY", b"gray"), encoded(gray)
    wide = gray.astype(np.uint16)[:, :, None] * 257
    packed = chunk(b"iCCP", b"gray\0\0" + zlib.compress(profile))
    key = chunk(b"tRNS", struct.pack(">H", 7))
    files = {
        "8 bits": saved(Image.fromarray(gray), "PNG", icc_profile=profile),
        "with alpha": saved(Image.fromarray(np.stack([gray, gray], axis=2), "LA"), "PNG", icc_profile=profile),
        "with a key": saved(Image.fromarray(gray), "PNG", icc_profile=profile, transparency=7),
        "16 bits": png16(wide, packed),
        "16 bits with a key": png16(wide, packed + key),
        "16 bits with alpha": png16(np.concatenate([wide, wide], axis=2), packed),
        "TIFF": saved(Image.fromarray(gray), "TIFF", icc_profile=profile),
    }
    applied = decode(files["8 bits"], LIMITS).rgb
    assert np.abs(applied - right[:, :, None]).mean() <= 2 < np.abs(applied - gray[:, :, None].astype(int)).mean()
    for name, data in files.items():
        decoded = decode(data, LIMITS)
        np.testing.assert_array_equal(decoded.rgb, applied, name)
        assert (decoded.alpha is None) == (name in ("8 bits", "16 bits", "TIFF")), name


def test_only_exif_turns_a_picture():
    rgb = smooth(6, 9)
    turn = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    turn += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    for fmt in ("JPEG", "WEBP"):
        assert decode(saved(rgb, fmt, xmp=turn), LIMITS).rgb.shape == (6, 9, 3), fmt


def test_what_a_gif_leaves_out_is_see_through():
    whole = saved(Image.fromarray(np.ones((2, 2), np.uint8), "P"), "GIF")
    frame = whole.index(b"\x2c", 13)
    moved = whole[:frame] + b"\x2c" + struct.pack("<HH", 1, 2) + whole[frame + 5 :]
    decoded = decode(moved[:6] + struct.pack("<HH", 6, 5) + moved[10:], LIMITS)
    assert decoded.alpha is not None and decoded.alpha.shape == (5, 6)
    inside = np.zeros((5, 6), bool)
    inside[2:4, 1:3] = True
    np.testing.assert_array_equal(decoded.alpha == 255, inside)
    assert not decoded.alpha[~inside].any()


def test_cmyk_comes_out_in_its_colours():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode(saved(cmyk, "JPEG", quality=95), LIMITS)
    assert np.abs(decoded.rgb.astype(int) - (255, 0, 0)).max() < 12


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "lime", "blue")]
    for fmt in ("GIF", "WEBP", "PNG"):
        decoded = decode(saved(frames[0], fmt, save_all=True, append_images=frames[1:], lossless=True), LIMITS)
        assert decoded.header.frames == 3
        assert np.abs(decoded.rgb.astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_sizes_are_read(size):
    for fmt in ("PNG", "JPEG", "WEBP"):
        assert decode(saved(np.zeros((*size, 3), np.uint8), fmt), LIMITS).rgb.shape == (*size, 3)


BIG = 60_000


def bombs() -> dict[str, bytes]:
    """Small files that ask for gigapixels, or for unpacked gigabytes."""
    zeros = zlib.compress(b"\0" * 10_000_000)
    files = {"PNG": png_of(BIG, BIG, 8, 2, b"")}
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * (64 << 20), 9))
    files["PNG profile"] = png_of(4, 4, 8, 2, b"", profile)
    files["PNG text"] = png_of(4, 4, 8, 0, b"\0" * 20, *[chunk(b"zTXt", b"x\0\0" + zeros)] * 3_000)
    files["GIF"] = b"GIF89a" + struct.pack("<HHBBB", BIG, BIG, 0, 0, 0) + b"\x3b"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, BIG, BIG, 0) + b"\x02\0"
    files["GIF frame"] = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame + b"\x3b"
    files["BMP"] = b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, BIG, BIG, 1, 24, 1) + b"\0" * 24
    jpeg = bytearray(saved(smooth(8, 8), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", BIG, BIG)
    files["JPEG"] = bytes(jpeg)
    scan = bytes(jpeg[jpeg.index(b"\xff\xda") : -2])
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 6000, 6000)
    files["JPEG scans"] = bytes(jpeg[:-2]) + scan * 200 + b"\xff\xd9"
    webp = bytearray(saved(smooth(8, 8, 4), "WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 16383 | 16383 << 14)
    files["WEBP"] = bytes(webp)
    files["TIFF"] = tiff16(np.zeros((1, 1, 3), np.uint16), "<", 1).replace(
        struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, BIG)
    )
    avif = saved(smooth(16, 16), "AVIF")
    at = avif.index(b"ispe") + 8
    files["AVIF"] = avif[:at] + struct.pack(">II", BIG, BIG) + avif[at + 8 :]
    return files


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bombs_are_refused_by_their_headers(name):
    with pytest.raises(ImageTooLarge, match=r"at most|may be|may have|more than"):
        inspect(bombs()[name], LIMITS)


def test_an_avif_whose_stream_is_larger_than_its_box_is_refused():
    large, small = saved(smooth(512, 512), "AVIF"), Limits(max_pixels=10_000)
    at = large.index(b"ispe") + 8
    with pytest.raises(ImageTooLarge, match="512x512"):
        inspect(large[:at] + struct.pack(">II", 16, 16) + large[at + 8 :], small)


def test_bytes_frames_and_aspect_have_bounds():
    png = saved(smooth(4, 4), "PNG")
    with pytest.raises(ImageTooLarge, match="bytes"):
        inspect(png, Limits(max_bytes=len(png) - 1))
    with pytest.raises(ImageTooLarge, match="one side may be 100 times"):
        inspect(saved(np.zeros((1, 200, 3), np.uint8), "PNG"), Limits(max_aspect=100))
    frames = [Image.new("L", (4, 4), level) for level in range(0, 90, 9)]
    for fmt in ("GIF", "WEBP", "PNG"):
        with pytest.raises(ImageTooLarge, match="more than 5 frames"):
            inspect(saved(frames[0], fmt, save_all=True, append_images=frames[1:]), Limits(max_frames=5))


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_file_cut_anywhere_is_refused(fmt):
    data = saved(smooth(24, 24), fmt)
    for stop in range(0, len(data) - 1, max(1, len(data) // 60)):
        with pytest.raises((ImageUnreadable, ImageTypeUnknown)):
            decode(data[:stop], LIMITS)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt != "TIFF"])  # whose pixels may lie anywhere: no end
@pytest.mark.parametrize("tail", [b"PK\x03\x04\x14\0", b"<script>alert(1)</script>", b"%PDF-1.7\n"])
def test_a_second_file_behind_the_image_is_refused(fmt, tail):
    data = saved(smooth(24, 24), fmt)
    with pytest.raises(ImageUnreadable):
        decode(data + tail, LIMITS)


def test_padding_and_what_phones_append_is_let_in():
    def same(data, tail):
        return np.array_equal(decode(data + tail, LIMITS).rgb, decode(data, LIMITS).rgb)

    for fmt in ("PNG", "JPEG", "GIF", "WEBP"):
        assert same(saved(smooth(24, 24), fmt), b"\0" * 100), fmt
    jpeg = saved(smooth(24, 24), "JPEG")
    assert same(jpeg, jpeg)
    assert same(jpeg, b"\0\0\0\x18ftypmp42" + bytes(range(256)))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 64, b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\0\0\0\0WAVE" + b"\0" * 40],
)
def test_what_is_no_image_is_refused_with_what_would_be_one(data):
    with pytest.raises(ImageTypeUnknown) as caught:
        sniff(data)
    assert caught.value.allowed == [types[0] for types in MEDIA_TYPES.values()]


def test_mislabelled_files_are_refused_and_vague_labels_are_not():
    png = saved(smooth(4, 4), "PNG")
    with pytest.raises(ImageTypeUnknown, match="declared as image/jpeg, but the bytes are PNG"):
        decode(png, LIMITS, "image/jpeg")
    for declared in ("image/png", "IMAGE/PNG; charset=x", "application/octet-stream", None):
        assert decode(png, LIMITS, declared).rgb.shape == (4, 4, 3)


def test_texts_in_a_png_are_never_unpacked():
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 3_000_000))
    decoded = decode(png_of(2, 1, 8, 2, b"\0" + bytes(range(6)), text), LIMITS)
    np.testing.assert_array_equal(decoded.rgb, np.arange(6).reshape(1, 2, 3))


def test_a_jpeg_with_a_thumbnail_and_comment_is_read():
    thumbnail = io.BytesIO(saved(smooth(8, 8), "JPEG"))
    data = saved(smooth(24, 24), "JPEG", comment=thumbnail.getvalue(), exif=exif(1))
    assert decode(data, LIMITS).rgb.shape == (24, 24, 3)


def strips(offsets, counts=None, rows=1, side=40, twice=()):
    """A gray TIFF of side x side pixels whose strips lie as told, behind `twice`: tags that go before their like."""
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (277, 1), (278, rows)]
    entries = sorted([*[(tag, [value]) for tag, value in tags], (273, offsets), *([(279, counts)] if counts else [])])
    entries = [*twice, *entries]
    body, tail, at = struct.pack("<H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, values in entries:
        packed = struct.pack(f"<{len(values)}I", *values)
        place = packed if len(packed) == 4 else struct.pack("<I", at + len(tail))
        tail += b"" if len(packed) == 4 else packed
        body += struct.pack("<HHI", tag, 4, len(values)) + place
    return b"II*\0" + struct.pack("<I", 8) + body + b"\0" * 4 + tail + bytes(range(256)) * 8


def test_tiff_strips_are_as_many_as_rows_and_apart():
    good = strips([600 + 40 * row for row in range(40)], [40] * 40)
    assert decode(good, LIMITS).rgb.shape == (40, 40, 3)
    assert decode(strips([300], rows=40), LIMITS).rgb.shape == (40, 40, 3)  # the last one needs no length
    many = strips([600 + row for row in range(60)], [1600] * 60, rows=40)
    with pytest.raises(ImageUnreadable, match="each once"):
        inspect(many, LIMITS)
    with pytest.raises(ImageUnreadable, match="each once"):
        inspect(strips([600, 601], rows=39), LIMITS)
    with pytest.raises(ImageUnreadable, match="overlap"):
        inspect(strips([600, 601], [1560, 40], rows=39), LIMITS)
    with pytest.raises(ImageUnreadable, match="without rows"):
        inspect(strips([600], [1600], rows=0), LIMITS)


def test_a_tiff_tag_that_is_given_twice_is_refused():
    """The walk and Pillow would each believe another one."""
    with pytest.raises(ImageUnreadable, match="given twice"):
        inspect(strips([600], rows=40, twice=[(278, [20])]), LIMITS)


def avif_of(places, version=1, method=0, widths=0x4400, extents=1, stream=b"\x12\x00" * 500):
    """An AVIF skeleton: one `ispe`, an `iloc` of items at `places`, and a stream."""

    def box(kind, body):
        return struct.pack(">I4s", 8 + len(body), kind) + body

    item = struct.pack(">HHHH", 1, method, 0, extents) if version else struct.pack(">HHH", 1, 0, extents)
    fields = b"".join(item + (struct.pack(">II", *place) if widths else b"") for place in places)
    iloc = box(b"iloc", struct.pack(">IHH", version << 24, widths, len(places)) + fields)
    ispe = box(b"ispe", struct.pack(">III", 0, 16, 16))
    meta = box(b"meta", b"\0" * 4 + iloc + box(b"iprp", box(b"ipco", ispe)))
    return box(b"ftyp", b"avif\0\0\0\0avif") + meta + box(b"mdat", stream)


def test_an_avif_cannot_keep_the_walk_busy():
    """Each took seconds for each KB, and holds a thread that encodes everybody's pictures."""
    whole = len(avif_of([(0, 0)] * 4000))
    with pytest.raises(ImageUnreadable, match="overlap"):
        inspect(
            avif_of([(whole - 1000 + at % 900, 1000 - at % 900) for at in range(4000)], stream=b"\x80" * 1000), LIMITS
        )
    start = avif_of([(0, 0)]).index(b"mdat") + 4
    with pytest.raises(ImageTooLarge, match="AV1 units"):
        inspect(avif_of([(start, 8000)], stream=b"\x12\x00" * 5000), LIMITS)
    for method in (0, 1):
        with pytest.raises(ImageUnreadable, match="pieces"):
            inspect(avif_of([(0, 0)] * 16, method=method, widths=0, extents=65_535), LIMITS)


def test_reserved_bits_do_not_hide_an_avif_streams_size():
    large, small = saved(smooth(512, 512), "AVIF"), Limits(max_pixels=10_000)
    at = large.index(b"ispe") + 8
    large = bytearray(large[:at] + struct.pack(">II", 16, 16) + large[at + 8 :])
    at = large.index(b"mdat") + 4
    while at < len(large):
        length, shift, place = 0, 0, at + 1
        while True:
            length |= (large[place] & 127) << shift
            shift, place = shift + 7, place + 1
            if large[place - 1] < 128:
                break
        large[at] |= 1
        at = place + length
    with pytest.raises(ImageTooLarge, match="512x512"):
        inspect(bytes(large), small)


def test_markers_without_a_segment_are_counted():
    jpeg = saved(smooth(8, 8), "JPEG")
    assert inspect(jpeg[:2] + b"\xff\x01" * 10 + jpeg[2:], LIMITS).width == 8
    with pytest.raises(ImageTooLarge, match="JPEG segments"):
        inspect(jpeg[:2] + b"\xff\x01" * 3000 + jpeg[2:], LIMITS)


def test_run_length_coded_bmps_are_short():
    def coded(pairs):
        return b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 8, 8, 1, 8, 1, 0, 0, 0, 0, 0) + b"\x01\x00" * pairs

    assert inspect(coded(100), LIMITS).width == 8
    with pytest.raises(ImageTooLarge, match="run-length"):
        inspect(coded(300_000), LIMITS)
