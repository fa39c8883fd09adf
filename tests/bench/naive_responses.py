"""What one writes without us for OpenAI's Responses API: `naive.py` in its form."""

from typing import Any, cast

import openai
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from tests.bench.naive_serve import serve

app = FastAPI()
client = openai.AsyncOpenAI(max_retries=0)


@app.websocket("/ws/session/{session_id}")
async def chat(websocket: WebSocket, session_id: str) -> None:
    """Pass each delta on as it comes, and remember what was said."""
    await websocket.accept()
    said: list[dict[str, str]] = []
    try:
        while True:
            said.append({"role": "user", "content": await websocket.receive_text()})
            reply = ""
            stream: Any = await client.responses.create(model="m", input=cast(Any, said), stream=True)
            async for event in stream:
                if event.type == "response.output_text.delta":
                    reply += event.delta
                    await websocket.send_json({"type": "token", "content": event.delta})
            said.append({"role": "assistant", "content": reply})
            await websocket.send_json({"type": "done"})
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    serve(app)
