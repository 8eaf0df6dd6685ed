"""Which images each provider takes, and what an image costs in tokens: data, with its source.

Tokens are estimated from above, by width and height; zeros, for an image that the provider fetches
itself, mean the largest image.

"Read 2026-11" says that the figures were looked up then. "Not looked up again" says that they are
what was known of the guide that the row names. Where a limit here is too high, the provider refuses
the record; where it is too low, the record is refused here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from beam_llm.config import Settings
from beam_llm.prompting.image_files import GIF, JPEG, PNG, WEBP
from beam_llm.protocols import MediaLimits

ALL_KINDS = (PNG, JPEG, WEBP, GIF)
WEB = ("https", "http")

Tokens = Callable[[int, int], int]

TEXT_ONLY = re.compile(
    r"gpt-3\.5|gpt-35|gpt-4(-0314|-0613|-32k.*)?$|o1-mini|o1-preview|o3-mini"
    r"|claude-(2|instant)"
    r"|(.*/|.*\.)?(gpt-oss|deepseek-(r1|v3|coder)|codestral|mixtral|titan-text|llama-?3[.-][13]-)",
    re.IGNORECASE,
)
"""Names of models that are known to take no images; for all others the provider itself says so.
Source: what is known of the models; not looked up again."""


def limits_of(settings: Settings, limits: MediaLimits) -> MediaLimits | None:
    """The provider's limits; None where the model takes no images."""
    return None if TEXT_ONLY.match(settings.model_name) else limits


# Tokens
# --------------------------------------------------------------------------------------------------


def _within(width: int, height: int, side: float, short_side: float = math.inf) -> tuple[int, int]:
    """The size after scaling down to fit into a square, and then the shorter side to a length."""
    scale = min(1.0, side / max(width, height), short_side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def tiles(base: int, each: int) -> Tokens:
    """Tiles of 512 pixels, for an image of at most 2,048 by 768: GPT-4o, GPT-4.1, GPT-5."""

    def tokens(width: int, height: int) -> int:
        if not (width and height):
            width, height = 2_048, 768
        width, height = _within(width, height, 2_048, 768)
        return base + each * math.ceil(width / 512) * math.ceil(height / 512)

    return tokens


def patches(pixels: int, most: int, factor: float = 1.0, row_tokens: int = 0) -> Tokens:
    """A token for each square of so many pixels, and some at the end of each row."""

    def tokens(width: int, height: int) -> int:
        columns, rows = math.ceil(width / pixels), math.ceil(height / pixels)
        found = rows * (columns + row_tokens) if width and height else most
        return math.ceil(min(found, most) * factor) + 1

    return tokens


def area(pixels: float, most: int, least: int = 0) -> Tokens:
    """A token for so many pixels."""

    def tokens(width: int, height: int) -> int:
        if not (width and height):
            return most
        return min(most, max(least, math.ceil(width * height / pixels) + 4))

    return tokens


def gemini_tokens(width: int, height: int) -> int:
    """258 for each tile of two thirds of the shorter side, between 256 and 768 pixels, of an image
    of at most 3,072 pixels a side."""
    width, height = _within(width or 3_072, height or 3_072, 3_072)
    if max(width, height) <= 384:
        return 258
    side = min(max(math.floor(min(width, height) / 1.5), 256), 768)
    return 258 * math.ceil(width / side) * math.ceil(height / side)


OPENAI_TOKENS: tuple[tuple[str, Tokens], ...] = (
    (r"gpt-4o-mini", tiles(2_833, 5_667)),
    (r"(gpt-4\.1|gpt-5)-mini", patches(32, 1_536, 1.62)),
    (r"(gpt-4\.1|gpt-5)-nano", patches(32, 1_536, 2.46)),
    (r"o4-mini", patches(32, 1_536, 1.72)),
    (r"gpt-(5\.[2-9]|[6-9])", patches(32, 10_000, 1.62)),
    (r"", tiles(85, 170)),
)
"""Pattern of models → tokens of an image. Source: OpenAI's guide "Images and vision" (calculating
costs), of 2025, not looked up again; for newer models the largest figure of any of them."""

CLAUDE_TOKENS: tuple[tuple[str, Tokens], ...] = (
    (r".*claude-(3|(haiku|sonnet)-4|opus-4(-[0156]\b|-2025|$))", area(750, 1_640)),
    (r"", area(750, 4_900)),
)
"""Width by height over 750, of an image of at most 1,568 pixels a side, or 2,576 from Opus 4.7 on.
Source: Anthropic's guide "Vision" as others quote it, read 2026-11."""

GEMINI_TOKENS: tuple[tuple[str, Tokens], ...] = (
    (r"gemini-[3-9]", lambda width, height: 1_120),
    (r"", gemini_tokens),
)
"""Source: Vertex AI, "Image understanding" (Gemini 3: 1,120 an image where nobody chooses), read
2026-11; the tiles: Gemini API, "Image understanding", not looked up again."""

MISTRAL_TOKENS = patches(16, 4_160, row_tokens=1)
"""Pixtral's, of 1,024 pixels a side; later models merge patches of 14 two by two and need fewer.
Source: mistral-common, ImageConfig, not looked up again; 16 pixels
and 4,096 of them: Scaleway's page on Pixtral, read 2026-11."""

OTHER_TOKENS = patches(28, 16_384)
"""Qwen-VL's, the most of the open models (Llama 4 and Gemma have at most 2,500 and 256 an image).
Source: the models' cards, not looked up again."""

BEDROCK_TOKENS: tuple[tuple[str, Tokens], ...] = (
    (r".*claude", lambda width, height: by_model(CLAUDE_TOKENS, "claude-")(width, height)),
    (r"", area(500, 6_400, least=300)),
)
"""Claude's by its own rule; Nova's are between 506 and 708 pixels each. Source: Amazon Nova user
guide, "Image understanding", not looked up again."""


def by_model(table: tuple[tuple[str, Tokens], ...], model: str) -> Tokens:
    """The rule of the first pattern that the model's name begins with."""
    return next(tokens for names, tokens in table if re.match(names, model))


# Limits
# --------------------------------------------------------------------------------------------------

REQUEST_BYTES = 48_000_000
"""OpenAI's 50 MB a request, kept below by 4 % for its texts; also of those who don't say how much
they take, for a request is in memory.
"""

OPENAI_IMAGES = MediaLimits(
    kinds=ALL_KINDS,
    images=500,
    image_bytes=20_000_000,
    request_bytes=REQUEST_BYTES,
    schemes=WEB,
)
"""Source: OpenAI's guide "Images and vision", read 2026-11."""

ANTHROPIC_IMAGES = MediaLimits(
    kinds=ALL_KINDS,
    images=100,
    image_bytes=5 * 2**20 // 4 * 3,
    request_bytes=30_000_000,
    schemes=("https",),
)
"""5 MB an image, which counts base64; 32 MB a request, kept below by 6 %. Source: Anthropic's guide
"Vision" as others quote it, read 2026-11; 100 images: not looked up again. Of more than 20 images
none may have a side above 2,000 pixels: the provider says so itself."""

GEMINI_IMAGES = MediaLimits(
    kinds=(PNG, JPEG, WEBP),
    images=3_000,
    request_bytes=19_000_000,
    schemes=("https",),
    names_kinds=True,
)
"""20 MB inline, which every version of the API takes (100 MB since 2026-01), kept below by 5 %;
addresses since 2026-01. Source: Gemini API, "Image understanding"; blog.google, "Increased file
size limits", read 2026-11."""

VERTEX_IMAGES = GEMINI_IMAGES._replace(image_bytes=7_000_000, schemes=("gs", "https"))
"""7 MB an image inline. Source: Vertex AI, "Image understanding", read 2026-11."""

BEDROCK_IMAGES = MediaLimits(
    kinds=ALL_KINDS, images=20, image_bytes=3_750_000, request_bytes=24_000_000
)
"""20 images of 3.75 MB. Source: Bedrock API reference (Message), read 2026-11; 25 MB a request: not
looked up again."""

MISTRAL_IMAGES = MediaLimits(
    kinds=ALL_KINDS,
    images=8,
    image_bytes=10_000_000,
    request_bytes=REQUEST_BYTES,
    schemes=WEB,
    tokens=MISTRAL_TOKENS,
)
"""8 images of 10 MB. Source: Mistral's limits as dlt's page on it quotes them, read 2026-11."""

GROQ_IMAGES = MediaLimits(
    kinds=ALL_KINDS, images=5, request_bytes=3_900_000, schemes=WEB, tokens=OTHER_TOKENS
)
"""4 MB in base64. Source: console.groq.com/docs/vision, read 2026-11; 5 images, of Llama 4: not
looked up again."""

FIREWORKS_IMAGES = MediaLimits(
    kinds=ALL_KINDS, images=30, request_bytes=9_500_000, schemes=WEB, tokens=OTHER_TOKENS
)
"""30 images, 10 MB in base64. Source: docs.fireworks.ai (vision models), not looked up again."""

XAI_IMAGES = MediaLimits(
    kinds=(PNG, JPEG),
    image_bytes=20 * 2**20,
    request_bytes=REQUEST_BYTES,
    schemes=WEB,
    tokens=area(110, 1_792),
)
"""Any number of images, JPEG or PNG. Source: docs.x.ai (image understanding), read 2026-11. Of an
image's size its versions say 10 or 20 MiB: the wider one, since the provider refuses by itself.
Tiles of 448 pixels with 256 tokens, six at most and one more: not looked up again."""

OTHER_IMAGES = MediaLimits(
    kinds=ALL_KINDS, request_bytes=REQUEST_BYTES, schemes=WEB, tokens=OTHER_TOKENS
)
"""Of servers that don't say, or whose models differ: they say themselves what is too much."""
