# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
name: nearest
short_description: The word of a list that is most like a given one
version_added: 0.2.0
description:
  - For messages that tell a user which name was probably meant.
options:
  _input:
    description: The word to look for.
    type: str
    required: true
  words:
    description: The words to choose from.
    type: list
    elements: str
    required: true
positional: words
author:
  - The mlops.mlflow_aws founders (@mlops)
"""

EXAMPLES = r"""
- name: Say MLFLOW_TRACKING_URI
  ansible.builtin.debug:
    msg: "{{ 'MLFLOW_TRAKING_URL' | mlops.mlflow_aws.nearest(['MLFLOW_TRACKING_URI', 'MLFLOW_RUN_ID']) }}"
"""

RETURN = r"""
_value:
  description: The most similar word, or an empty string when none is similar.
  type: str
"""

import difflib
from collections.abc import Callable, Sequence


def nearest(word: str, words: Sequence[str]) -> str:
    """Return the most similar of the words, or an empty string."""
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.75)), "")


class FilterModule:
    """The filters of this file, as Ansible finds them."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return each filter by its name."""
        return {"nearest": nearest}
