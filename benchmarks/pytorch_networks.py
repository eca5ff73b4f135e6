"""The networks of `speed.py` in PyTorch, with the parameter names and layouts of flaxdl.

Each computes the same function as its counterpart in `flaxdl.models`, with PyTorch's modules.
"""

import torch
from torch import nn
from torch.nn import functional


def simple_cnn(channels: int, dropout: float) -> nn.Module:
    """A small CNN, see `flaxdl.models.SimpleCNN`."""
    return Network(
        features=nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(4),
        ),
        classifier=nn.Sequential(
            nn.Flatten(),
            nn.Linear(2048, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(256, 10),
        ),
    )


class Network(nn.Module):
    """Features, then a classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module):
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x):
        """Computes logits for a batch."""
        return self.classifier(self.features(x))


class LeNet5(nn.Module):
    """LeNet-5: two convolutions and three linear layers, with a scaled tanh."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        """Computes logits for a batch."""

        def activate(x):
            return 1.7159 * torch.tanh(2 / 3 * x)

        x = functional.avg_pool2d(activate(self.conv1(x)), 2)
        x = functional.avg_pool2d(activate(self.conv2(x)), 2)
        return self.fc3(activate(self.fc2(activate(self.fc1(x.flatten(1))))))


def alexnet(dropout: float) -> nn.Module:
    """AlexNet, as in torchvision."""
    layers: list[nn.Module] = []
    for inputs, outputs, window, stride, padding in (
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    ):
        layers += [nn.Conv2d(inputs, outputs, window, stride, padding), nn.ReLU(inplace=True)]
        if outputs in (64, 192) or len(layers) == 12:
            layers.append(nn.MaxPool2d(3, 2))
    return Network(
        features=nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6)),
        classifier=nn.Sequential(
            nn.Dropout(dropout),
            Flattened(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 1000),
        ),
    )


class Flattened(nn.Linear):
    """A linear layer that flattens its input, which keeps the indices of the modules."""

    def forward(self, x):
        """Computes logits for a batch."""
        return super().forward(x.flatten(1))


def vgg11(dropout: float) -> nn.Module:
    """VGG-11, as in torchvision."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, depth in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return Network(
        features=nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7)),
        classifier=nn.Sequential(
            Flattened(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 1000),
        ),
    )


class Block(nn.Module):
    """A basic or a bottleneck block of a ResNet."""

    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * features if bottleneck else features
        if bottleneck:
            sizes = ((inputs, features, 1, 1), (features, features, 3, stride))
            sizes += ((features, outputs, 1, 1),)
        else:
            sizes = ((inputs, features, 3, stride), (features, features, 3, 1))
        for number, (i, o, window, step) in enumerate(sizes, 1):
            conv = nn.Conv2d(i, o, window, step, window // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(o))
        self.depth = len(sizes)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        """Maps features to features."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.depth + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            if number == self.depth:
                x += shortcut
            x = functional.relu(x, inplace=True)
        return x


class ResNet(nn.Module):
    """ResNet, as in torchvision."""

    def __init__(self, depths: tuple[int, ...], bottleneck: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, depth in enumerate(depths):
            features, blocks = 64 * 2**stage, []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(inputs, features, stride, bottleneck))
                inputs = 4 * features if bottleneck else features
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x):
        """Computes logits for a batch."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class SimpleRNN(nn.Module):
    """A recurrent classifier of sequences, see `flaxdl.models.SimpleRNN`."""

    def __init__(self, cell: str):
        super().__init__()
        self.rnn = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](128, 256, batch_first=True)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        """Computes logits for a batch."""
        return self.fc(self.rnn(x)[0][:, -1])


class TextRNN(nn.Module):
    """A bidirectional GRU that classifies texts, see `flaxdl.models.TextRNN`."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10_000, 128, padding_idx=0)
        self.rnn = nn.GRU(128, 256, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        """Computes logits for a batch."""
        return self.fc(self.rnn(self.embedding(x))[0][:, -1])


class EncoderClassifier(nn.Module):
    """PyTorch's TransformerEncoder on embeddings with sinusoidal positions, and mean pooling."""

    def __init__(self, positions: torch.Tensor, dropout: float):
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout, "relu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, nn.LayerNorm(512))
        self.encoder.embedding = nn.Embedding(10_000, 512)
        self.register_buffer("positions", positions, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        """Computes logits for a batch."""
        x = self.dropout(self.encoder.embedding(x) + self.positions[: x.shape[1]])
        return self.fc(self.encoder(x).mean(1))


class Bert(nn.Module):
    """BERT-base from Hugging Face with a head for two classes."""

    def __init__(self, dropout: float):
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        config = BertConfig(
            num_labels=2,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            attn_implementation="sdpa",
        )
        self.model = BertForSequenceClassification(config)

    def forward(self, x):
        """Computes logits for a batch."""
        return self.model(x, return_dict=False)[0]

    def state_dict(self, *args, **kwargs):
        """State dict without the wrapper's prefix, as in published files."""
        state = self.model.state_dict(*args, **kwargs)
        return {name: array for name, array in state.items() if "position_ids" not in name}
