"""Names and values of metrics as text."""

from flaxdl.report import charts

_ABBREVIATIONS = ("auroc", "f1", "mae", "mase", "r2", "rmse")
_FRACTIONS = (
    *("accuracy", "top_5_accuracy", "next_sentence_accuracy", "balanced_accuracy", "exact_match"),
    *("precision", "recall", "f1", "macro_f1", "micro_f1"),
)


def is_fraction(name: str) -> bool:
    """Returns whether a metric is shown in percent; `recall/cat` is, because `recall` is."""
    return name.partition("/")[0] in _FRACTIONS


def figure(name: str, value: float | None) -> str:
    """Returns the value of a metric as text."""
    if value is None:
        return "not finite"
    return charts.number(value, percent=is_fraction(name))


def spelled(name: str) -> str:
    """Returns the name of a metric as words; `recall/cat` is the recall of `cat`."""
    metric, _, of_class = name.partition("/")
    words = metric.replace("_", " ").replace("top 5", "top-5").split(" ")
    text = " ".join(word.upper() if word in _ABBREVIATIONS else word for word in words)
    return f"{text} of {of_class}" if of_class else text


def title_of(name: str) -> str:
    """Returns the name of a metric as the title of its chart."""
    words = spelled(name)
    return words[:1].upper() + words[1:]
