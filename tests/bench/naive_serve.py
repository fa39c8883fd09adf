"""How the naive scripts are served."""

import sys

import uvicorn
import uvloop
from fastapi import FastAPI


def serve(app: FastAPI) -> None:
    """Serve it on the port that the command line names, with the uvicorn and the WebSockets that ours has."""
    uvloop.install()
    config = uvicorn.Config(
        app,
        port=int(sys.argv[1]),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
    uvicorn.Server(config).run()
