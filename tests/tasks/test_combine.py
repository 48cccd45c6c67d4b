"""Combine: members become one file with one threshold, chosen on patients that their members were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infra.scoring.model_file import ModelFile
from tasks import combine as module
from tasks.cells.cell_data import load_cells, tuned_cells
from tasks.combine import combine, find_candidate
from tasks.context import Context
from tasks.train import train
from tasks.training.specs import member_specs
from tests.builders import RED, Prepared, channel_member, channel_model, leave_finished_training, with_settings
from validation.digest import sha256
from validation.errors import TrainingFailed
from validation.patients import FOLDS
from validation.records import Candidate, Member
from validation.statistics.threshold import choose_threshold


def members_of(context: Context, prepared: Prepared, files: Sequence[bytes]) -> list[Member]:
    specs = member_specs(context.settings, "keras", prepared.split.id)
    for spec, file in zip(specs, files, strict=True):
        leave_finished_training(context, spec, file)
    return [train(context, spec, prepared.split, prepared.pack) for spec in specs]


@pytest.fixture
def members(context: Context, prepared: Prepared) -> list[Member]:
    """Five members that differ, each right about most cells."""
    return members_of(context, prepared, [channel_member(RED, centre=100.0 + 5 * fold) for fold in range(FOLDS)])


def combined(context: Context, prepared: Prepared, members: Sequence[Member], **missing: str) -> Candidate:
    absent = {int(fold[1:]): why for fold, why in missing.items()}
    return combine(context, members, absent, prepared.split, prepared.pack)


def test_members_become_one_file_in_the_order_of_their_folds(
    context: Context, prepared: Prepared, members: list[Member]
) -> None:
    candidate = combined(context, prepared, members[::-1])
    assert context.records.load(Candidate, candidate.id) == candidate
    data = context.store.get(candidate.model_key)
    assert (sha256(data), len(data)) == (candidate.model_sha256, candidate.model_bytes)
    file = ModelFile(data)
    assert file.folds == candidate.folds == tuple(range(FOLDS))
    assert [member.id for member in candidate.members] == [member.id for member in members]
    assert (candidate.model, candidate.side) == ("keras", 16)
    assert candidate.train_patients == 60


def test_the_threshold_is_chosen_on_tuning_patients_as_their_members_score_them(
    context: Context, prepared: Prepared, members: list[Member]
) -> None:
    candidate = combined(context, prepared, members)
    cells = load_cells(context, prepared.split, prepared.pack)
    columns = ModelFile(context.store.get(candidate.model_key)).score_members(cells.images[:])
    scores, labels, patients = [], [], []
    for fold in range(FOLDS):
        mine = np.isin(cells.rows, cells.tuning(fold).rows)
        scores.append(columns[mine, fold])
        labels.append(cells.labels[mine])
        patients.append(cells.patients[mine])
        assert fold not in set(cells.folds[mine])
    _, codes = np.unique(np.concatenate(patients).astype(str), return_inverse=True)
    told, truth = np.concatenate(scores).astype(np.float64), np.concatenate(labels)
    expected = choose_threshold(truth, told, codes, prevalence=float(cells.labels.mean()))
    assert candidate.threshold == candidate.tuning.threshold == expected
    calls = told >= candidate.threshold
    assert (candidate.tuning.tp, candidate.tuning.fp) == ((calls & truth).sum(), (calls & ~truth).sum())
    assert candidate.tuning.cells == len(truth)
    # A patient that tunes two members is one patient.
    assert candidate.tuning.patients == len(np.unique(codes)) < len(tuned_cells(cells, range(FOLDS))[0])


def test_a_target_sensitivity_is_another_candidate_of_the_same_members(
    context: Context, prepared: Prepared, members: list[Member]
) -> None:
    plain = combined(context, prepared, members)
    aimed = combined(with_settings(context, training={"target_sensitivity": 0.99}), prepared, members)
    assert aimed.id != plain.id
    assert aimed.model_sha256 == plain.model_sha256
    assert aimed.threshold < plain.threshold
    assert aimed.tuning.sensitivity is not None
    assert aimed.tuning.sensitivity.value >= 0.99


def test_what_was_combined_is_not_combined_again(
    context: Context, prepared: Prepared, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = combined(context, prepared, members)
    monkeypatch.setattr("tasks.combine.combine_files", lambda *_: pytest.fail("combined again"))
    # The files of its members may have been pruned since.
    for member in members:
        context.store.delete(member.model_key)
    assert combined(context, prepared, members) == candidate
    assert find_candidate(context, member_specs(context.settings, "keras", prepared.split.id))[1] == candidate


def test_most_members_make_a_candidate_that_names_the_missing_ones(
    context: Context, prepared: Prepared, members: list[Member]
) -> None:
    candidate = combined(context, prepared, [members[0], members[2], members[4]], _1="killed", _3="diverged")
    assert candidate.folds == (0, 2, 4)
    assert candidate.missing == {1: "killed", 3: "diverged"}
    assert ModelFile(context.store.get(candidate.model_key)).folds == (0, 2, 4)
    assert candidate.id != combined(context, prepared, members).id


def test_fewer_than_most_do_not(context: Context, prepared: Prepared, members: list[Member]) -> None:
    with pytest.raises(TrainingFailed, match="3 of 5 members could not be trained: killed") as caught:
        combined(context, prepared, members[:2], _2="killed", _3="killed", _4="killed")
    assert "the members that were trained are kept" in caught.value.hint
    assert context.records.ids(Candidate) == []


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (b"no model", "not a usable ONNX model"),
    ],
    ids=["rubbish"],
)
def test_an_unusable_member_costs_the_cnn_its_night(
    member: bytes, why: str, context: Context, prepared: Prepared
) -> None:
    members = members_of(context, prepared, [channel_member(RED)] * 5)
    # As if it had been stored by another version.
    context.store.put(members[4].model_key, member)
    members[4] = members[4].model_copy(update={"model_sha256": sha256(member)})
    with pytest.raises(TrainingFailed, match=f"the members of keras make no usable model file: .*{why}"):
        combined(context, prepared, members)
    assert context.records.ids(Candidate) == []


def test_a_members_file_that_was_replaced_is_trained_again(
    context: Context, prepared: Prepared, members: list[Member]
) -> None:
    context.store.put(members[1].model_key, channel_member(centre=90.0))
    with pytest.raises(TrainingFailed, match="is not the file that was stored"):
        combined(context, prepared, members)
    assert not context.store.exists(members[1].model_key)


def test_of_two_machines_that_combine_at_once_the_record_and_the_file_of_one_count(
    context: Context, prepared: Prepared, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trainings on two machines differ in their last bits."""
    others = []
    for number, member in enumerate(members):
        data, key = channel_member(RED, centre=101.0 + 5 * number), f"{member.model_key}.other"
        context.store.put(key, data)
        others.append(member.model_copy(update={"model_key": key, "model_sha256": sha256(data)}))
    plain, made = module._candidate, list[Candidate]()

    def late(*arguments: Any) -> Candidate:
        candidate = plain(*arguments)
        if not made:
            made.append(candidate)
            made.append(combined(context, prepared, others))
        return candidate

    monkeypatch.setattr(module, "_candidate", late)
    second = combined(context, prepared, members)
    lost, won = made
    assert lost.id == won.id
    assert lost.model_sha256 != won.model_sha256
    assert second == won == context.records.load(Candidate, won.id)
    assert sha256(context.store.get(won.model_key)) == won.model_sha256
    assert not context.store.exists(lost.model_key)


def test_a_record_beside_the_file_of_another_machine_is_combined_again(
    context: Context, prepared: Prepared, members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    candidate = combined(context, prepared, members)
    context.store.put(candidate.model_key, channel_model(RED))
    again = combined(context, prepared, members)
    assert again.id != candidate.id
    assert again.model_sha256 == candidate.model_sha256 == sha256(context.store.get(again.model_key))
    assert f"{candidate.model_key} is not the file of candidate" in caplog.text
    assert combined(context, prepared, members) == again
