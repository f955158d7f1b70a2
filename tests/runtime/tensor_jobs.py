"""Jobs whose products are wide enough to be divided: a decoder, a multilayer perceptron, and one with what those have not."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention, silu

WIDTH, HEADS, WORDS = 64, 4, 130


class Attention(nn.Module):
    """Queries, keys and values in one product, or apart with two heads of keys for four of queries."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH if fused else 2 * WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.full((8, 8), -1e9).triu(1))

    def forward(self, x):
        n, t, w = x.shape
        if self.fused:
            q, k, v = self.qkv(x).view(n, t, 3, HEADS, w // HEADS).permute(2, 0, 3, 1, 4)
            y = torch.softmax(q @ k.transpose(-1, -2) / (w // HEADS) ** 0.5 + self.mask[:t, :t], -1) @ v
        else:
            q, v = (part.view(n, t, HEADS, -1).transpose(1, 2) for part in self.qkv(x).split(w, dim=-1))
            k = self.key(x).view(n, t, HEADS, -1).transpose(1, 2)
            y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, w))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.norm, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(fused), nn.LayerNorm(WIDTH)
        self.up, self.gate, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        y = self.norm2(x)
        return x + self.down(gelu(self.up(y)) * silu(self.gate(y)))


class Gpt(nn.Module):
    """Tied head, learned places, a skip over all blocks."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(8, WIDTH)
        self.blocks = nn.ModuleList([Block(True), Block(True), Block(False)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = skip = self.embedding(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x + skip), self.embedding.weight)


class Tied(nn.Module):
    """One block, and a head that is the embedding's very weight; a weight of one value, with dropout without dimensions."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.block, self.drop, self.scale = Block(True), nn.Dropout(dropout), nn.Parameter(torch.ones(() if dropout else (1,)))
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.drop(self.block(self.embedding(ids))) * self.scale)


class Grouped(nn.Module):
    """Attention in which four heads of queries share two of keys and values: on four lanes a head of keys is cut."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = nn.Linear(WIDTH, 256), nn.Linear(WIDTH, 128, bias=False), nn.Linear(WIDTH, 128)
        self.out, self.head = nn.Linear(256, WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        x = self.embedding(ids)
        y = self.norm(x)
        q, k, v = (made.view(*ids.shape, -1, 64).transpose(1, 2) for made in (self.query(y), self.key(y), self.value(y)))
        k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        first, second = (nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, 160)), (nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 4))
        self.layers = nn.Sequential(*first, nn.Tanh(), *second)

    def forward(self, x):
        return self.layers(x)


class Mixed(nn.Module):
    """What the others have not: convolutions, a norm of channels, a product with a transposed weight, one head of keys, dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.turned, self.bias = nn.Parameter(torch.randn(64, 192) / 8), nn.Parameter(torch.zeros(192))
        self.one, self.out, self.scale = nn.Linear(64, 16), nn.Linear(64, 64), nn.Parameter(torch.ones(128))
        self.words, self.glu, self.head = nn.Embedding(10, 64, padding_idx=7), nn.Linear(64, 256), nn.Linear(128, 5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        n = x.shape[0]
        y = nn.functional.max_pool2d(torch.relu(self.second(torch.relu(self.first(x)))), 2).flatten(2).transpose(1, 2)
        y = y + self.words((x[:, 0, ::2, ::2].flatten(1) * 5).long().clamp(0, 9))
        q, k, v = torch.addmm(self.bias, y.reshape(-1, 64), self.turned).view(n, -1, 192).chunk(3, dim=-1)
        q, v = q.view(n, -1, 4, 16).transpose(1, 2), v.view(n, -1, 4, 16).transpose(1, 2)
        weights = torch.softmax(q @ self.one(y).unsqueeze(1).transpose(-1, -2) * 0.25, -1)
        y = y + self.dropout(self.out((self.dropout(weights) @ v).transpose(1, 2).flatten(2))) + k.mean(-1, keepdim=True)
        a, b = torch.tensor_split(self.glu(y), 2, dim=-1)
        y = nn.functional.layer_norm(a * torch.sigmoid(b) * self.scale, (128,))
        return self.head(y.mean(1))


class GptJob:
    def model(self):
        return Gpt()

    def example_batch(self, size):
        return torch.zeros(size, 6, dtype=torch.int64), torch.zeros(size, 6, dtype=torch.int64)

    def loss(self, outputs, targets):
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def batches(self, split, seed, epoch):
        ids = torch.randint(0, WORDS, (400, 7), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        yield ids[:, :-1], ids[:, 1:]


class GroupedJob(GptJob):
    def model(self):
        return Grouped()


class TiedJob(GptJob):
    def model(self):
        return Tied()


class TiedDroppingJob(GptJob):
    def model(self):
        return Tied(0.2)


class MlpJob(GptJob):
    def model(self):
        return Mlp()

    def example_batch(self, size):
        return torch.zeros(size, 24), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs, targets):
        return cross_entropy(outputs, targets)

    def batches(self, split, seed, epoch):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        yield torch.randn(400, 24, generator=generator), torch.randint(0, 4, (400,), generator=generator)


class MixedJob(MlpJob):
    def model(self):
        return Mixed()

    def example_batch(self, size):
        return torch.zeros(size, 3, 4, 4), torch.zeros(size, dtype=torch.int64)

    def batches(self, split, seed, epoch):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        yield torch.rand(400, 3, 4, 4, generator=generator), torch.randint(0, 5, (400,), generator=generator)


class DroppingJob(MixedJob):
    def model(self):
        return Mixed(0.3)


def mixed():
    return MixedJob()


def dropping():
    return DroppingJob()


def tied():
    return TiedJob()


def tied_dropping():
    return TiedDroppingJob()


def gpt():
    return GptJob()


def grouped():
    return GroupedJob()


def clipped():
    return GptJob()


def mlp():
    return MlpJob()
