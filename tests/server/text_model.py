"""A served model without weights: a byte-level tokenizer with GLM's added tokens, for tests above the engine."""

from openglm.config.server import SamplingDefaults
from openglm.server.served_model import ServedModel
from openglm.text.added_tokens import ADDED_TOKENS
from openglm.text.checkpoint_template import BuiltinTemplate
from openglm.text.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token per byte."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    import json

    definition = json.loads(library.to_str())
    definition["added_tokens"] = [
        {
            "id": 256 + i,
            "content": token,
            "special": special,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, (token, special) in enumerate(ADDED_TOKENS)
    ]
    return Tokenizer(definition)


def text_model(*, max_model_len: int = 4000, names=("test-model",)) -> ServedModel:
    """A model that could be served if it had weights."""
    return ServedModel(names, byte_tokenizer(), BuiltinTemplate("glm-4.5"), max_model_len, SamplingDefaults(), created=1_700_000_000)
