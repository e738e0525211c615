"""32 clients come and go for minutes: what they are answered, and what is left of them in the server's process.

They come in waves and rest between them, so that other tests can run meanwhile. `R1V_SOAK_SECONDS` says how long (make
test: 300); `R1V_SOAK_RESULTS` names a JSON file for what was found.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from r1v_export.nano.dataset import samples
from tests.serve.conftest import NEW_TOKENS, QUESTIONS, Server, messages

SECONDS = float(os.environ.get("R1V_SOAK_SECONDS", "20"))
WAVE_SECONDS = 4.0
"""From one wave to the next, unless answering takes longer: about a third of a core."""
CLIENTS = 32
WARM_UP_WAVES = 5
IMAGES = 60
SMALL_CACHE = ("--image-cache-mib", "1")
"""Half of the images fit."""
GROWTH_MIB = 24
"""Of the server's memory after warm-up, at most. What every answer leaks is above it within 1,000 answers at 25 kB."""

pytestmark = [pytest.mark.slow(SECONDS), pytest.mark.timeout(3600 + 2 * SECONDS)]

Case = tuple[Path | None, str]
Answer = tuple[str, str]
Alone = Callable[[Path | None, str], Answer]


@dataclass(frozen=True)
class Footprint:
    """What a server holds while it has nothing to do."""

    resident_mib: float
    threads: int
    files: int
    shared_memory: int
    """Mappings of /dev/shm, files that are gone included."""
    rows_in_use: float
    cpu_seconds: float

    @classmethod
    def read(cls, server: Server) -> Footprint:
        process = Path("/proc", str(server.process.pid))
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        times = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        numbers = server.metrics()
        return cls(
            resident_mib=int(status["VmRSS"].split()[0]) / 1024,
            threads=int(status["Threads"]),
            files=len(list((process / "fd").iterdir())),
            shared_memory=(process / "maps").read_text().count("/dev/shm/"),
            rows_in_use=numbers["r1v_cache_rows"] - numbers["r1v_cache_rows_kept"],
            cpu_seconds=sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
        )


@dataclass
class Soak:
    """What was found."""

    server: Server
    start: Footprint
    """Before the first client, with engines open: they are opened by the first question of their kind."""
    warm: Footprint
    end: Footprint
    """After the last client has gone."""
    visits: Counter[str]
    wrong: list[tuple[Case, Answer]]
    waves: list[Footprint] = field(default_factory=list)
    """After each."""


def settle(server: Server) -> Footprint:
    """The footprint once the server has noticed that everybody is gone."""
    for _ in range(300):
        numbers = server.metrics()
        if numbers["r1v_requests_running"] == numbers["r1v_requests_queued"] == 0:
            return Footprint.read(server)
        time.sleep(0.1)
    raise AssertionError(f"requests are left whose clients have gone: {numbers}")


class Client:
    """One of the clients, who asks, and sometimes goes away before the answer is complete."""

    def __init__(
        self, url: str, number: int, cases: list[Case], visits: Counter[str], wrong: list[tuple[Case, Answer]]
    ) -> None:
        self.api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
        self.chooser = random.Random(number)
        self.cases, self.visits, self.wrong = cases, visits, wrong

    async def visit(self, alone: Alone) -> None:
        """Come at some moment of half a second, and do one of what clients do."""
        await asyncio.sleep(self.chooser.uniform(0, 0.5))
        case = self.chooser.choice(self.cases)
        ways = {self.whole: 30, self.streamed: 30, self.leave_stream: 15, self.leave_whole: 15, self.err: 10}
        (way,) = self.chooser.choices(list(ways), list(ways.values()))
        answer = await way(case)
        self.visits[way.__name__ if answer or way == self.err else f"{way.__name__}, gone"] += 1
        if answer and answer != alone(*case):
            self.wrong.append((case, answer))

    async def create(self, case: Case, **options: Any) -> Any:
        return await self.api.chat.completions.create(
            model="nano", messages=messages(*case), temperature=0, max_tokens=NEW_TOKENS, **options
        )

    async def whole(self, case: Case) -> Answer:
        message = (await self.create(case)).choices[0].message
        return message.reasoning_content or "", message.content or ""

    async def streamed(self, case: Case, leave_after: int | None = None) -> Answer | None:
        return await read(await self.create(case, stream=True), leave_after)

    async def leave_stream(self, case: Case) -> Answer | None:
        return await self.streamed(case, leave_after=self.chooser.randint(1, 12))

    async def leave_whole(self, case: Case) -> Answer | None:
        try:
            return await asyncio.wait_for(self.whole(case), self.chooser.uniform(0.01, 0.3))
        except (asyncio.TimeoutError, openai.APITimeoutError):
            return None

    async def err(self, case: Case) -> None:
        """Send something that is no image."""
        broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        asked = [{"role": "user", "content": [broken, {"type": "text", "text": case[1]}]}]
        with pytest.raises(openai.BadRequestError):
            await self.api.chat.completions.create(model="nano", messages=asked)  # type: ignore[arg-type]


async def read(stream: Any, leave_after: int | None = None) -> Answer | None:
    """A streamed answer; None if it was left after so many events."""
    reasoning = answer = ""
    async with stream:
        async for chunk in stream:
            delta = chunk.choices[0].delta
            reasoning += getattr(delta, "reasoning_content", None) or ""
            answer += delta.content or ""
            leave_after = leave_after and leave_after - 1
            if leave_after == 0:
                return None
    return reasoning, answer


async def run_soak(server: Server, cases: list[Case], alone: Alone) -> Soak:
    visits: Counter[str] = Counter()
    wrong: list[tuple[Case, Answer]] = []
    first = Client(server.url, CLIENTS, cases, visits, wrong)
    for with_image in (True, False):
        await first.whole(next(case for case in cases if (case[0] is not None) == with_image))
    await first.api.close()
    await asyncio.sleep(1)  # until the server has closed its end, too
    start = settle(server)
    clients = [Client(server.url, number, cases, visits, wrong) for number in range(CLIENTS)]
    for _ in range(WARM_UP_WAVES):
        await asyncio.gather(*(client.visit(alone) for client in clients))
    warm = settle(server)
    waves = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        await asyncio.gather(asyncio.sleep(WAVE_SECONDS), *(client.visit(alone) for client in clients))
        waves.append(settle(server))
    for client in clients:
        await client.api.close()
    return Soak(server, start, warm, after_connections(server, start.files), visits, wrong, waves)


def after_connections(server: Server, files: int) -> Footprint:
    """The footprint once there are no more open files than `files`, or five seconds have passed."""
    for _ in range(50):
        found = settle(server)
        if found.files <= files:
            break
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory, alone) -> list[Case]:
    """What is asked: generated images with their questions, some twice, and texts without an image."""
    folder = tmp_path_factory.mktemp("images")
    found: list[Case] = [(None, question) for question in QUESTIONS] * 4
    for number, sample in enumerate(samples("eval", IMAGES)):
        path = folder / f"{number}.png"
        sample.image.save(path)
        found += [(path, sample.question), (path, QUESTIONS[number % 2])]
    for case in found:
        alone(*case)
    return found


@pytest.fixture(scope="module")
def soak(start_server, cases, alone) -> Iterator[Soak]:
    server = start_server("--no-access-log", *SMALL_CACHE)
    try:
        found = asyncio.run(run_soak(server, cases, alone))
        if results := os.environ.get("R1V_SOAK_RESULTS"):
            write_results(found, Path(results))
        yield found
    finally:
        if server.process.poll() is None:
            server.process.kill()


def write_results(soak: Soak, path: Path) -> None:
    content = {
        "seconds": SECONDS,
        "clients": CLIENTS,
        "visits": soak.visits,
        "wrong": len(soak.wrong),
        "start": asdict(soak.start),
        "warm": asdict(soak.warm),
        "end": asdict(soak.end),
        "waves": len(soak.waves),
        "clients_cpu_seconds": time.process_time(),
        "resident_mib_by_tenths": [round(soak.waves[i * len(soak.waves) // 10].resident_mib, 1) for i in range(10)],
        "metrics": soak.server.metrics(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def test_every_finished_answer_is_the_lone_request_s(soak):
    assert soak.wrong == []
    assert soak.visits["whole"] + soak.visits["streamed"] > len(soak.waves) * CLIENTS * 0.4
    for way in ("leave_stream, gone", "leave_whole, gone", "err"):
        assert soak.visits[way] > 0, soak.visits


def test_memory_stays_flat_after_warm_up(soak):
    assert max(footprint.resident_mib for footprint in soak.waves) < soak.warm.resident_mib + GROWTH_MIB


def test_nothing_is_left_of_clients_that_are_gone(soak):
    assert {footprint.rows_in_use for footprint in soak.waves} == {0}
    pool = min(32, (os.cpu_count() or 1) + 4)  # asyncio's own, which grows on demand
    assert max(footprint.threads for footprint in soak.waves) <= soak.start.threads + pool
    assert soak.end.files <= soak.start.files
    assert soak.end.shared_memory == soak.start.shared_memory


def test_sigterm_finishes_the_answers_on_their_way(soak, cases, alone):
    async def stop_in_the_middle() -> None:
        asked = cases[-8:]
        client = Client(soak.server.url, 0, asked, Counter(), [])
        opened = await asyncio.gather(*(client.create(case, stream=True) for case in asked))
        stopping = asyncio.create_task(asyncio.to_thread(soak.server.stop))
        assert await asyncio.gather(*map(read, opened)) == [alone(*case) for case in asked]
        await stopping

    asyncio.run(stop_in_the_middle())
    assert soak.server.process.returncode == 0
