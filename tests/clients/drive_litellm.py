"""litellm against a server of ours, in litellm's own environment: `python drive_litellm.py URL MODEL PROMPT FILE`, prints JSON."""

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import litellm  # noqa: E402

url, model, prompt, file = sys.argv[1:]
litellm.telemetry = False
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "The text of a file.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
]


def tool_loop(**target):
    """Two turns, the second streamed; the answer, the reasoning and the usage."""
    messages = [{"role": "user", "content": prompt}]
    first = litellm.completion(messages=messages, tools=TOOLS, **target)
    message = first.choices[0].message
    (call,) = message.tool_calls
    path = json.loads(call.function.arguments)["path"]
    assert path == file, path
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": Path(path).read_text()}]
    chunks = list(litellm.completion(messages=messages, tools=TOOLS, stream=True, stream_options={"include_usage": True}, **target))
    whole = litellm.stream_chunk_builder(chunks, messages=messages)
    return {
        "finish": [first.choices[0].finish_reason, whole.choices[0].finish_reason],
        "reasoning": [message.reasoning_content, whole.choices[0].message.reasoning_content],
        "answer": whole.choices[0].message.content,
        "cached": whole.usage.prompt_tokens_details.cached_tokens,
    }


def refusal(**target):
    """The exception's type when the prompt is far too long."""
    try:
        litellm.completion(messages=[{"role": "user", "content": "word " * 400_000}], num_retries=0, **target)
    except Exception as error:  # its type is what is asked about
        return type(error).__name__
    return "answered"


openai = {"model": f"openai/{model}", "api_base": url, "api_key": "none"}
print(
    json.dumps(
        {
            "openai": tool_loop(**openai),
            "hosted_vllm": tool_loop(model=f"hosted_vllm/{model}", api_base=url, thinking={"type": "enabled", "budget_tokens": 1024}),
            "anthropic": tool_loop(
                model=f"anthropic/{model}",
                api_base=url.removesuffix("/v1"),
                api_key="none",
                thinking={"type": "enabled", "budget_tokens": 1024},
                allowed_openai_params=["thinking"],  # it does not know what the model can
            ),
            "too long": refusal(**openai),
            "text": litellm.text_completion(
                model=f"text-completion-openai/{model}", prompt="Say", api_base=url, api_key="none", max_tokens=3
            )
            .choices[0]
            .finish_reason,
        }
    )
)
