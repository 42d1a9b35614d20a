"""langchain-openai against a server of ours, in its own environment: `python drive_langchain.py URL MODEL PROMPT FILE`, prints JSON."""

import json
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

url, model, prompt, file = sys.argv[1:]


@tool
def read_file(path: str) -> str:
    """The text of a file."""
    return Path(path).read_text()


class Verdict(BaseModel):
    """A judgement."""

    good: bool
    stars: int = Field(ge=1, le=5)


def tool_loop(**options):
    """Two turns, the second streamed."""
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, stream_usage=True, **options).bind_tools([read_file])
    messages = [HumanMessage(prompt)]
    first = chat.invoke(messages)
    (call,) = first.tool_calls
    assert call["args"] == {"path": file}, call
    messages += [first, read_file.invoke(call)]
    whole = None
    for chunk in chat.stream(messages):
        whole = chunk if whole is None else whole + chunk
    return {
        "answer": whole.text,
        "reasoning": [part["text"] for block in first.content_blocks for part in block.get("extras", {}).get("content", [])],
        "input tokens": whole.usage_metadata["input_tokens"],
        "cached": whole.usage_metadata["input_token_details"]["cache_read"],
        "thought": whole.usage_metadata["output_token_details"]["reasoning"],
    }


chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_tokens=2000, temperature=0, extra_body={"thinking": {"type": "disabled"}})
print(
    json.dumps(
        {
            "chat": tool_loop(),
            "responses": tool_loop(use_responses_api=True, output_version="v1"),
            "structured": {
                method: chat.with_structured_output(Verdict, method=method).invoke("Judge this.").model_dump()
                for method in ("json_schema", "function_calling")
            },
            "batch": [message.text for message in chat.batch(["Hello", "Hi"])],
            "completion": len(OpenAI(base_url=url, api_key="none", model=model, max_tokens=5).invoke("Once")) >= 0,
        }
    )
)
