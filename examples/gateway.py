"""An HTTP gateway. `python3 gateway.py 8080` serves http://127.0.0.1:8080/SERVICE/PATH."""

import sys
from collections.abc import AsyncIterator

from aiohttp import ClientError, ClientSession, web

from bridge import NoRoute, RouteTable, ScaleClient

TABLE = web.AppKey("table", RouteTable)
SESSION = web.AppKey("session", ClientSession)


async def connections(app: web.Application) -> AsyncIterator[None]:
    """The routes of every service, current as long as the gateway runs; NATS_URL names the bus."""
    async with (
        ScaleClient.connect() as client,
        RouteTable.open(client.connection, None) as app[TABLE],
        ClientSession() as app[SESSION],
    ):
        yield


async def forward(request: web.Request) -> web.Response:
    """Forward to the less busy of two random instances."""
    service, path, app = request.match_info["service"], request.match_info["path"], request.app
    body = await request.read()
    try:
        async with app[TABLE].lease(service) as route:
            url = f"http://{route.endpoint}/{path}"
            async with app[SESSION].request(request.method, url, data=body) as answer:
                kind, text = answer.content_type, await answer.read()
                return web.Response(status=answer.status, body=text, content_type=kind)
    except NoRoute as exc:
        return web.Response(status=503, text=str(exc))
    except ClientError as exc:
        return web.Response(status=502, text=f"{service} did not answer: {exc}")


gateway = web.Application()
gateway.cleanup_ctx.append(connections)
gateway.router.add_route("*", "/{service}/{path:.*}", forward)
web.run_app(gateway, host="127.0.0.1", port=int(sys.argv[1]), print=None)
