"""Pages of one file: a template filled, pictures inside, every text escaped."""

from __future__ import annotations

import base64
import io

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image


def render(package: str, template: str, **values: object) -> str:
    """Fills a template that lies in a package."""
    pages = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(**values)


def data_uri(kind: str, content: bytes) -> str:
    """Returns content as an address that needs no file, e.g. of kind `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(picture: Image.Image) -> str:
    """Returns a picture as a JPEG that needs no file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return data_uri("image/jpeg", file.getvalue())
