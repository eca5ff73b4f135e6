"""Three datasets that need no download, as TFDS builders; importing this module registers them."""

from flaxdl.data.embedded.digits import Digits
from flaxdl.data.embedded.glyphs import Glyphs
from flaxdl.data.embedded.languages import Languages

__all__ = ["NAMES", "Digits", "Glyphs", "Languages"]

NAMES = frozenset(builder.name for builder in (Digits, Glyphs, Languages))
