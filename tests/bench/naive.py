"""What one writes without us: FastAPI and the provider's SDK, twenty lines. Same uvicorn, same WebSockets."""

from typing import Any, cast

import openai
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from tests.bench.naive_serve import serve

app = FastAPI()
client = openai.AsyncOpenAI(max_retries=0)


@app.websocket("/ws/session/{session_id}")
async def chat(websocket: WebSocket, session_id: str) -> None:
    """Pass each chunk on as it comes, and remember what was said."""
    await websocket.accept()
    said: list[dict[str, str]] = []
    try:
        while True:
            said.append({"role": "user", "content": await websocket.receive_text()})
            reply = ""
            stream: Any = await client.chat.completions.create(model="m", messages=cast(Any, said), stream=True)
            async for chunk in stream:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    reply += text
                    await websocket.send_json({"type": "token", "content": text})
            said.append({"role": "assistant", "content": reply})
            await websocket.send_json({"type": "done"})
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    serve(app)
