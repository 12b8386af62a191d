"""A FastAPI service that registers itself. box.toml runs it; the Box passes everything it needs."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import uvicorn
from fastapi import FastAPI, Request, Response

from bridge import register


@contextlib.asynccontextmanager
async def registered(app: FastAPI) -> AsyncIterator[None]:
    """Gateways route to this instance while the application runs."""
    async with register() as registration:
        app.state.registration = registration
        yield


app = FastAPI(lifespan=registered)


@app.middleware("http")
async def count(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    """Report each request as in flight: a drain waits for it, and a scale-down spares the busy."""
    async with app.state.registration.request():
        return await proceed(request)


@app.get("/")
async def hello() -> dict[str, str]:
    """Say which instance answered."""
    return {"hello": app.state.registration.instance_id}


if __name__ == "__main__":
    uvicorn.run(app, host=os.environ["BOX_ADDRESS"], port=int(os.environ["PORT"]))
