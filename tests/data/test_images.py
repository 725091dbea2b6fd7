"""What is said about the images of a set before any of them is trained on."""

from PIL import Image

from sl_detectron.data import images
from sl_detectron.data.images import warn_of_turned


def test_of_a_large_set_some_headers_are_read(tmp_path, monkeypatch, caplog):
    """The start of a run must not open a hundred thousand files."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = str(tmp_path / "turned.jpg")
    Image.new("RGB", (4, 2)).save(path, exif=exif)
    read, header = [], images.image_header
    monkeypatch.setattr(images, "image_header", lambda file: read.append(file) or header(file))
    monkeypatch.setattr(images, "_MOST_HEADERS", 10)
    warn_of_turned([{"file_name": path}] * 45, "set 'large'")
    assert len(read) == 12
    assert "the turned image: 12 of 12 looked at (the first: " in caplog.text
    caplog.clear()
    warn_of_turned([{"file_name": path}] * 9, "set 'small'")
    assert "the turned image: 9 (the first: " in caplog.text
