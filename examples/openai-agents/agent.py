"""The OpenAI Agents SDK with its own sandbox extension for Vercel, unmodified: an agent whose shell is a sandbox.

The model here is a script, so that the program runs anywhere; leave `model` out of the agent, and nothing else changes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agents import Model, ModelResponse, RunConfig, Runner, Usage, set_tracing_disabled
from agents.extensions.sandbox.vercel import VercelSandboxClient, VercelSandboxClientOptions
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

PROGRAM = "python3 -c 'print(sum(n * n for n in range(1, 101)))'"


class Script(Model):
    """Asks for the program once, then tells what it printed."""

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        outputs = [item["output"] for item in input if isinstance(item, dict) and item.get("type") == "function_call_output"]
        if not outputs:
            arguments = json.dumps({"cmd": PROGRAM})
            call = ResponseFunctionToolCall(type="function_call", name="exec_command", call_id="1", arguments=arguments)
            return ModelResponse(output=[call], usage=Usage(), response_id=None)
        number = str(outputs[-1]).split()[-1]
        text = ResponseOutputText(type="output_text", annotations=[], text=f"The sum of the first hundred squares is {number}.")
        said = ResponseOutputMessage(id="2", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[said], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        # The agent below is run to its end, never streamed.
        raise NotImplementedError


async def main() -> None:
    set_tracing_disabled(True)
    client = VercelSandboxClient()
    session = await client.create(manifest=Manifest(), options=VercelSandboxClientOptions())
    try:
        async with session:
            agent = SandboxAgent(name="Calculator", instructions="Compute with the shell.", model=Script())
            config = RunConfig(sandbox=SandboxRunConfig(session=session))
            result = await Runner.run(agent, "What is the sum of the first hundred squares?", run_config=config)
            print(result.final_output)
    finally:
        await client.delete(session)


asyncio.run(main())
