"""The one scoring path: what a model file must be, and that it scores the same in any company."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from infra.scoring.isolated import rescore
from infra.scoring.model_file import BATCH, FOLDS, LOGIT, MEMBERS, OUTPUT, MemberFile, ModelFile
from tasks.models.onnx_file import combine
from tests.conv_model import conv_model
from tests.model_files import GREEN, SIDE, endless_network, single_network
from validation.digest import sha256
from validation.errors import ModelFileInvalid


def images(count: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def test_scores_are_what_the_graph_says() -> None:
    cells = images(10)
    expected = 1 / (1 + np.exp(-0.1 * (cells[..., GREEN].astype(np.float64).mean(axis=(1, 2)) - 105)))
    scores = ModelFile(single_network()).score(cells)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_more_cells_than_a_batch_come_back_in_order() -> None:
    model, cells = ModelFile(single_network()), images(2 * BATCH + 3)
    scores = model.score(cells)
    assert scores.shape == (2 * BATCH + 3,)
    np.testing.assert_array_equal(scores, np.concatenate([model.score(cells[:BATCH]), model.score(cells[BATCH:])]))
    np.testing.assert_allclose(scores, [float(model.score(cell[np.newaxis])[0]) for cell in cells], atol=1e-6)


def test_no_cells_have_no_scores() -> None:
    scores = ModelFile(single_network()).score(images(0))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


def test_a_view_of_a_memory_map_is_scored_like_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "cells.npy", images(9))
    mapped = np.load(tmp_path / "cells.npy", mmap_mode="r")[::2]
    model = ModelFile(single_network())
    np.testing.assert_array_equal(model.score(mapped), model.score(mapped.copy()))


@pytest.mark.parametrize(
    "wrong",
    [
        images(2)[:, :8],
        images(2)[..., :1],
        images(2)[0],
        images(2).astype(np.float32),
        np.zeros((2, 3, SIDE, SIDE), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(wrong: Any) -> None:
    with pytest.raises(ModelFileInvalid, match=rf"expected uint8 \[n, {SIDE}, {SIDE}, 3\], found {wrong.dtype}"):
        ModelFile(single_network()).score(wrong)


def test_other_bytes_than_recorded_are_refused() -> None:
    model = single_network()
    assert ModelFile(model, sha256_expected=sha256(model)).side == SIDE
    with pytest.raises(ModelFileInvalid, match="recorded is") as caught:
        ModelFile(single_network(centre=99), sha256_expected=sha256(model))
    assert "roll back" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"not a model", single_network()[:-50]])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelFileInvalid, match="not a usable ONNX model"):
        ModelFile(data)


@pytest.mark.parametrize(
    "contract",
    [
        {"input_name": "x"},
        {"output_name": "y"},
        {"input_type": 1},  # float
        {"shape": ["n", SIDE, 2 * SIDE, 3]},
        {"shape": ["n", "side", "side", 3]},
        {"shape": ["n", SIDE, SIDE, 4]},
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(contract: dict[str, Any]) -> None:
    with pytest.raises(ModelFileInvalid, match=r"expected images uint8 \[n, side, side, 3\]"):
        ModelFile(single_network(**contract))


def test_a_model_file_is_opened_from_a_path(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(single_network(side=32))
    assert ModelFile.open(tmp_path / "model.onnx").side == 32


def test_a_loop_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("infra.scoring.model_file.BATCH_SECONDS", 0.3)
    model = ModelFile(endless_network())
    with pytest.raises(ModelFileInvalid, match=r"does not run: 2 images took over 0\.3 s") as caught:
        model.score(images(2))
    assert "roll back" in caught.value.hint
    assert capfd.readouterr().err == ""


def test_scoring_loads_neither_framework(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(single_network())
    code = (
        "import sys, numpy as np; from pathlib import Path; from infra.scoring.model_file import ModelFile; "
        f"ModelFile.open(Path({str(tmp_path / 'model.onnx')!r})).score(np.zeros((1, {SIDE}, {SIDE}, 3), np.uint8)); "
        "print([n for n in ('torch', 'fastai', 'tensorflow', 'keras', 'mlflow', 'prefect') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FILE_FOLDS = (0, 2, 3)


@pytest.fixture(scope="module")
def candidate() -> bytes:
    return combine([(fold, conv_model(SIDE, seed=fold + 1, output=LOGIT)) for fold in FILE_FOLDS])


def cells_of_folds(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    return images(count), np.random.default_rng(2).choice(FILE_FOLDS, count)


def changed(data: bytes, how: str) -> bytes:
    """Return a candidate's file that breaks its contract."""
    model = onnx.load_model_from_string(data)
    nodes = {output: node for node in model.graph.node for output in node.output}
    if how == "another probability":
        nodes["mean"].op_type = "ReduceSum"
    elif how == "members only":
        del model.graph.output[0]
    elif how == "outputs turned round":
        model.graph.output.reverse()
    elif how == "flat members":
        model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 2
    else:
        onnx.helper.set_model_props(model, {FOLDS: how})
    return bytes(model.SerializeToString())


def test_a_file_of_before_has_no_members() -> None:
    model = ModelFile(single_network())
    model.check_members()
    assert model.folds == ()
    with pytest.raises(ModelFileInvalid, match="no members"):
        model.score_members(images(1))
    with pytest.raises(ModelFileInvalid, match="no column for fold"):
        model.score_by_fold(images(1), np.zeros(1, np.int64))


def test_by_fold_each_cell_is_scored_by_its_own_column_to_the_last_bit(candidate: bytes) -> None:
    model = ModelFile(candidate)
    cells, folds = cells_of_folds(5 * BATCH + 3)
    columns = np.array([FILE_FOLDS.index(fold) for fold in folds])
    found = model.score_by_fold(cells, folds)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, model.score_members(cells)[np.arange(len(cells)), columns])
    assert len(model.score_by_fold(cells[:0], folds[:0])) == 0


def test_by_fold_only_the_member_of_the_fold_is_computed(candidate: bytes) -> None:
    """Whatever is wrong with the others: here one of them gives no number."""
    model = onnx.load_model_from_string(candidate)
    scale = next(weight for weight in model.graph.initializer if weight.name == "member1/scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "member1/scale"))
    damaged, (cells, folds) = ModelFile(model.SerializeToString()), cells_of_folds(20)
    whole = ModelFile(candidate).score_by_fold(cells, folds)
    assert np.isnan(damaged.score(cells)).all()
    np.testing.assert_array_equal(damaged.score_by_fold(cells, folds)[folds != 2], whole[folds != 2])
    assert np.isnan(damaged.score_by_fold(cells, folds)[folds == 2]).all()


@pytest.mark.parametrize("fold", [1, -1])
def test_a_fold_without_a_column_is_refused(candidate: bytes, fold: int) -> None:
    with pytest.raises(ModelFileInvalid, match=rf"no column for fold \[{fold}\], it has \[0, 2, 3\]"):
        ModelFile(candidate).score_by_fold(images(2), np.array([0, fold]))


def test_cells_that_can_only_be_sliced_are_read_a_batch_at_a_time(candidate: bytes, tmp_path: Path) -> None:
    class Sliced:
        """Cells on disk; ``largest`` is the largest number that was read at once."""

        def __init__(self, cells: npt.NDArray[np.uint8]) -> None:
            np.save(tmp_path / "cells.npy", cells)
            self.cells = np.load(tmp_path / "cells.npy", mmap_mode="r")
            self.shape, self.dtype, self.ndim, self.largest = cells.shape, cells.dtype, 4, 0

        def __len__(self) -> int:
            return len(self.cells)

        def __getitem__(self, chosen: Any) -> npt.NDArray[np.uint8]:
            read: npt.NDArray[np.uint8] = self.cells[chosen]
            self.largest = max(self.largest, len(read))
            return read

    model = ModelFile(candidate)
    cells, folds = cells_of_folds(3 * BATCH)
    sliced = Sliced(cells)
    np.testing.assert_array_equal(model.score(sliced), model.score(cells))
    np.testing.assert_array_equal(model.score_members(sliced), model.score_members(cells))
    np.testing.assert_array_equal(model.score_by_fold(sliced, folds), model.score_by_fold(cells, folds))
    assert sliced.largest == BATCH


@pytest.mark.parametrize("how", ["members only", "outputs turned round"])
def test_a_candidate_with_other_outputs_is_refused(candidate: bytes, how: str) -> None:
    with pytest.raises(ModelFileInvalid, match=f"expected images .* or {OUTPUT} and {MEMBERS}"):
        ModelFile(changed(candidate, how))


@pytest.mark.parametrize("folds", ["", "0", "0,1", "0,1,1", "0,1,x", "0,1,-1", "0,1,2,3"])
def test_folds_that_are_not_those_of_the_columns_are_refused(candidate: bytes, folds: str) -> None:
    with pytest.raises(ModelFileInvalid, match=f"property folds is '{folds}', expected the folds of 3 columns"):
        ModelFile(changed(candidate, folds))


def test_a_probability_that_is_not_its_members_mean_is_refused(candidate: bytes) -> None:
    ModelFile(candidate).check_members()
    with pytest.raises(ModelFileInvalid, match="probability is not the mean of members"):
        ModelFile(changed(candidate, "another probability")).check_members()


def test_a_member_that_is_certain_is_no_reason_to_refuse_a_file(candidate: bytes) -> None:
    model = onnx.load_model_from_string(candidate)
    (sigmoid,) = [node for node in model.graph.node if node.output[0] == f"member1/{OUTPUT}"]
    (unsqueeze,) = [node for node in model.graph.node if node.output[0] == f"member1/{LOGIT}/column"]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(40, np.float32), "forty"))
    added = onnx.helper.make_node("Add", [f"member1/{LOGIT}", "forty"], ["certain"])
    model.graph.node.insert(list(model.graph.node).index(sigmoid), added)
    sigmoid.input[0] = unsqueeze.input[0] = "certain"
    file = ModelFile(model.SerializeToString())
    assert (file.score_members(images(2))[:, 1] == 1).all()
    file.check_members()


def test_a_member_file_gives_logits(tmp_path: Path) -> None:
    (tmp_path / "member.onnx").write_bytes(conv_model(SIDE, output=LOGIT))
    logits = MemberFile.open(tmp_path / "member.onnx").score_logits(images(2 * BATCH + 1))
    np.testing.assert_allclose(
        1 / (1 + np.exp(-logits)), ModelFile(conv_model(SIDE)).score(images(2 * BATCH + 1)), atol=1e-6
    )
    with pytest.raises(ModelFileInvalid, match=r"-> logit float32 \[n\], found"):
        MemberFile(conv_model(SIDE))
    with pytest.raises(ModelFileInvalid, match=r"-> probability float32 \[n\], or"):
        ModelFile(conv_model(SIDE, output=LOGIT))


@pytest.mark.thorough
def test_a_clean_process_scores_the_same_by_fold_and_without(candidate: bytes) -> None:
    cells, folds = cells_of_folds(20)
    expected, model = sha256(candidate), ModelFile(candidate)
    np.testing.assert_array_equal(rescore(candidate, cells, sha256_expected=expected), model.score(cells))
    np.testing.assert_array_equal(
        rescore(candidate, cells, sha256_expected=expected, folds=folds), model.score_by_fold(cells, folds)
    )
    with pytest.raises(ModelFileInvalid, match=r"in its own process: the model file has no column for fold \[1, 4\]"):
        rescore(candidate, cells, sha256_expected=expected, folds=folds + 1)
    broken = changed(candidate, "another probability")
    with pytest.raises(ModelFileInvalid, match="in its own process: probability is not the mean"):
        rescore(broken, cells, sha256_expected=sha256(broken))
