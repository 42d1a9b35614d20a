"""`ServedModel`: everything the server must know about a model without holding its weights.

Owns reading the text side of a model directory (tokenizer, chat template, sampling defaults, context length) and turning a
conversation into prompt ids. The weights live in the engine's process.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openglm.config import ModelConfig
from openglm.config.server import SamplingDefaults
from openglm.errors import CheckpointError, ConfigError
from openglm.text.checkpoint_template import BuiltinTemplate, ChatTemplate, load_chat_template, read_template_source
from openglm.text.messages import Conversation
from openglm.text.template import Rendered, StartState, TemplateStyle
from openglm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """One model as clients see it. `names` are accepted in requests, the first is echoed."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    template: ChatTemplate
    max_model_len: int
    defaults: SamplingDefaults
    created: int
    template_source: str | None = None
    """The text of the checkpoint's own template, for clients that render prompts themselves."""

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.names[0]

    @property
    def renders_in_process(self) -> bool:
        """Whether `prompt` is plain computation; a checkpoint's own template waits for another process."""
        return isinstance(self.template, BuiltinTemplate)

    def prompt(self, conversation: Conversation, *, continues: bool = False) -> tuple[list[int], StartState]:
        """Ids of the prompt for the next assistant turn, and the state its reply begins in. With `continues` the reply goes on with
        the last turn, whose text ends the prompt."""
        rendered = self.render(conversation, continues=continues)
        return self.tokenizer.encode_segments(rendered.segments), rendered.start

    def render(self, conversation: Conversation, *, continues: bool = False) -> Rendered:
        """The same before it is cut into tokens."""
        rendered = self.template.render(conversation, add_generation_prompt=not continues)
        return replace(rendered, start="content") if continues else rendered

    def with_context(self, max_model_len: int) -> ServedModel:
        """The same model with the context that the engine settled on."""
        return replace(self, max_model_len=max_model_len)


def load_served_model(
    path: Path,
    *,
    names: tuple[str, ...],
    style: TemplateStyle | None = None,
    overrides: dict[str, Any] | None = None,
    use_generation_config: bool = True,
) -> ServedModel:
    """Read the text side of a model directory. `style` overrides the checkpoint's own chat template, `overrides` its
    sampling defaults. Raises `CheckpointError` or `ConfigError` naming the file."""
    if not path.is_dir():
        reason = "is a file; give its directory" if path.exists() else "no such model directory"
        download = f"; models are not downloaded, so get it first: hf download {path} --local-dir {path.name}" if _is_hub_name(path) else ""
        raise CheckpointError(f"{path}: {reason}{download or '; it must hold config.json, tokenizer.json and *.safetensors'}")
    config = ModelConfig.from_file(path / "config.json")
    tokenizer = Tokenizer.from_dir(path)
    own_template = read_template_source(path)
    return ServedModel(
        names=names,
        tokenizer=tokenizer,
        template=load_chat_template(path, style=style, added_tokens=tokenizer.added_tokens),
        max_model_len=config.max_position_embeddings,
        defaults=sampling_defaults(path / "generation_config.json" if use_generation_config else None, overrides or {}),
        created=int(time.time()),
        template_source=own_template[0] if own_template is not None else None,
    )


def _is_hub_name(path: Path) -> bool:
    """Whether a path that is not there reads like `zai-org/GLM-4.5-Air`."""
    return not path.is_absolute() and len(path.parts) == 2 and not path.parent.exists()


def sampling_defaults(path: Path | None, overrides: dict[str, Any]) -> SamplingDefaults:
    """The defaults a model's `generation_config.json` asks for, with `overrides` on top; no file asks for nothing."""
    values = _read_object(path) if path is not None and path.is_file() else {}
    neutral = SamplingDefaults()
    merged = {name: value for name, value in {**values, **overrides}.items() if name in vars(neutral) and value is not None}
    for name, value in merged.items():
        if isinstance(value, bool) or not isinstance(value, (int, type(getattr(neutral, name)))):
            where = "the override" if name in overrides else str(path)
            raise ConfigError(f"{where}: {name} must be a number, got {value!r:.40}")
    unknown = overrides.keys() - vars(neutral).keys()
    if unknown:
        raise ConfigError(f"no sampling default is called {min(unknown)!r:.40}; known: {', '.join(vars(neutral))}")
    if values.get("do_sample") is False and "temperature" not in overrides:
        merged["temperature"] = 0.0
    merged["top_k"] = max(0, merged.get("top_k", neutral.top_k))  # some checkpoints say "no limit" as -1, as requests may
    return replace(neutral, **merged)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold an object")
    return values
