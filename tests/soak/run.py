"""A soak: night after night on one home folder, with faults drawn by chance, and checks after each.

    python -m tests.soak.run FOLDER NIGHTS SEED MANY_CHAMPIONS

Needs the environment of ``tests.fleet.fake_environment``; ``benchmarks/soak.py`` starts it so. Prints one JSON object
a night, and a last one with the sums.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

from tests.soak import checks, child, faults, hands
from tests.soak.bucket import Bucket, draw_weights, looking_at

MODELS = ("fastai", "keras")
# Every so often a night runs as a person would run it: by the command line, with a Prefect server of its own.
BY_COMMAND = 50
DISK_EVERY = 10
MOST_TRIES = 6


class Soak:
    """One home folder, its bucket, and all that was seen of it so far."""

    def __init__(self, folder: Path, seed: int, *, many_champions: bool) -> None:
        self.many_champions = many_champions
        self.folder, self.home = folder, folder / "home"
        self.temporary = folder / "tmp"
        self.random = Random(f"soak {seed}")
        self.bucket = Bucket(self.home / "store", seed)
        self.history: list[Any] = []
        self.nights = 0
        self.seconds = 4.0
        self.cpu = 0.0
        self.wrong: list[str] = []
        self.rss: list[float] = []
        self.settings: dict[str, str] = {}

    def night(self, number: int) -> dict[str, Any]:
        """Let cells arrive, one thing go wrong, and the night be run until it is over; check everything."""
        self.settings = self._challengers(number)
        self.bucket.deliver(60 if number == 1 else self.random.randint(1, 3))
        if number > 1:
            self.bucket.stir()
        drawn = faults.draw(self.random) if number > 2 else "nothing"
        gone = self._before(drawn, number)
        verdicts, tries = self._until_over(drawn, number)
        self._after(drawn)
        state = self._act(checks.look)
        self._check(number, drawn, state)
        for key, data in gone.items():
            self.bucket.put(key, data)
        checks.backdate([self.home, self.temporary])
        told = {
            "night": number,
            "drawn": drawn,
            "tries": tries,
            "verdicts": verdicts,
            "cells": len(self.bucket.objects),
        }
        cost = {"seconds": round(self.seconds, 1), "cpu": round(self.cpu, 1)}
        return {**told, **cost, **{name: value for name, value in state.items() if name not in ("history", "wrong")}}

    def _challengers(self, number: int) -> dict[str, str]:
        odds = (max(0.0, 12 - number), number - 1.0, max(0.0, number - 8)) if self.many_champions else (2.0, 2.0, 1.0)
        for name in MODELS:
            (self.folder / f"{name}.onnx").write_bytes(looking_at(draw_weights(self.random, odds)))
        return {"RETRAIN_PROMOTION__APPROVAL": "automatic", **self._recipes({})}

    def _recipes(self, behaviours: dict[str, str]) -> dict[str, str]:
        return {
            f"RETRAIN_TRAINING__{name.upper()}": json.dumps(
                {"model": str(self.folder / f"{name}.onnx"), "behaviour": behaviours.get(name, "good")}
            )
            for name in MODELS
        }

    def _before(self, drawn: str, number: int) -> dict[str, bytes]:
        if drawn == "cache damaged":
            faults.damage_cache(self.home, self.random)
        elif drawn == "object truncated":
            faults.truncate_object(self.bucket)
        elif drawn == "junk":
            faults.put_junk(self.bucket, number)
        elif drawn == "invalid batch":
            return faults.take_class_away(self.bucket)
        elif drawn == "pointer torn":
            faults.tear_pointer(self.home, self.random)
        elif drawn == "table lost":
            faults.lose_table(self.home)
        elif drawn == "a person answers":
            self.settings["RETRAIN_PROMOTION__APPROVAL"] = "person"
        elif drawn == "one CNN fails":
            failing = self.random.choice(MODELS)
            self.settings |= self._recipes({failing: self.random.choice(faults.FAILURES)})
        return {}

    def _until_over(self, drawn: str, number: int) -> tuple[list[str], int]:
        """Run the night with what goes wrong, and then until it is over; return how each try ended."""
        ended: list[str] = []
        if drawn == "killed":
            for _ in range(self.random.randint(1, 3)):
                ended.append(self._try(kill_after=self.random.uniform(0.02, 1.0) * self.seconds))
        elif drawn == "store away":
            ended.append(self._try(self.random.randint(1, 160)))
        elif drawn == "both CNNs fail":
            sound = dict(self.settings)
            self.settings |= self._recipes(dict.fromkeys(MODELS, "crashes"))
            ended.append(self._try())
            self._expect(number, ended, "TrainingFailed")
            self.settings = sound
        elif drawn == "champion tampered":
            tampered = faults.tamper(self.home, self._act(hands.champion_file)["sha256"])
            if tampered is not None:
                ended.append(self._try())
                self._expect(number, ended, "champion unusable")
                tampered[0].write_bytes(tampered[1])
        for _ in range(MOST_TRIES):
            ended.append(self._by_command() if number % BY_COMMAND == 0 else self._try())
            if "rror" not in ended[-1] and ended[-1] not in ("killed", "StoreUnreachable"):
                break
        if drawn == "invalid batch":
            self._expect(number, ended, "invalid data")
        if drawn == "run twice":
            ended.append(self._try())
            self._expect(number, ended, "nothing new")
        return ended, len(ended)

    def _expect(self, number: int, ended: list[str], verdict: str) -> None:
        if ended[-1] != verdict:
            self.wrong.append(f"night {number} ended as {ended[-1]!r}, expected was {verdict!r}")

    def _try(self, store_fails_at: int = 0, kill_after: float | None = None) -> str:
        ended = child.act(
            child.night, store_fails_at,
            environment=self.settings, log=self.folder / "nights.log", kill_after=kill_after,
        )  # fmt: skip
        self.cpu = ended.cpu
        self.rss.append(ended.rss_mb)
        if ended.error is None:
            self.seconds = 0.7 * self.seconds + 0.3 * ended.seconds
            return str(ended.answer["verdict"])
        if ended.error.startswith("unexpected"):
            self.wrong.append(f"{ended.error}: {ended.answer['message'][-400:]}")
        return ended.error

    def _by_command(self) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "run", "--json"],
            env={**os.environ, **self.settings}, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        with (self.folder / "nights.log").open("a") as log:
            log.write(done.stderr)
        return str(json.loads(done.stdout.splitlines()[-1])["verdict"]) if done.stdout.strip() else "error"

    def _after(self, drawn: str) -> None:
        """What people do, and a pruning that is killed."""
        if drawn == "a person answers":
            for decision in self._act(checks.look)["waiting"]:
                if self.random.random() < 0.8:
                    self._act(hands.give_answer, decision, self.random.random() < 0.7)
        elif drawn == "rolled back":
            versions = sorted(
                {after for _, _, after in self.history[:-1]} - {self.history[-1][2]} if self.history else ()
            )
            if versions:
                self._act(hands.go_back, self.random.choice(versions))
        elif drawn == "pruning killed":
            child.act(
                hands.prune_now, environment=self.settings, log=self.folder / "nights.log",
                kill_after=self.random.uniform(0.02, 0.6),
            )  # fmt: skip

    def _act(self, function: Any, *arguments: Any, wanted: bool = True) -> dict[str, Any]:
        ended = child.act(function, *arguments, environment=self.settings, log=self.folder / "nights.log")
        answer: dict[str, Any] = ended.answer
        if wanted and ended.error is not None:
            self.wrong.append(f"{function.__name__}: {answer}")
        return answer

    def _check(self, number: int, drawn: str, state: dict[str, Any]) -> None:
        wrong = list(state.get("wrong", ["there is no state"]))
        if not self.bucket.is_untouched():
            wrong.append("input objects were changed")
        if state.get("history", [])[: len(self.history)] != self.history:
            wrong.append("the history was rewritten")
        if not state.get("usable", False):
            wrong.append("the champion cannot be used")
        # A night that finds the champion tampered with is recorded apart from the one that follows its repair.
        recorded = self.nights + (2 if drawn == "champion tampered" else 1)
        if state.get("nights") != recorded:
            wrong.append(f"{state.get('nights')} nights are recorded, {self.nights} were before")
        self.history = state.get("history", self.history)
        self.nights = state.get("nights", self.nights)
        self.wrong += [f"night {number} ({drawn}): {what}" for what in wrong]


def main(folder: Path, nights: int, seed: int, *, many_champions: bool) -> None:
    """Run a soak and print what was seen."""
    child.load_everything()
    child.stages_as_functions()
    soak = Soak(folder, seed, many_champions=many_champions)
    soak.bucket.root.mkdir(parents=True)
    soak.temporary.mkdir(exist_ok=True)
    for number in range(1, nights + 1):
        told = soak.night(number)
        if number % DISK_EVERY == 0 or number == nights:
            told["disk"] = checks.disk(soak.home, soak.temporary)
        told["rss_mb"] = round(max(soak.rss[-6:]))
        told["wrong"] = soak.wrong
        _say(told)
    left = checks.processes_of(soak.home)
    _say(
        {
            "processes_left": left,
            "pruned_at_the_end": soak._act(hands.prune_now),
            "reports": soak._act(checks.rebuild_reports),
            "temporary_files": sorted(str(p) for place in (soak.home, soak.temporary) for p in place.rglob("*tmp-*")),
            "rss_mb": [round(min(soak.rss)), round(max(soak.rss))],
            "wrong": soak.wrong,
            "disk": checks.disk(soak.home, soak.temporary),
        }
    )


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), many_champions=sys.argv[4] == "1")
