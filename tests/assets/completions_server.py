"""A real HTTP server with OpenAI's completions API in front of the fake engine: it can refuse, dawdle, break off and die."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from aiohttp import web

REPOSITORY = Path(__file__).parents[2]

FAULTS = {
    "☠": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
"""What a prompt that holds the sign does to the server."""

STATUS_SIGNS = {"➊": 500, "➋": 429, "➌": 400, "➍": 504, "➎": 503}
"""A prompt that holds the sign is answered with this status the first time it comes."""

BREAK_SIGN = "✂"
"""A prompt that holds this has its connection cut the first time."""

NONSENSE_SIGN = "¿"
"""A prompt that holds this is always answered with JSON that is no completion."""


class Server:
    """The handlers and what they remember."""

    def __init__(self, latency_seconds, api_key, window):
        from synth.engines.fake import FakeBehaviour, FakeEngine

        self.engine = FakeEngine(FakeBehaviour(latency_seconds=latency_seconds), 10**9)
        self.api_key, self.window = api_key, window
        self.seen, self.numbers = set(), itertools.count()

    async def models(self, request):
        if denied := self._denied(request):
            return denied
        return web.json_response({"data": [{"id": "served", "max_model_len": self.window}]})

    async def version(self, request):
        return web.json_response({"version": "0.0"})

    async def completions(self, request):
        from synth.engines.protocol import GenerationRequest
        from synth.recipe import Sampling

        if denied := self._denied(request):
            return denied
        body = await request.json()
        text = TOKENIZER.decode(body["prompt"])
        if len(body["prompt"]) + body["max_tokens"] > self.window:
            return _error(400, f"This model's maximum context length is {self.window} tokens")
        if response := self._fault(request, text, body["seed"]):
            return response
        sampling = Sampling(
            temperature=body["temperature"],
            max_output_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
        )
        ids = tuple(map(ord, text))
        result = await self.engine.generate(
            GenerationRequest(str(next(self.numbers)), ids, sampling, body["max_tokens"], body["seed"])
        )
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": result.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        choice = {
            "text": result.text,
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_reason,
        }
        return web.json_response({"choices": [choice], "usage": usage})

    def _denied(self, request):
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return _error(401, "who are you?")
        return None

    def _fault(self, request, text, seed):
        for sign, action in FAULTS.items():
            if sign in text:
                action()
        if NONSENSE_SIGN in text:
            return web.json_response({"hello": "world"})
        if (text, seed) in self.seen:
            return None
        self.seen.add((text, seed))
        if BREAK_SIGN in text:
            request.transport.abort()
            return web.Response()
        for sign, status in STATUS_SIGNS.items():
            if sign in text:
                headers = {"Retry-After": "0.05"} if status in (429, 503) else {}
                return _error(status, f"told to answer {status}", headers)
        return None


def _error(status, message, headers=None):
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


async def serve(options):
    """Serve until killed; print the port once it is open."""
    server = Server(options["latency_seconds"], options["api_key"], options["window"])
    await server.engine.start()
    application = web.Application(client_max_size=2**26)
    application.router.add_get("/v1/models", server.models)
    application.router.add_get("/version", server.version)
    application.router.add_post("/v1/completions", server.completions)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options["port"])
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


class CompletionsServer:
    """The server as a process of its own, on loopback, that can be killed and started again on the same port."""

    def __init__(self, tokenizer, *, latency_seconds=0.0, api_key=None, window=4096):
        self.options = {
            "tokenizer": str(tokenizer), "latency_seconds": latency_seconds, "api_key": api_key, "window": window, "port": 0,
        }  # fmt: skip
        self.process = None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.options['port']}/v1"

    def start(self):
        command = [sys.executable, __file__, json.dumps(self.options)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.options["port"] = int(self.process.stdout.readline())
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    from tokenizers import Tokenizer

    chosen = json.loads(sys.argv[1])
    TOKENIZER = Tokenizer.from_file(f"{chosen['tokenizer']}/tokenizer.json")
    asyncio.run(serve(chosen))
