"""Training objectives, one module per task: the loss and the metrics of a batch."""

from flaxdl.training.tasks.bert_pretraining import BertPreTraining
from flaxdl.training.tasks.classification import Classification
from flaxdl.training.tasks.forecasting import Forecasting
from flaxdl.training.tasks.language_modeling import LanguageModeling
from flaxdl.training.tasks.masked_language_modeling import MaskedLanguageModeling
from flaxdl.training.tasks.multi_label import MultiLabelClassification
from flaxdl.training.tasks.regression import Regression
from flaxdl.training.tasks.sequence_to_sequence import SequenceToSequence
from flaxdl.training.tasks.task import Task

__all__ = [
    "BertPreTraining",
    "Classification",
    "Forecasting",
    "LanguageModeling",
    "MaskedLanguageModeling",
    "MultiLabelClassification",
    "Regression",
    "SequenceToSequence",
    "Task",
]
