"""The MTP layer against a second implementation: one token, one head, one expert at a time, in double precision.

It is written from the description of the family, reads the tensors of a saved checkpoint under their published names, and shares no code
with the package. Facts: input is eh_proj([enorm(embedding of t_{i+1}); hnorm(h_i)]), one MoE decoder layer with position i and KV entry i,
then shared_head.norm; embedding and head are the trunk's; a chained step carries the output after that norm.
"""

import functools
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory

import pytest
import torch
from paged_session import PagedSession
from safetensors.torch import load_file
from torch import Tensor

from openglm.checkpoint import save_model
from openglm.config import variant
from openglm.model import ForwardContext, GlmModel

TOLERANCE = 2e-5
NAMES = ("tiny-air", "tiny-355b")


@dataclass
class StraightLineMTP:
    """Runs one entry at a time and remembers keys and values, one list per position."""

    weights: dict[str, Tensor]
    model: GlmModel
    keys: list[Tensor] = field(default_factory=list)  # per position [kv heads, head_dim]
    values: list[Tensor] = field(default_factory=list)

    def weight(self, name: str) -> Tensor:
        return self.weights[f"model.layers.{self.model.config.num_hidden_layers}.{name}"].double()

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean_square = sum(float(value) ** 2 for value in x) / len(x)
        return x / (mean_square + self.model.config.rms_norm_eps) ** 0.5 * self.weight(name)

    def rotate(self, head: Tensor, position: int) -> Tensor:
        c = self.model.config
        half = int(c.head_dim * c.partial_rotary_factor) // 2
        out = head.clone()
        for i in range(half):
            angle = torch.tensor(position / c.rope_theta ** (2 * i / (2 * half)), dtype=torch.float64)
            a, b = head[i], head[i + half]
            out[i] = a * angle.cos() - b * angle.sin()
            out[i + half] = b * angle.cos() + a * angle.sin()
        return out

    def project_heads(self, x: Tensor, kind: str) -> list[Tensor]:
        flat = self.weight(f"self_attn.{kind}_proj.weight") @ x + self.weight(f"self_attn.{kind}_proj.bias")
        return list(flat.split(self.model.config.head_dim))

    def mlp(self, x: Tensor, stem: str) -> Tensor:
        gate = self.weight(f"mlp.{stem}.gate_proj.weight") @ x
        up = self.weight(f"mlp.{stem}.up_proj.weight") @ x
        return self.weight(f"mlp.{stem}.down_proj.weight") @ (gate / (1 + torch.exp(-gate)) * up)

    def attention(self, x: Tensor, position: int) -> Tensor:
        c = self.model.config
        queries, keys, values = (self.project_heads(x, kind) for kind in "qkv")
        if c.use_qk_norm:
            queries = [self.norm(head, "self_attn.q_norm.weight") for head in queries]
            keys = [self.norm(head, "self_attn.k_norm.weight") for head in keys]
        del self.keys[position:], self.values[position:]
        self.keys.append(torch.stack([self.rotate(head, position) for head in keys]))
        self.values.append(torch.stack(values))
        outputs = []
        for h, query in enumerate(queries):
            kv_head = h // (c.num_attention_heads // c.num_key_value_heads)
            seen = torch.stack(self.keys)[:, kv_head]
            scores = torch.exp(seen @ self.rotate(query, position) / c.head_dim**0.5)
            outputs.append(scores @ torch.stack(self.values)[:, kv_head] / scores.sum())
        return self.weight("self_attn.o_proj.weight") @ torch.cat(outputs)

    def experts(self, x: Tensor) -> Tensor:
        c = self.model.config
        scores = 1 / (1 + torch.exp(-(self.weight("mlp.gate.weight") @ x)))
        preference = scores + self.weight("mlp.gate.e_score_correction_bias")
        chosen = sorted(range(c.n_routed_experts), key=lambda e: -float(preference[e]))[: c.num_experts_per_tok]
        total = sum(float(scores[e]) for e in chosen)
        out = self.mlp(x, "shared_experts")
        for e in chosen:
            out = out + float(scores[e]) / total * c.routed_scaling_factor * self.mlp(x, f"experts.{e}")
        return out

    def step(self, next_token: int, hidden: Tensor, position: int) -> Tensor:
        """The output [H] for hidden state h_i and token t_{i+1} at position i."""
        embedded = self.weights["model.embed_tokens.weight"][next_token].double()
        joined = torch.cat([self.norm(embedded, "enorm.weight"), self.norm(hidden.double(), "hnorm.weight")])
        x = self.weight("eh_proj.weight") @ joined
        x = x + self.attention(self.norm(x, "input_layernorm.weight"), position)
        x = x + self.experts(self.norm(x, "post_attention_layernorm.weight"))
        return self.norm(x, "shared_head.norm.weight")

    def logits(self, output: Tensor) -> Tensor:
        return self.weights["lm_head.weight"].double() @ output

    def run(self, next_tokens: Tensor, hidden: Tensor, first: int = 0) -> Tensor:
        steps = zip(next_tokens.tolist(), hidden, strict=True)
        return torch.stack([self.step(token, h, first + i) for i, (token, h) in enumerate(steps)])


@functools.cache
def random_model(name: str) -> tuple[GlmModel, dict[str, Tensor]]:
    """A model whose every weight matters, and its tensors under their published names."""
    model = GlmModel(variant(name))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith("e_score_correction_bias"):
                value.copy_(0.2 * noise)
            elif key.endswith("bias"):
                value.copy_(0.5 * noise)
            elif "norm" in key:
                value.copy_(1 + 0.3 * noise)
            elif key != "rope":
                value.copy_(noise / value.shape[-1] ** 0.5)
        model.lm_head.weight.mul_(0.5)
    with TemporaryDirectory() as folder:
        save_model(model, f"{folder}/model")
        return model, load_file(f"{folder}/model/model.safetensors")


def straight_line(name: str) -> StraightLineMTP:
    model, weights = random_model(name)
    return StraightLineMTP(weights, model)


def tokens_of(model: GlmModel, length: int) -> Tensor:
    return torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dense_documents_match(name):
    model, _ = random_model(name)
    lengths = (9, 1, 20)
    documents = [tokens_of(model, n + 1) for n in lengths]
    context = ForwardContext.dense(lengths)
    hidden = model(torch.cat([d[:-1] for d in documents]), context)
    got = model.mtp_forward(torch.cat([d[1:] for d in documents]), hidden, context)
    for document, h, g in zip(documents, hidden.split(lengths), got.split(lengths), strict=True):
        reference = straight_line(name)
        want = reference.run(document[1:], h)
        assert_close(g, want)
        assert_close(model.logits(g), torch.stack([reference.logits(w) for w in want]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row_tile", [None, 16])
@pytest.mark.parametrize("length", [63, 64, 65, 128])
@torch.no_grad()
def test_drafting_over_pages_matches_and_leaves_no_trace(name, row_tile, length):
    """Prompt in two chunks, three chained drafts, one accepted; then the target's hidden states overwrite what drafting wrote."""
    model, _ = random_model(name)
    reference = straight_line(name)
    tokens = tokens_of(model, length + 2)  # t_0 .. t_{n-1}, the sampled t_n, and t_{n+1}, the accepted draft
    session = PagedSession(model, num_requests=2, max_length=length + 4, row_tile=row_tile)

    outputs = []
    for first, last in [(0, length - 10), (length - 10, length)]:
        hidden = session.trunk({0: tokens[first:last]}, {0: first})[0]
        outputs.append(session.mtp(tokens[first + 1 : last + 1], hidden, first))
        assert_close(outputs[-1], reference.run(tokens[first + 1 : last + 1], hidden, first))

    carried, expected = outputs[-1][-1:], outputs[-1][-1]
    for position in range(length, length + 2):
        draft = model.logits(carried, row_tile=row_tile).argmax(-1)
        carried = session.mtp(draft, carried, position)
        expected = reference.step(int(draft), expected, position)
        assert_close(carried[0], expected)

    hidden = session.trunk({0: tokens[length : length + 2]}, {0: length})[0]  # verification: t_n and the accepted draft
    got = session.mtp(tokens[length + 1 :], hidden[:1], length)
    assert_close(got, reference.run(tokens[length + 1 :], hidden[:1], length))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_drafting_does_not_disturb_the_trunk_or_a_neighbour(name):
    model, _ = random_model(name)
    tokens = tokens_of(model, 70)
    states = []
    for drafts in (False, True):
        session = PagedSession(model, num_requests=2, max_length=70)
        hidden = session.trunk({0: tokens[:66], 1: tokens[:69]}, {0: 0, 1: 0})
        if drafts:
            session.mtp(tokens[1:67], hidden[0], 0)
        states.append(session.trunk({0: tokens[66:], 1: tokens[69:]}, {0: 66, 1: 69}))
    for request in (0, 1):
        assert torch.equal(states[0][request], states[1][request])


def test_a_model_without_the_layer_says_so():
    model = GlmModel(replace(variant("tiny-air"), num_nextn_predict_layers=0))
    assert not model.has_mtp
    with pytest.raises(ValueError, match="no MTP layer"):
        model.mtp_forward(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 48), ForwardContext.dense([1]))
