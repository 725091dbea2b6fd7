"""Folds by image id: complete, disjoint, about equal, and the same in every set."""

import pytest

from sl_detectron.data.folds import check_folds, fold_of, without_fold

RECORDS = [{"image_id": f"{i:06d}"} for i in range(3000)]


@pytest.mark.parametrize("num", [2, 3, 5])
def test_each_image_is_left_out_once(num):
    left = [without_fold(RECORDS, num, fold) for fold in range(num)]
    ids = {r["image_id"] for r in RECORDS}
    out = [ids - {r["image_id"] for r in kept} for kept in left]
    assert sorted(i for of in out for i in of) == sorted(ids)
    # Five standard deviations.
    share = 3000 / num
    assert all(abs(len(of) - share) < 5 * (share * (1 - 1 / num)) ** 0.5 for of in out)
    assert without_fold(RECORDS[::-1], num, 0) == left[0][::-1]
    assert without_fold(RECORDS, 1, 0) == RECORDS


def test_a_number_and_its_name_are_one_image():
    assert all(fold_of(i, 7) == fold_of(str(i), 7) for i in range(99))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 0), "DATASETS.FOLDS must be at least 1; got 0"),
        ((2, 2), "DATASETS.HELD_OUT_FOLD must be at least 0 and below DATASETS.FOLDS, 2; got 2"),
        ((2, -1), "DATASETS.HELD_OUT_FOLD must be"),
    ],
)
def test_wrong_values_name_the_key(values, message):
    with pytest.raises(ValueError, match=message):
        check_folds(*values)
