"""In which order a part's rows are sent: an engine must not be left with one long answer at the end."""

import asyncio
import random

from synth import worker as worker_module
from synth.engines.fake import FakeBehaviour, FakeEngine
from synth.rephrase import open_work
from tests.synth.conftest import make_parts, text_of

SEQUENCES = 4


class SteppingEngine(FakeEngine):
    """Decodes SEQUENCES requests together, a token of each a step; an answer takes a step for 20 characters of its prompt."""

    def __init__(self):
        super().__init__(FakeBehaviour(), 100_000)
        self.steps = self.tokens = 0
        self._seats, self._left = asyncio.Semaphore(SEQUENCES), {}

    async def start(self):
        await super().start()
        self._stepping = asyncio.create_task(self._step())

    async def stop(self):
        await super().stop()
        self._stepping.cancel()

    async def generate(self, request):
        result = await super().generate(request)
        async with self._seats:
            done = asyncio.Event()
            self._left[request.request_id] = [len(request.prompt_token_ids) // 20, done]
            await done.wait()
        return result

    async def _step(self):
        while True:
            for _ in range(10):  # time for those who were answered to make room for others
                await asyncio.sleep(0)
            self.steps += bool(self._left)
            self.tokens += len(self._left)
            for name, seat in list(self._left.items()):
                seat[0] -= 1
                if seat[0] <= 0:
                    del self._left[name]
                    seat[1].set()


def made(config):
    """Make the one part of a set; return (engine steps, tokens, bytes of the part)."""
    work, engine = open_work(config), SteppingEngine()
    make_parts(work, [0], engine)
    return engine.steps, engine.tokens, (work.directory / "part-00000-of-00001.parquet").read_bytes()


def test_the_longest_go_first_waste_fewer_steps_at_the_end_and_change_no_byte(
    fake_config, make_corpus, tmp_path, monkeypatch
):
    root, draw = str(tmp_path / "skewed"), random.Random(0)
    sizes = [max(1, round(draw.lognormvariate(1.0, 1.0))) for _ in range(39)]
    make_corpus(root, [text_of(at, size) for at, size in enumerate([*sizes, 40])], documents_per_part=40)
    whole = {"chunking": {"unit": "document", "max_length": None}, "max_input_tokens": 20_000}
    common = {
        "root": root,
        "recipes": ("hq",),
        "recipe_overrides": whole,
        "placement": {"max_num_seqs": SEQUENCES},
    }
    engine = {"kind": "fake", "model": "fake", "max_model_len": 100_000}
    steps, tokens, rows = made(fake_config(name="longest", engine=engine, **common))
    monkeypatch.setattr(worker_module, "longest_first", lambda drafts: range(len(drafts)))
    steps_in_order, tokens_in_order, rows_in_order = made(
        fake_config(name="ordered", engine=engine, **common)
    )
    assert tokens == tokens_in_order
    assert rows == rows_in_order
    print(tokens / SEQUENCES / steps, tokens / SEQUENCES / steps_in_order)
    assert tokens / SEQUENCES / steps > 0.95, "every seat is taken nearly all of the time"
    assert tokens / SEQUENCES / steps_in_order < 0.9
