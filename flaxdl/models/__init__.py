"""Model architectures as functional Flax modules, one per file.

The models `SimpleCNN`, `SimpleRNN` and `TextRNN`, and the layers `ResidualBlock`,
`MultiHeadAttention` and `TransformerBlock`, reproduce the PyTorch classes of the course "Deep
Learning Fundamentals: CNNs, RNNs, and the Road to Transformers".
"""

from flaxdl.models.alexnet import AlexNet
from flaxdl.models.bert import (
    BERT_BASE,
    BERT_LARGE,
    BERT_MEDIUM,
    BERT_MINI,
    BERT_SMALL,
    BERT_TINY,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
)
from flaxdl.models.cnn import SimpleCNN
from flaxdl.models.cnn1d import CNN1d
from flaxdl.models.forecasters import LinearForecaster, RNNForecaster
from flaxdl.models.generation import generate, translate
from flaxdl.models.lenet import LeNet5
from flaxdl.models.resnet import ResNet, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from flaxdl.models.rnn import SimpleRNN, TextRNN
from flaxdl.models.rnn_lm import RNNLM
from flaxdl.models.rnn_seq2seq import Seq2SeqRNN
from flaxdl.models.transformer import Seq2SeqTransformer, TransformerClassifier, TransformerLM
from flaxdl.models.vgg import VGG, VGG11, VGG13, VGG16, VGG19

__all__ = [
    "BERT_BASE",
    "BERT_LARGE",
    "BERT_MEDIUM",
    "BERT_MINI",
    "BERT_SMALL",
    "BERT_TINY",
    "RNNLM",
    "VGG",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "AlexNet",
    "Bert",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "CNN1d",
    "LeNet5",
    "LinearForecaster",
    "RNNForecaster",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Seq2SeqRNN",
    "Seq2SeqTransformer",
    "SimpleCNN",
    "SimpleRNN",
    "TextRNN",
    "TransformerClassifier",
    "TransformerLM",
    "generate",
    "translate",
]
