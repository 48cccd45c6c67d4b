"""Generations: no patient that was trained, chosen or judged on judges again, whatever arrives on which night."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.store.memory import MemoryStore
from tasks.commands.rotate_holdout import holdout_status
from tasks.context import Context
from tasks.judging.assignments import remember
from tasks.judging.generations import current_generation, generations, rotate
from tasks.judging.ledger import take_look
from tasks.split import split
from tests.builders import context_over, made_up_candidate, with_settings
from validation.digest import digest
from validation.errors import RotationRefused
from validation.records import CLASSES, NEGATIVE, POSITIVE, Split, ValidationResult

pytestmark = pytest.mark.thorough

GATE = {"min_patients": 3, "min_cells_per_class": 4}
SIDES = ("train", "validation", "holdout")


@pytest.fixture
def context(home: Path) -> Context:
    return fresh(home)


def fresh(home: Path) -> Context:
    return context_over(MemoryStore(), home, gate=GATE)


Cell = tuple[str, str, str]  # pixels, patient, label


def facts_of(cells: dict[str, Cell]) -> pd.DataFrame:
    """Accepted images as validation leaves them: key -> cell, no pixels twice."""
    rows = [
        {"key": key, "sha256": digest(key, pixels), "pixels": pixels, "label": label, "patient": patient}
        for key, (pixels, patient, label) in sorted(cells.items())
    ]
    table = pd.DataFrame(rows, columns=["key", "sha256", "pixels", "label", "patient"])
    return table.drop_duplicates("pixels", ignore_index=True)


def night(context: Context, cells: dict[str, Cell]) -> Split:
    """One night's split over ``cells``."""
    facts = facts_of(cells)
    id_ = digest(facts.to_dict("records"))
    validation = ValidationResult(
        id=id_, snapshot="1", facts=context.records.save_table(ValidationResult, id_, "facts", facts), findings="",
        images=len(facts), accepted=len(facts), rejected=0, by_class={}, patients=0, without_patient=0, reasons={},
        examples=(), checks=(),
    )  # fmt: skip
    return split(context, validation)


def rows(context: Context, result: Split) -> pd.DataFrame:
    return context.records.load_table(result.table)


def trained(context: Context, result: Split, *, looked: bool = True, name: str = "") -> None:
    """A CNN was trained on a split, and perhaps looked at its holdout."""
    candidate = made_up_candidate(b"", id_=digest("candidate", result.id, name))
    candidate = candidate.model_copy(update={"spec": candidate.spec.model_copy(update={"split": result.id})})
    context.records.save(candidate, candidate.id)
    if looked:
        take_look(context, result.generation, candidate.id, "champion")


def patients(first: int, count: int, each: int = 4, *, prefix: str = "p") -> dict[str, Cell]:
    return {
        f"labeled/{CLASSES[c % 2]}/{prefix}{p}-{c}.png": (f"px-{prefix}{p}-{c}", f"{prefix}{p}", CLASSES[c % 2])
        for p in range(first, first + count)
        for c in range(each)
    }


def holdout(context: Context, result: Split) -> set[str]:
    table = rows(context, result)
    return set(table.loc[table["side"] == "holdout", "patient"])


# --- splits ------------------------------------------------------------------------------------------------------


def side_patient(context: Context, result: Split, side: str) -> str:
    table = rows(context, result)
    return str(table.loc[table["side"] == side, "patient"].iloc[0])


@pytest.mark.parametrize(("before", "after"), [("train", "holdout"), ("holdout", "train"), ("validation", "holdout")])
@pytest.mark.parametrize("first_copy", ["kept", "deleted"])
def test_a_cell_that_moves_to_a_patient_of_another_side_is_left_out_by_name(
    before: str, after: str, first_copy: str, context: Context
) -> None:
    cells = patients(1, 40)
    first = night(context, cells)
    assert (first.crossed, first.crossings) == (0, None)
    old, new = side_patient(context, first, before), side_patient(context, first, after)
    key = f"labeled/{POSITIVE}/{old}-0.png"
    pixels = cells[key][0]
    if first_copy == "deleted":
        del cells[key]
    # Filed under a name that sorts first, so that it is the copy that validation keeps.
    cells[f"labeled/{POSITIVE}/0{new}.png"] = (pixels, new, POSITIVE)
    second = night(context, cells)
    assert second.crossed == 1
    assert second.crossings
    crossings = context.records.load_table(second.crossings)
    assert crossings.to_dict("records") == [
        {"key": f"labeled/{POSITIVE}/0{new}.png", "pixels": pixels, "patient": new, "side": after, "before": before}
    ]
    assert pixels not in set(rows(context, second)["pixels"])
    # It is left out on the third night too, and may come back to where it was.
    assert night(context, {**cells, **patients(90, 1)}).crossed == 1
    back = {k: cell for k, cell in cells.items() if cell[0] != pixels} | {key: (pixels, old, POSITIVE)}
    assert pixels in set(rows(context, night(context, back))["pixels"])


def test_a_cell_may_be_moved_among_patients_of_one_side_and_between_classes(context: Context) -> None:
    cells = patients(1, 40)
    first = night(context, cells)
    table = rows(context, first)
    one, two = table.loc[table["side"] == "train", "patient"].unique()[:2]
    key = f"labeled/{POSITIVE}/{one}-0.png"
    cells[f"labeled/{NEGATIVE}/{two}-x.png"] = (cells.pop(key)[0], two, NEGATIVE)
    assert night(context, cells).crossed == 0


def test_other_shares_move_no_patient_who_is_known(context: Context) -> None:
    cells = patients(1, 40)
    before = holdout(context, night(context, cells))
    other = with_settings(context, gate=GATE, split={"train": 0.4, "validation": 0.3})
    more = cells | patients(100, 40)
    table = rows(other, night(other, more))
    known = table[table["patient"].isin({cell[1] for cell in cells.values()})]
    assert set(known.loc[known["side"] == "holdout", "patient"]) == before
    later = table[~table["patient"].isin(set(known["patient"]))]
    assert 0.1 < (later["side"] == "holdout").mean() < 0.5


def test_a_night_killed_after_it_remembered_comes_to_the_same_split(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = patients(1, 20)
    night(context, cells)
    moved = {**cells, f"labeled/{POSITIVE}/moved.png": (cells[f"labeled/{POSITIVE}/p1-0.png"][0], "p2", POSITIVE)}
    moved |= patients(50, 10)
    save = context.records.save

    def killed(record: object, id_: str) -> None:
        if isinstance(record, Split):
            raise KeyboardInterrupt
        save(record, id_)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(context.records, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            night(context, moved)
    remembered = remember(context, "g1").rows
    again = night(context, moved)
    assert len(remember(context, "g1").rows) == len(remembered)
    other = fresh(context.settings.home)
    night(other, cells)
    assert night(other, moved) == again
    assert other.store.get(again.table) == context.store.get(again.table)


def test_splits_of_before_there_was_a_memory_are_remembered(context: Context) -> None:
    cells = patients(1, 40)
    first = night(context, cells)
    assert isinstance(context.store, MemoryStore)
    for key in [key for key in context.store.objects if key.endswith(".memory.parquet")]:
        del context.store.objects[key]
    train, judge = side_patient(context, first, "train"), side_patient(context, first, "holdout")
    cells[f"labeled/{POSITIVE}/moved.png"] = (cells.pop(f"labeled/{POSITIVE}/{train}-0.png")[0], judge, POSITIVE)
    assert night(context, cells).crossed == 1
    # And all of it is there the night after, when the memory has begun.
    assert night(context, {**cells, **patients(80, 2)}).crossed == 1


# --- rotations ---------------------------------------------------------------------------------------------------


def test_a_new_generation_judges_with_patients_whom_no_model_has_met(context: Context) -> None:
    cells = patients(1, 40)
    first = night(context, cells)
    trained(context, first)
    worn_out = holdout(context, first)
    # This cell is gone before the new generation begins, and comes back in it.
    trainer = side_patient(context, first, "train")
    old = cells.pop(f"labeled/{POSITIVE}/{trainer}-0.png")
    cells |= patients(100, 12)
    generation = rotate(context, facts_of(cells), why="worn out", who="ada")
    assert (generation.name, generation.previous, generation.number) == ("g1.2", "g1", 2)
    assert (generation.why, generation.who) == ("worn out", "ada")
    assert current_generation(context).name == "g1.2"
    second = night(context, cells)
    assert second.generation == "g1.2"
    assert second.id != first.id
    judges = holdout(context, second)
    assert judges <= {f"p{n}" for n in range(100, 112)}
    assert len(judges) == generation.holdout.patients >= 3
    assert second.holdout == generation.holdout
    table = rows(context, second)
    assert set(table.loc[table["patient"].isin(worn_out), "side"]) == {"train"}
    # Looks start from zero, and old cells of known patients never judge, under any patient's name.
    assert take_look(context, "g1.2", "x", "champion").number == 1
    moved = {**cells, f"labeled/{POSITIVE}/x.png": (old[0], min(judges), POSITIVE)}
    assert night(context, moved).crossed == 1


def test_too_few_new_patients_are_refused_with_how_many_more_it_takes(context: Context) -> None:
    cells = patients(1, 40)
    trained(context, night(context, cells))
    with pytest.raises(RotationRefused, match=r"0 patients \(0 Parasitized and 0 Uninfected .* about 3 more"):
        rotate(context, facts_of(cells))
    two = cells | patients(100, 2)
    with pytest.raises(RotationRefused, match=r"2 patients \(4 Parasitized and 4 Uninfected .* about 1 more"):
        rotate(context, facts_of(two))
    # Three patients would do, were their cells of both classes.
    healthy = cells | {key.replace(POSITIVE, NEGATIVE): (*cell[:2], NEGATIVE) for key, cell in patients(100, 3).items()}
    with pytest.raises(RotationRefused, match=r"3 patients \(0 Parasitized .* about 3 more") as caught:
        rotate(context, facts_of(healthy))
    assert "before the next night" in caught.value.hint
    assert generations(context) == []
    assert rotate(context, facts_of(cells | patients(100, 3))).holdout.patients == 3


def test_a_trained_patient_under_a_new_name_does_not_judge(context: Context) -> None:
    cells = patients(1, 40)
    trained(context, night(context, cells))
    # p1 comes back as "new", with one old cell and many new ones.
    renamed = {f"labeled/{POSITIVE}/new.png": (cells[f"labeled/{POSITIVE}/p1-0.png"][0], "new0", POSITIVE)}
    arrived = {k: c for k, c in cells.items() if k != f"labeled/{POSITIVE}/p1-0.png"} | renamed
    arrived |= patients(0, 1, 40, prefix="new") | patients(100, 2)
    with pytest.raises(RotationRefused, match="2 patients"):
        rotate(context, facts_of(arrived))


def test_a_holdout_that_was_never_looked_at_may_judge_again(context: Context) -> None:
    cells = patients(1, 60)
    first = night(context, cells)
    trained(context, first, looked=False)
    unseen = holdout(context, first)
    assert len(unseen) >= 3
    generation = rotate(context, facts_of(cells))
    assert holdout(context, night(context, cells)) <= unseen
    assert generation.holdout.patients <= len(unseen)


def test_a_look_that_cannot_be_read_makes_the_whole_holdout_worn_out(context: Context) -> None:
    cells = patients(1, 60)
    trained(context, night(context, cells), looked=False)
    context.store.put("retraining/looks/g1/0001-x.json", b"?")
    with pytest.raises(RotationRefused):
        rotate(context, facts_of(cells))


def test_the_status_tells_what_is_left(context: Context) -> None:
    cells = patients(1, 40)
    trained(context, night(context, cells))
    before = holdout_status(context)
    assert (before["generation"], before["looks_taken"], before["looks_left"]) == ("g1", 1, 23)
    assert before["error_budget_spent"] == pytest.approx(0.05 / 24, abs=1e-6)
    rotate(context, facts_of(cells | patients(100, 12)), why="worn out")
    after = holdout_status(context)
    assert (after["generation"], after["previous"], after["why"]) == ("g1.2", "g1", "worn out")
    assert (after["looks_taken"], after["looks_left"], after["error_budget_spent"]) == (0, 24, 0)
    assert after["patients"] >= 3
    assert after["detectable_difference"] is None
    # Another first generation in the settings is another line of generations.
    assert holdout_status(with_settings(context, split={"generation": "other"}))["generation"] == "other"


# --- whatever arrives on whatever night --------------------------------------------------------------------------


@dataclass
class World:
    """A bucket that people work in without thinking of us, and all that the nights over it may never do."""

    context: Context
    random: random.Random
    cells: dict[str, Cell] = field(default_factory=dict)
    gone: dict[str, Cell] = field(default_factory=dict)
    count: int = 0
    side_of: dict[tuple[str, str], str] = field(default_factory=dict)
    pixel_side: dict[tuple[str, str], str] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    used_by: str = ""

    def arrive(self) -> None:
        for _ in range(self.random.randint(1, 6)):
            who = self.random.choice(["", f"q{self.random.randint(0, 40)}", f"q{self.count}"])
            for _ in range(self.random.randint(1, 3)):
                self.count += 1
                label = self.random.choice(CLASSES)
                self.cells[f"labeled/{label}/{self.count}.png"] = (f"px{self.count}", who, label)

    def some(self) -> str | None:
        return self.random.choice(sorted(self.cells)) if self.cells else None

    def change(self, what: str) -> None:
        """One thing that people do: to one image, or to all of a patient's."""
        key = self.some()
        if key is None:
            return
        pixels, patient, label = self.cells[key]
        other = f"q{self.random.randint(0, 40)}"
        self.count += 1
        if what == "rename":
            self.cells[f"labeled/{label}/r{self.count}.png"] = (self.cells.pop(key)[0], other, label)
        elif what == "copy":
            self.cells[f"labeled/{label}/{self.random.choice('0z')}{self.count}.png"] = (pixels, other, label)
        elif what == "other class":
            del self.cells[key]
            label = CLASSES[1 - CLASSES.index(label)]
            self.cells[f"labeled/{label}/c{self.count}.png"] = (pixels, patient, label)
        elif what == "delete":
            self.gone[key] = self.cells.pop(key)
        elif what == "delete patient":
            for k in [k for k, cell in self.cells.items() if cell[1] == patient]:
                self.gone[k] = self.cells.pop(k)
        elif what == "come back":
            self.cells |= self.gone
        elif what == "rename patient":
            for k, (px, who, lab) in list(self.cells.items()):
                if who == patient:
                    self.cells[k] = (px, other, lab)

    def night(self, *, looked: bool) -> None:
        result = night(self.context, self.cells)
        again = night(self.context, self.cells)
        assert again == result
        table = rows(self.context, result)
        generation = result.generation
        parts = {side: table[table["side"] == side] for side in SIDES}
        for one, other in (("train", "validation"), ("train", "holdout"), ("validation", "holdout")):
            assert not set(parts[one]["pixels"]) & set(parts[other]["pixels"])
            assert not (set(parts[one]["patient"]) - {""}) & set(parts[other]["patient"])
        for pixels, patient, side in table[["pixels", "patient", "side"]].itertuples(index=False):
            assert self.pixel_side.setdefault((generation, pixels), side) == side, "a cell changed its side"
            if patient:
                assert self.side_of.setdefault((generation, patient), side) == side, "a patient changed its side"
        assert "" not in set(parts["holdout"]["patient"]) | set(parts["validation"]["patient"])
        assert len(table) + result.crossed == len(facts_of(self.cells))
        # What was learned from before this generation began never judges in it.
        for kind in ("pixels", "patient"):
            assert not self.used[f"{kind} before {generation}"] & set(parts["holdout"][kind])
        trained(self.context, result, looked=looked, name=str(self.count))
        for side in SIDES if looked else SIDES[:2]:
            self.used["pixels"] |= set(parts[side]["pixels"])
            self.used["patient"] |= set(parts[side]["patient"]) - {""}

    def rotate(self) -> None:
        before = len(generations(self.context))
        try:
            made = rotate(self.context, facts_of(self.cells))
        except RotationRefused:
            assert len(generations(self.context)) == before
            return
        for kind in ("pixels", "patient"):
            self.used[f"{kind} before {made.name}"] = set(self.used[kind])


@settings(
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.sampled_from(
            ["rename", "copy", "other class", "delete", "delete patient", "come back", "rename patient", "night",
             "night", "unseen night", "rotate", "rotate"]
        ),
        min_size=8, max_size=20,
    ),
)  # fmt: skip
def test_whatever_arrives_no_patient_is_on_two_sides(home: Path, seed: int, events: list[str]) -> None:
    context = context_over(MemoryStore(), home, gate={"min_patients": 2, "min_cells_per_class": 1})
    world = World(context, random.Random(seed))
    for _ in range(6):
        world.arrive()
    for event in events:
        world.arrive()
        if event == "rotate":
            world.rotate()
        elif event.endswith("night"):
            world.night(looked=event == "night")
        else:
            world.change(event)
    world.night(looked=True)
