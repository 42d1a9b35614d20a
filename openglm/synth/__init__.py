"""Seeded generators of conversations whose right answer is known: training data and held-out evaluation of small models.

    episode = generate("tool_call", random.Random(0), "heldout")
    episode.conversation   # the last message is the answer

Owns words, sentences and working; knows nothing of tokens, tensors or files.
"""

from openglm.synth.episode import Episode
from openglm.synth.mixture import CHINESE_SHARE, DEFAULT_MIXTURE, TASKS, Task, corpus_sample, generate, mixture, stream
from openglm.synth.split import Split, split_of

__all__ = [
    "CHINESE_SHARE",
    "DEFAULT_MIXTURE",
    "TASKS",
    "Episode",
    "Split",
    "Task",
    "corpus_sample",
    "generate",
    "mixture",
    "split_of",
    "stream",
]
