"""The filter that guesses which name was meant."""

from __future__ import annotations

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

WORDS = ["MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("MLFLOW_TRAKING_URL", "MLFLOW_TRACKING_URI"),
        ("MLFLOW_ENABLE_JOB_EXECUTION", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"),
        ("MLFLOW_RUN_ID", "MLFLOW_RUN_ID"),
        ("SOMETHING_ELSE", ""),
    ],
)
def test_the_nearest_word_is_found_in_a_template(word: str, expected: str) -> None:
    templar = Templar(loader=DataLoader(), variables={"word": word, "words": WORDS})
    from ansible.template import trust_as_template

    assert templar.template(trust_as_template("{{ word | mlops.mlflow_aws.nearest(words) }}")) == expected
