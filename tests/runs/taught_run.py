"""As `one_run.py`, for students of the run `guide`."""

from __future__ import annotations

import json
import sys
from functools import partial

from lmlab.objectives.distillation import Distillation
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig
from lmlab.objectives.layer_map import FeatureMatch
from lmlab.objectives.nested import ObjectiveConfig
from lmlab.objectives.on_policy import OnPolicyConfig
from lmlab.objectives.teachers import TeacherConfig
from tests.runs import one_run

LOSS = DistillationLoss(
    labels=0.5,
    response=ResponseConfig(kind="jsd", beta=0.3, temperature=2.0),
    features=(
        FeatureMatch(feature="hidden", teacher=1, student=1, loss="mse", projection="shared"),
        FeatureMatch(feature="scores", teacher=-1, student=-1, loss="mse"),
        FeatureMatch(feature="relation", teacher=-1, student=-1, loss="kl", relation_heads=4),
    ),
)
STUDENT = ObjectiveConfig(objective="lmlab.objectives.clm.CLM", settings={"length": one_run.LENGTH})
TAUGHT = partial(Distillation, student=STUDENT, teachers=(TeacherConfig(run="guide"),), loss=LOSS)
STUDENTS = {"distillation": TAUGHT, "on_policy": partial(TAUGHT, on_policy=OnPolicyConfig(share=0.5, prompt_length=8))}

if __name__ == "__main__":
    one_run.OBJECTIVES.update(STUDENTS)  # of this process alone: the tests of all objectives have no teacher
    one_run.main(json.loads(sys.argv[1]))
