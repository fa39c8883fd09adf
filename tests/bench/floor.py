"""The floor: the least a FastAPI server can do to stream tokens. Same uvicorn, same WebSocket implementation."""

import asyncio
import json
import re
import sys

import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from infra.llm.demo import FILLER

app = FastAPI()
RATE = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0


@app.websocket("/ws/session/{session_id}")
async def stream(websocket: WebSocket, session_id: str) -> None:
    """Answer "Write N words" with N token frames, one send each; 0 tokens a second means as fast as it can."""
    await websocket.accept()
    try:
        while True:
            wanted = int(re.findall(r"\d+", await websocket.receive_text())[0])
            for number in range(wanted):
                if RATE and number:
                    await asyncio.sleep(1 / RATE)
                await websocket.send_text(json.dumps({"type": "token", "content": FILLER[number % len(FILLER)] + " "}))
            await websocket.send_text(json.dumps({"type": "done"}))
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    config = uvicorn.Config(
        app,
        port=int(sys.argv[1]),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())
