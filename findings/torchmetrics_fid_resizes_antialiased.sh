#!/bin/sh
# torchmetrics' FrechetInceptionDistance says that its network and its scores are torch-fidelity's. Guess: the same picture then
# reaches Inception as the same 299 x 299 pixels. Seen with torchmetrics 1.9.0 and torch-fidelity 0.4.0: by default (`antialias=True`)
# torchmetrics shrinks with torch's antialiased bilinear filter, torch-fidelity as TensorFlow 1 did (no antialiasing, aligned on the
# top left), so what Inception sees of a 480 x 360 picture of noise differs by up to 0.9 of a range of 2; with `antialias=False` by nothing.
# A FID of the one is therefore no FID of the other for pictures larger than 299 pixels. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "torchvision==0.29.1" "torchmetrics==1.9.0" "torch-fidelity==0.4.0" 2>/dev/null
"$folder/venv/bin/python" - "$folder/weights.pth" <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

# The published weights are not needed to see what enters the first layer: the network's own first weights are saved and loaded.
load = torch.nn.Module.load_state_dict
torch.nn.Module.load_state_dict = lambda self, *a, **k: None
empty = sys.argv[1]
torch.save({}, empty)
torch.manual_seed(0)
network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
torch.nn.Module.load_state_dict = load
torch.save(network.state_dict(), sys.argv[1])

picture = torch.randint(0, 256, (1, 3, 360, 480), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
entered = {}


def enter(name, network):
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: entered.__setitem__(name, x[0].clone()))
    with torch.no_grad():
        network(picture)


named = ("inception-v3-compat", ["2048"])
enter("torch-fidelity", FeatureExtractorInceptionV3(*named, feature_extractor_weights_path=sys.argv[1]).eval())
enter("torchmetrics", NoTrainInceptionV3(*named, feature_extractor_weights_path=sys.argv[1]))
enter("torchmetrics, antialias=False", NoTrainInceptionV3(*named, feature_extractor_weights_path=sys.argv[1], antialias=False))
apart = {name: float((x - entered["torch-fidelity"]).abs().max()) for name, x in entered.items()}
print(f"torchmetrics {version('torchmetrics')}, torch-fidelity {version('torch-fidelity')}, torch {version('torch')}")
print("largest difference of what Inception sees (range -1 to 1) from torch-fidelity's:")
for name, difference in apart.items():
    print(f"  {name}: {difference:.4f}")
assert apart["torchmetrics"] > 0.1 and apart["torchmetrics, antialias=False"] == 0, "this has changed"
PYTHON
