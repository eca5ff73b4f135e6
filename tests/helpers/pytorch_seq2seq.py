"""The recurrent encoder-decoder in PyTorch, as one would write it there."""


def make_seq2seq(
    torch,
    *,
    vocab_size,
    embedding_size,
    hidden_size,
    target_vocab_size,
    cell="gru",
    num_layers=1,
    bidirectional=True,
    attention="additive",
):
    """An encoder-decoder; its call maps inputs, targets and lengths to logits."""
    nn, H = torch.nn, hidden_size
    directions = 1 + bidirectional

    class AdditiveAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Linear(H, H)
            self.key = nn.Linear(H, H, bias=False)
            self.score = nn.Linear(H, 1, bias=False)

        def forward(self, query, memory):  # [B, H], [B, T, H]
            return self.score(torch.tanh(self.query(query)[:, None] + self.key(memory)))[..., 0]

    class Seq2Seq(nn.Module):
        def __init__(self):
            super().__init__()
            Layers = getattr(nn, cell.upper())
            options = {"num_layers": num_layers, "batch_first": True}
            self.embedding = nn.Embedding(vocab_size, embedding_size)
            self.encoder = Layers(
                embedding_size, H // directions, bidirectional=bidirectional, **options
            )
            self.target_embedding = nn.Embedding(target_vocab_size, embedding_size)
            width = embedding_size + H * (attention == "additive")
            self.decoder = Layers(width, H, **options)
            if attention == "additive":
                self.attention = AdditiveAttention()
            if attention is not None:
                self.combine = nn.Linear(2 * H, H)
            self.fc = nn.Linear(H, target_vocab_size)

        def context(self, scores, memory, keep):
            return torch.softmax(scores.masked_fill(~keep, -torch.inf), -1)[:, None] @ memory

        def forward(self, inputs, targets, lengths=None):
            B, T = inputs.shape
            lengths = torch.full((B,), T) if lengths is None else lengths
            packed = nn.utils.rnn.pack_padded_sequence(
                self.embedding(inputs), lengths, batch_first=True, enforce_sorted=False
            )
            packed, state = self.encoder(packed)
            memory, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=T)
            keep = torch.arange(T) < lengths[:, None]

            def joined(h):  # [L directions, B, H / directions] to [L, B, H]
                h = h.view(num_layers, directions, B, -1).transpose(1, 2)
                return h.reshape(num_layers, B, H)

            state = tuple(map(joined, state)) if cell == "lstm" else joined(state)
            outputs = []
            for x in self.target_embedding(targets).unbind(1):
                if attention == "additive":
                    query = (state[0] if cell == "lstm" else state)[-1]
                    context = self.context(self.attention(query, memory), memory, keep)
                    x = torch.cat([x, context[:, 0]], -1)
                x, state = self.decoder(x[:, None], state)
                if attention == "dot":
                    scores = (x @ memory.transpose(1, 2))[:, 0]
                    context = self.context(scores, memory, keep)
                if attention is not None:
                    x = torch.tanh(self.combine(torch.cat([x, context], -1)))
                outputs.append(self.fc(x))
            return torch.cat(outputs, 1)

    return Seq2Seq()
