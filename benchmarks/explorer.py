"""How soon the explorer's page is there, how many images a second it shows while one drags, and what it does with 1,000
questions at once.

    python benchmarks/explorer.py RUN [RUN ...] [--seconds 5] [--rounds 5]

From end to end, in chromium: a frame counts when its image is painted on the page. Needs `pip install playwright` and
Debian's chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import math
import shutil
import statistics
import subprocess
import sys
import time

import httpx2
from playwright.sync_api import Page, sync_playwright
from speed import print_row, processor

FLAGS = ["--no-sandbox", "--disable-background-networking", "--no-first-run"]
READY = "document.body.dataset.ready === 'yes' && explorer.frames > 0"


def served(runs: list[str]) -> tuple[subprocess.Popen[str], str]:
    """The server's process and its address, once it listens."""
    command = [sys.executable, "-m", "vaekit", "explore", *runs, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


def until(page: Page, what: str) -> None:
    while not page.evaluate(what):
        time.sleep(0.002)


def dragged(page: Page, seconds: float) -> float:
    """Images shown a second while the pointer goes round in circles on the map."""
    box = page.locator("#map").bounding_box()
    assert box is not None
    x, y, r = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["height"] / 5
    page.mouse.move(x + r, y)
    page.mouse.down()
    before, started = page.evaluate("explorer.frames"), time.perf_counter()
    while (now := time.perf_counter() - started) < seconds:
        page.mouse.move(x + r * math.cos(2 * now), y + r * math.sin(2 * now))
    found = (page.evaluate("explorer.frames") - before) / (time.perf_counter() - started)
    page.mouse.up()
    return found


async def crowd(address: str, latents: dict[str, list[list[float]]], count: int) -> str:
    """How many of so many questions at once got which answer."""
    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
        asked = [
            client.post(f"{address}api/runs/0/decode", json={"latents": latents})
            for _ in range(count)
        ]
        answers = await asyncio.gather(*asked)
    counts = collections.Counter(answer.status_code for answer in answers)
    return ", ".join(f"{number} answered {code}" for code, number in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}\n")
    print_row(["run", "page ready, s (median)", "images a second (median)", "lowest"])
    print_row(["---"] * 4)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for run in given.runs:
            readies, rates = [], []
            process, address = served([run])
            for _ in range(given.rounds):
                page = browser.new_page()
                started = time.perf_counter()
                page.goto(address)
                until(page, READY)
                readies.append(time.perf_counter() - started)
                page.wait_for_timeout(1000)
                rates.append(dragged(page, given.seconds))
                page.close()
            process.terminate()
            process.wait()
            print_row(
                [
                    run,
                    f"{statistics.median(readies):.2f}",
                    f"{statistics.median(rates):.0f}",
                    f"{min(rates):.0f}",
                ]
            )
        browser.close()
    process, address = served(given.runs)
    about = httpx2.get(f"{address}api/runs", trust_env=False).json()["runs"][0]
    latents = {each["name"]: [each["mean"]] for each in about["latents"]}
    print(f"\n1,000 questions at once: {asyncio.run(crowd(address, latents, 1000))}")
    process.terminate()


if __name__ == "__main__":
    main()
