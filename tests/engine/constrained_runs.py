"""Random schemas and tool lists, and engines with a tokenizer over tiny random models: what runs of constrained requests need.

Every random schema bounds its strings and arrays, because a random model would go on for ever."""

import json
import random
from dataclasses import replace
from functools import cache

import torch
from engine_runs import MACHINE

from openglm.config import variant
from openglm.config.engine import EngineConfig, model_directory, resolve
from openglm.engine.core import EngineCore
from openglm.engine.loading import core_of
from openglm.model import GlmModel
from openglm.text.openai_messages import tools_from_openai
from openglm.text.tokenizer import Tokenizer

UNDECIDED = "[gMASK]<sop><|user|>\nAnswer.<|assistant|>"
REASONING = "[gMASK]<sop><|user|>Answer.<|assistant|><think>"
CONTENT = "[gMASK]<sop><|user|>\nAnswer./nothink<|assistant|>\n<think></think>"
START = {UNDECIDED: "undecided", REASONING: "reasoning", CONTENT: "content"}


@cache
def tokenizer() -> Tokenizer:
    """That of glm-nano: 2,048 tokens, all of GLM's added ones among them."""
    return Tokenizer.from_dir(model_directory(None))


@cache
def random_model() -> GlmModel:
    config = replace(
        variant("tiny-air"),
        vocab_size=tokenizer().num_tokens,
        eos_token_id=tokenizer().stop_ids,
        num_hidden_layers=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )
    model = GlmModel(config, dtype=torch.float32).init_weights(11)
    with torch.no_grad():
        model.lm_head.weight *= 20  # a distribution with preferences, so that drafts are sometimes right
    return model


def make_core(depth: int = 1, **settings) -> EngineCore:
    settings = {"max_model_len": 2048, "seed": 0, "deterministic": True, "num_speculative_tokens": depth, **settings}
    model = random_model()
    config, _ = resolve(EngineConfig(dtype="float32", **settings), model.config, MACHINE)
    return core_of(model, config, tokenizer())


def prompt(text: str = CONTENT) -> list[int]:
    return tokenizer().encode_raw(text)


def text_of(ids: list[int]) -> str:
    return tokenizer().decode(ids)


def random_schema(rng: random.Random, depth: int = 0) -> dict:
    """A schema whose every value is short."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "union"]
    kind = rng.choice(kinds if depth >= 3 else [*kinds, "object", "array", "anyOf", "ref"])
    match kind:
        case "string":
            low = rng.randrange(3)
            return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(1, 12)}
        case "integer":
            low = rng.randrange(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(100_000)}
        case "number":
            return rng.choice(
                [{"type": "number"}, {"type": "number", "minimum": 0, "exclusiveMaximum": 1000}, {"type": "number", "maximum": 7}]
            )
        case "boolean" | "null":
            return {"type": kind}
        case "enum":
            values = ["red", "dark blue", "", "<b>", "12", "null", 'say "no"', "天气", 3, -0.5, True, None]
            return {"enum": rng.sample(values, rng.randrange(1, 6))}
        case "const":
            return {"const": rng.choice(["on", 1, False, None, "two\nlines"])}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-f0-9]{4}$", "^(yes|no)$", r"^\d{3}-\d{2}$", "^[A-Z][a-z]{1,6}$"])}
        case "union":
            return {"type": rng.choice([["string", "null"], ["integer", "string"], ["boolean", "number", "string"]]), "maxLength": 6}
        case "object":
            return random_object(rng, depth)
        case "array":
            low = rng.randrange(2)
            return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": low, "maxItems": low + rng.randrange(1, 3)}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randrange(2, 4))]}
        case _:
            return {"$ref": f"#/$defs/{rng.choice(('point', 'name'))}"}


def random_object(rng: random.Random, depth: int = 0) -> dict:
    names = rng.sample(["city", "count", "unit", "x-y", "has space", "naïve", "deep", "id", "on"], rng.randrange(1, 5))
    properties = {name: random_schema(rng, depth + 1) for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


DEFINITIONS = {
    "point": {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "y": {"$ref": "#/$defs/name"}},
        "required": ["x"],
        "additionalProperties": False,
    },
    "name": {"type": "string", "maxLength": 8},
}


def with_definitions(schema: dict) -> dict:
    return {**schema, "$defs": DEFINITIONS} if "$ref" in json.dumps(schema) else schema


def random_tools(rng: random.Random, count: int | None = None) -> tuple:
    """Between one and four tools, some strict."""
    names = rng.sample(["get", "get_weather", "search.web", "now", "Write-File", "x"], count or rng.randrange(1, 5))
    tools = []
    for name in names:
        parameters = with_definitions(random_object(rng)) if rng.random() < 0.9 else {"type": "object", "properties": {}}
        function = {"name": name, "description": "A tool.", "parameters": parameters}
        if rng.random() < 0.5:
            function["strict"] = True
        tools.append({"type": "function", "function": function})
    return tools_from_openai(tools)
