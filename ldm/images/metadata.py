"""Text in JPEG and WebP: A1111's text in EXIF UserComment, everything else as JSON in an XMP packet of ours."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping

NAMESPACE = "https://ns.ldm.invalid/text/1/"
OPEN, CLOSE = "<ldm:text>", "</ldm:text>"
COMMENT_KEY = "parameters"
MAX_PACKET = 8 << 20


def xmp_packet(text: Mapping[str, str]) -> bytes | None:
    """An XMP packet that holds every text but A1111's; None where there is nothing to hold."""
    rest = {key: value for key, value in text.items() if key != COMMENT_KEY}
    if not rest:
        return None
    body = html.escape(json.dumps(rest), quote=False)  # json keeps it ASCII
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:ldm="{NAMESPACE}">{OPEN}{body}{CLOSE}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def text_from_xmp(packet: str) -> dict[str, str]:
    """The texts of our XMP packet; found by its tags, because a stranger's XML is not parsed."""
    start, end = packet.find(OPEN), packet.find(CLOSE)
    if start < 0 or end < start or len(packet) > MAX_PACKET:
        return {}
    try:
        found = json.loads(html.unescape(packet[start + len(OPEN) : end]))
    except (ValueError, RecursionError):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def xmp_orientation(packet: str) -> int:
    """The orientation in an XMP packet (1 where there is none): some editors write it there only."""
    match = re.search(r"""tiff:Orientation(?:=["']|>)([1-8])""", packet)
    return int(match.group(1)) if match else 1
