"""Which token predicts which, with what weight, and that the loss is the definition of it."""

import random

import torch
import torch.nn.functional as F

from openglm.config.train import TrainConfig
from openglm.model import ForwardContext, GlmModel
from openglm.synth import TASKS, generate
from openglm.train.data import Document, document, heldout_batches, pack, training_batch
from openglm.train.loss import pretrain_losses
from openglm.train.workers import Workers


def test_targets_stay_inside_their_document():
    batch = pack([Document("a", [1, 2, 3], [False, True, True]), Document("b", [4, 5], [False, True])], prompt_weight=0.25)
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5]
    assert batch.next_tokens.tolist() == [2, 3, 0, 5, 0]
    assert batch.targets[:, 1].tolist() == [3, 0, 0, 0, 0]
    assert batch.weights[:, 0].tolist() == [1, 1, 0, 1, 0]
    assert batch.weights[:, 1].tolist() == [1, 0, 0, 0, 0]
    assert batch.lengths == (3, 2) and batch.document_of_token.tolist() == [0, 0, 0, 1, 1]


def test_every_assistant_turn_ends_in_exactly_one_trained_role_marker(tokenizer):
    rng = random.Random(3)
    markers = {tokenizer.user, tokenizer.observation, tokenizer.assistant, tokenizer.system}
    for task in TASKS:
        for _ in range(5):
            episode = generate(task, rng, "train")
            doc = document(tokenizer, episode)
            turns = [m for m in episode.conversation.messages if m.role == "assistant"]
            trained = [t for t, on in zip(doc.tokens, doc.trained, strict=True) if on and t in markers]
            assert trained == [tokenizer.observation if turn.tool_calls else tokenizer.user for turn in turns]
            assert doc.trained[-1]


def test_batches_are_a_function_of_seed_and_step(tokenizer):
    config = TrainConfig(num_steps=10, tokens_per_step=600)
    first, again, other = (training_batch(tokenizer, config, step) for step in (4, 4, 5))
    assert torch.equal(first.tokens, again.tokens) and not torch.equal(first.tokens[:50], other.tokens[:50])
    assert len(first.tokens) >= 600
    parts = [training_batch(tokenizer, config, 4, Workers(rank, 2)) for rank in range(2)]
    assert sorted(torch.cat([p.tokens for p in parts]).tolist()) == sorted(first.tokens.tolist())


def test_heldout_batches_weigh_only_trained_tokens(tokenizer):
    batches = heldout_batches(tokenizer, ["add", "no_tool"], 6, 1, 500)
    assert sum(len(b.lengths) for b in batches) == 12
    assert {w for b in batches for w in b.weights.unique().tolist()} == {0.0, 1.0}


def test_losses_are_the_weighted_mean_over_documents_run_alone(tokenizer, architecture):
    model = GlmModel(architecture).init_weights(5)
    rng = random.Random(1)
    documents = [document(tokenizer, generate(task, rng, "train")) for task in ("add", "tool_call", "chat")]
    batch = pack(documents, prompt_weight=0.3)
    totals = batch.weights.sum(0)
    losses = pretrain_losses(model, batch, ForwardContext.dense(batch.lengths), totals)
    trunk = mtp = 0.0
    with torch.no_grad():
        for doc in documents:
            ids = torch.tensor(doc.tokens)
            weight = [1.0 if on else 0.3 for on in doc.trained]
            ctx = ForwardContext.dense([len(ids)])
            hidden = model(ids, ctx)
            for i in range(len(ids) - 1):
                trunk += weight[i + 1] * float(F.cross_entropy(model.logits(hidden[i : i + 1]), ids[i + 1 : i + 2]))
            drafted = model.mtp_forward(torch.cat([ids[1:], ids[:1]]), hidden, ctx)
            for i in range(len(ids) - 2):
                mtp += weight[i + 2] * float(F.cross_entropy(model.logits(drafted[i : i + 1]), ids[i + 2 : i + 3]))
    assert abs(float(losses.trunk.detach()) - trunk / float(totals[0])) < 1e-4
    assert abs(float(losses.mtp.detach()) - mtp / float(totals[1])) < 1e-4


def test_mtp_layer_never_sees_the_token_it_predicts(tokenizer, architecture):
    model = GlmModel(architecture).init_weights(6)
    ids = torch.tensor(document(tokenizer, generate("add", random.Random(2), "train")).tokens)
    ctx = ForwardContext.dense([len(ids)], row_tile=16)  # else an expert's other rows may change the rounding
    changed = ids.clone()
    changed[20] = (changed[20] + 1) % 256
    with torch.no_grad():
        outputs = [model.mtp_forward(torch.roll(x, -1), model(x, ctx), ctx) for x in (ids, changed)]
    assert torch.equal(outputs[0][:19], outputs[1][:19])  # rows up to 18 predict tokens up to 20
    assert not torch.equal(outputs[0][19], outputs[1][19])
