import numpy as np
import pytest

from voxplain.metrics import Undefined, finding_auc

OUTPUTS = ["Edema", "Effusion"]
LABELS = ["Edema", "Edema", "No Finding", "No Finding", "Pleural Effusion", "Edema|Pleural Effusion"]
SCORES = np.array([[0.9, 0.0], [0.4, 0.0], [0.5, 0.2], [0.1, 0.7], [0.0, 0.7], [0.0, 0.0]])


def test_a_finding_alone_is_set_against_healthy_images_and_others_do_not_count():
    assert finding_auc(SCORES, OUTPUTS, LABELS, "Edema") == 0.75
    assert finding_auc(SCORES[:5], OUTPUTS, LABELS[:5], "Edema") == 0.75


def test_a_finding_is_read_from_the_output_of_another_name():
    assert finding_auc(SCORES, OUTPUTS, LABELS, "Pleural Effusion") == 0.75, "0.7 beats 0.2 and ties with 0.7"


def test_unknown_names_are_errors_and_missing_groups_are_undefined():
    with pytest.raises(ValueError, match="no output 'Pneumonia'") as error:
        finding_auc(SCORES, OUTPUTS, LABELS, "Pneumonia")
    assert not isinstance(error.value, Undefined)
    with pytest.raises(Undefined, match="labeled 'normal'"):
        finding_auc(SCORES, OUTPUTS, LABELS, "Edema", healthy="normal")
    with pytest.raises(Undefined, match="labeled 'Edema'"):
        finding_auc(SCORES[2:5], OUTPUTS, LABELS[2:5], "Edema")
    with pytest.raises(ValueError, match="6 labels and 2 outputs"):
        finding_auc(SCORES[:3], OUTPUTS, LABELS, "Edema")


def test_a_score_that_is_no_number_counts_only_where_its_image_does():
    scores = SCORES.copy()
    scores[4:, 0] = np.nan
    assert finding_auc(scores, OUTPUTS, LABELS, "Edema") == 0.75
    scores[2, 0] = np.nan
    with pytest.raises(ValueError, match="scores of 'Edema' hold NaN or infinity; find the image") as error:
        finding_auc(scores, OUTPUTS, LABELS, "Edema")
    assert "region" not in str(error.value)
