#!/bin/sh
# A photograph saved as HEIC through Pillow with `exif=Image.Exif()` loses its rotation, with `exif=exif.tobytes()` it keeps it.
#
# Pillow's own writers (JPEG, PNG, WebP, AVIF, TIFF) take both, and so does pillow-heif without a word. But it looks for the orientation, from
# which it makes HEIF's `irot`, in bytes alone: from an Exif object the file gets an EXIF orientation of 6 and no `irot`. HEIF says that readers
# must ignore the EXIF tag, and pillow-heif does (it sets it to 1 and keeps it as `original_orientation`), so the picture comes back on its side.
#
# Seen: pillow-heif 1.8.1, Pillow 12.3.0, Python 3.11: size (64, 48) and no irot from the object, (48, 64) and irot 3 from the bytes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==12.3.0 pillow-heif==1.8.1
"$folder/venv/bin/python" - <<'PYTHON'
import io

import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()
image = Image.new("RGB", (64, 48), (10, 200, 30))
exif = Image.Exif()
exif[0x0112] = 6
shown = {}
for kind, options in {"HEIF": {}, "AVIF": {}}.items():
    for given in (exif, exif.tobytes()):
        file = io.BytesIO()
        image.save(file, kind, exif=given, **options)
        data = file.getvalue()
        with Image.open(io.BytesIO(data)) as back:
            tag = back.getexif().get(0x0112, 1)
            size = back.size[::-1] if tag >= 5 else back.size
        shown[kind, type(given).__name__] = size, data[data.find(b"irot") + 4] if b"irot" in data else None
        print(kind, type(given).__name__, *shown[kind, type(given).__name__])
assert shown["AVIF", "Exif"][0] == shown["AVIF", "bytes"][0] == (48, 64), "another AVIF writer than the one described"
assert shown["HEIF", "bytes"] == ((48, 64), 3), "another pillow-heif than the one described"
assert shown["HEIF", "Exif"] == ((64, 48), None), "the rotation is kept: this finding is mended"
PYTHON
