"""`make chaos`: people chat while everything they stand on is killed, again and again; then promises are counted."""

import argparse
import asyncio
import random
import shutil
import sys
import time
from collections import Counter
from contextlib import ExitStack

from tests.chaos.crowd import Crowd
from tests.chaos.verdict import losses, open_sessions
from tests.chaos.visitor import totals
from tests.chaos.world import World

CALM_SECONDS = 90.0
"""How long everything has to settle once the killing has stopped."""
TARGETS = ("container", "container", "store", "queue", "function", "sockets", "sockets")
PAUSE_SECONDS = (0.05, 0.8)
AT_ONCE = 3
"""So many may be down at the same time."""


async def run(world: World, kills: int, clients: int, dice: random.Random) -> list[str]:
    """Let people chat, and kill so often meanwhile; what was lost. Prints what happened."""
    began = time.monotonic()
    crowd = Crowd(world.url, clients, dice)
    killed = await _kill(world, crowd, kills, dice)
    await crowd.leave(CALM_SECONDS)
    database = world.postgres.url()
    await asyncio.to_thread(_wait_for_summaries, database)
    found = await asyncio.to_thread(losses, database, crowd.everybody)
    report: dict[str, object] = {
        "kills": f"{kills}  ({', '.join(f'{name} {number}' for name, number in sorted(killed.items()))})"
    }
    report |= {"visitors": len(crowd.everybody)} | totals(crowd.everybody)
    report |= {"losses": len(found), "took": f"{time.monotonic() - began:.0f} s"}
    for name, value in report.items():
        print(f"{name:<10} {value}")
    return found


async def _kill(world: World, crowd: Crowd, kills: int, dice: random.Random) -> Counter[str]:
    killed: Counter[str] = Counter()
    reviving: set[asyncio.Task[None]] = set()
    for number in range(1, kills + 1):
        crowd.fill_up()
        target = dice.choice(TARGETS)
        killed[target] += 1
        if target == "sockets":
            crowd.cut_sockets()
        else:
            task = asyncio.create_task(asyncio.to_thread(world.kill, target))
            reviving.add(task)
            task.add_done_callback(reviving.discard)
        if number % 20 == 0:
            print(f"… {number} kills, {len(crowd.everybody)} visitors", file=sys.stderr, flush=True)
        await asyncio.sleep(dice.uniform(*PAUSE_SECONDS))
        if len(reviving) >= AT_ONCE:
            await asyncio.wait(reviving, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*reviving)
    return killed


def _wait_for_summaries(database: str) -> None:
    deadline = time.monotonic() + CALM_SECONDS
    while open_sessions(database) and time.monotonic() < deadline:
        time.sleep(0.5)


def main() -> int:
    """Print the seed, the kills, the promises and the losses; 1 if there are any."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=None, help="of the dice that choose whom to kill, and when")
    parser.add_argument("--keep-logs", help="a folder for the processes' logs")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    print(f"seed       {seed}", flush=True)
    with ExitStack() as ending:
        world = World(ending)
        if arguments.keep_logs:
            ending.callback(_keep, world, arguments.keep_logs)
        found = asyncio.run(run(world, arguments.kills, arguments.clients, random.Random(seed)))
    for line in found[:50]:
        print(line)
    return 1 if found else 0


def _keep(world: World, folder: str) -> None:
    shutil.copytree(world.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("postgres", "data"))


if __name__ == "__main__":
    sys.exit(main())
