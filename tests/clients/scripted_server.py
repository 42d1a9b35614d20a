"""`glm serve` over the scripted model, as a process: `python -m clients.scripted_server serve DIRECTORY ...` takes its flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from serve_process import ServeProcess

TESTS = Path(__file__).resolve().parents[1]
NAME = "scripted-glm"
CONTEXT = 131_072


def write_model(directory: Path) -> None:
    """A checkpoint with the tokenizer of glm-nano, room for an agent's prompt, and weights so few that reading one takes a moment."""
    import json

    from openglm.checkpoint import save_model
    from openglm.config import variant
    from openglm.config.engine import model_directory
    from openglm.model import GlmModel

    small = replace(
        variant("glm-nano"),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=32,
        moe_intermediate_size=32,
        n_routed_experts=4,
        max_position_embeddings=CONTEXT,
    )
    directory.mkdir(parents=True, exist_ok=True)
    model = GlmModel(small)
    model.init_weights(0)
    save_model(model, directory)
    (directory / "tokenizer.json").write_bytes((model_directory(None) / "tokenizer.json").read_bytes())
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 1.0, "top_p": 0.95}), "utf-8")


class ScriptedServer(ServeProcess):
    """A running server; `log` grows by a line per HTTP request."""

    def __init__(self, directory: Path, *flags: str) -> None:
        super().__init__(
            *(directory, "--served-model-name", NAME, "--threads", "1", "--num-speculative-tokens", "3"),
            *("--max-num-seqs", "4", "--kv-cache-tokens", str(2 * CONTEXT), "--log-level", "info", "--seed", "1"),
            *flags,
            module="clients.scripted_server",
            path=(TESTS, TESTS / "server", TESTS.parent),
        )


if __name__ == "__main__":
    from clients import scripted_engine
    from openglm.cli.main import main
    from openglm.engine import process

    process.__name__ = scripted_engine.__name__  # what the supervisor starts
    main()
