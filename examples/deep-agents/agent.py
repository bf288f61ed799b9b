"""LangChain's Deep Agents with a sandbox for a computer: their file tools and `execute` work in there.

`langchain-vercel-sandbox`, unmodified, is what stands between the two. The model here is a script, so that the program runs
anywhere; put `model="anthropic:claude-sonnet-4-5"` in its place, and nothing else changes.
"""

from __future__ import annotations

from typing import Any

from deepagents import create_deep_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_vercel_sandbox import VercelSandbox
from vercel.sandbox import Sandbox

ORDERS = "n,cents\n3,250\n7,1999\n12,5\n"
PROGRAM = """
import csv
rows = csv.DictReader(open("/vercel/orders.csv"))
print(sum(int(row["n"]) * int(row["cents"]) for row in rows))
"""


class Script(GenericFakeChatModel):
    """Says what it was given, one message after the other; tools are its script's business."""

    def bind_tools(self, tools: Any, **_: Any) -> Script:
        return self


def call(name: str, number: str, **arguments: object) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": number}])


script = Script(
    messages=iter(
        [
            call("write_file", "1", file_path="/vercel/orders.csv", content=ORDERS),
            call("write_file", "2", file_path="/vercel/total.py", content=PROGRAM),
            call("execute", "3", command="python3 /vercel/total.py"),
            AIMessage("That is what the orders come to."),
        ]
    )
)
sandbox = Sandbox.create()
try:
    agent = create_deep_agent(model=script, backend=VercelSandbox(sandbox=sandbox))
    result = agent.invoke({"messages": [("user", "What do the orders come to?")]})
    computed = next(message for message in reversed(result["messages"]) if message.type == "tool")
    print(f"{result['messages'][-1].content} {computed.content.split()[0]} cents")
finally:
    sandbox.stop()
