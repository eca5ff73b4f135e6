"""`languages`: names of countries, languages, scripts and currencies in 25 languages."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

# All in Latin script. Of closely related languages (Danish, Norwegian and Swedish; Czech and
# Slovak; Malay and Indonesian) at most one is included, so that most names can be distinguished.
LANGUAGES = {
    "sq": "Albanian",
    "eu": "Basque",
    "hr": "Croatian",
    "cs": "Czech",
    "nl": "Dutch",
    "en": "English",
    "et": "Estonian",
    "fi": "Finnish",
    "fr": "French",
    "de": "German",
    "hu": "Hungarian",
    "is": "Icelandic",
    "ga": "Irish",
    "it": "Italian",
    "lv": "Latvian",
    "lt": "Lithuanian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "es": "Spanish",
    "sw": "Swahili",
    "sv": "Swedish",
    "tr": "Turkish",
    "vi": "Vietnamese",
    "cy": "Welsh",
}


class Languages(tfds.core.GeneratorBasedBuilder):
    """Names from Unicode's CLDR, as included in Babel, labeled with their language.

    Names shared by several of the languages, ignoring case, are omitted. A hash of each name
    determines its split, so that the split is stable when the data changes; about one in five names
    is in the test split. Babel's data depends on its version: the metadata records the version and
    the SHA-256 of all examples.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LANGUAGES.values())),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="https://cldr.unicode.org",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        import babel

        examples = distinct_names()
        metadata: Any = self.info.metadata
        metadata["babel"] = babel.__version__
        metadata["sha256"] = content_hash(examples)
        return {
            "train": self._generate_examples(examples, test=False),
            "test": self._generate_examples(examples, test=True),
        }

    def _generate_examples(
        self, examples: dict[str, str], *, test: bool
    ) -> Iterator[tuple[str, dict[str, str]]]:
        for name, language in examples.items():
            if in_test_split(name) == test:
                yield name, {"text": name, "label": language}


def distinct_names() -> dict[str, str]:
    """Returns the language, in English, of each name that only one language has, sorted by name."""
    from babel import Locale

    names = {}  # language -> its names
    for code, language in LANGUAGES.items():
        locale = Locale.parse(code)
        kinds = (locale.territories, locale.languages, locale.scripts, locale.currencies)
        found = {unicodedata.normalize("NFC", name) for kind in kinds for name in kind.values()}
        names[language] = {name for name in found if _is_latin(name)}
    languages_with = Counter(
        folded for found in names.values() for folded in {name.casefold() for name in found}
    )
    return dict(
        sorted(
            (name, language)
            for language, found in names.items()
            for name in found
            if languages_with[name.casefold()] == 1
        )
    )


def in_test_split(name: str) -> bool:
    """Returns True if a name is in the test split; case is ignored."""
    return hashlib.sha256(name.casefold().encode()).digest()[0] % 5 == 0


def content_hash(examples: dict[str, str]) -> str:
    """Returns the SHA-256 of all names and languages, sorted by name."""
    lines = (f"{name}\t{examples[name]}\n" for name in sorted(examples))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_latin(name: str) -> bool:
    letters = [character for character in name if character.isalpha()]
    return bool(letters) and all(
        unicodedata.name(letter, "").startswith(("LATIN", "MODIFIER LETTER")) for letter in letters
    )
