"""Files for engines that start machines: a SkyPilot task, a Kubernetes indexed job. Both run `fleet node`."""

from __future__ import annotations

import re

from bench.errors import BadRequest, require
from kernels.op import SUITES

SKY = """\
# sky launch -c decodebench {name} && sky logs decodebench > log.txt
# then: decodebench fleet collect log.txt --out DIR
name: decodebench
num_nodes: {nodes}
resources:
  accelerators: "{part}:{gpus}"
workdir: .
setup: |
  python3 -m pip install -q -e .
run: |
  python3 -m bench fleet node --suite {suite}
"""

KUBERNETES = """\
# kubectl apply -f {name}; when it is complete, for each pod: kubectl logs POD > POD.txt
# then: decodebench fleet collect *.txt --out DIR
apiVersion: batch/v1
kind: Job
metadata:
  name: decodebench
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimitPerIndex: 1
  maxFailedIndexes: {nodes}
  template:
    metadata:
      labels:
        app: decodebench
    spec:
      restartPolicy: Never
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - labelSelector:
                matchLabels:
                  app: decodebench
              topologyKey: kubernetes.io/hostname
      containers:
        - name: node
          image: "{image}"
          command: ["python3", "-m", "bench", "fleet", "node", "--suite", "{suite}"]
          env:
            - name: NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName
          resources:
            limits:
              nvidia.com/gpu: "{gpus}"
"""

FORMS = {"sky": SKY, "kubernetes": KUBERNETES}


def render(form: str, *, nodes: int, gpus: int, part: str, image: str, suite: str) -> str:
    """The file as text. BadRequest for an unknown form or suite, and for a name that YAML would not keep."""
    require("form", [form], FORMS)
    require("suite", [suite], SUITES)
    for option, name, signs in (("--part", part, ". _ -"), ("--image", image, ". / : @ _ -")):
        if not re.fullmatch(rf"[\w{signs}]*\w".replace(" ", ""), name, re.ASCII):
            raise BadRequest(f"{option} {name[:40]!r}: a name of letters, digits and {signs}")
    if form == "sky" and not gpus:
        raise BadRequest("--gpus 0: a task of SkyPilot names its GPUs")
    return FORMS[form].format(name="fleet.yaml", nodes=nodes, gpus=gpus, part=part, image=image, suite=suite)
