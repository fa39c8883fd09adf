"""What one writes without us for Anthropic: `naive.py` on its SDK."""

from typing import Any, cast

import anthropic
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from tests.bench.naive_serve import serve

app = FastAPI()
client = anthropic.AsyncAnthropic(max_retries=0)


@app.websocket("/ws/session/{session_id}")
async def chat(websocket: WebSocket, session_id: str) -> None:
    """Pass each delta on as it comes, and remember what was said.

    The SDK's `messages.stream` costs more than this: it keeps the message, too.
    """
    await websocket.accept()
    said: list[dict[str, str]] = []
    try:
        while True:
            said.append({"role": "user", "content": await websocket.receive_text()})
            reply = ""
            asked = {"model": "m", "max_tokens": 8192, "messages": said}
            stream: Any = await client.messages.create(**cast(Any, asked), stream=True)
            async for event in stream:
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    reply += event.delta.text
                    await websocket.send_json({"type": "token", "content": event.delta.text})
            said.append({"role": "assistant", "content": reply})
            await websocket.send_json({"type": "done"})
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    serve(app)
