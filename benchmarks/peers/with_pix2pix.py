"""Train the authors' own PyTorch Pix2Pix or CycleGAN (junyanz/pytorch-CycleGAN-and-pix2pix) for some CPU seconds.

Run by `benchmarks/translation.py` with a checkout of that repository on PYTHONPATH. Their networks, losses, optimisers
and defaults do the training, with batches of one; only reading files is left out (the images come as arrays), and with
it torchvision, for which an empty module stands. Learning rates are constant for the first half of the time and then
fall to nothing, as theirs do by epochs.

    python benchmarks/peers/with_pix2pix.py MODEL IN.npz OUT.npz SECONDS [options of theirs...]

IN has `a`, `b` (uint8 [N, H, W, 3], for pix2pix pairs) and `test_a`, `test_b`; OUT has `b`, the answers to `test_a`,
and for CycleGAN `a`, those to `test_b`, and both ways back; and the images that were shown.
"""

import sys
import time
import types
from pathlib import Path

import numpy as np
import torch


def main() -> int:
    """Train, answer and write."""
    kind, given, out, seconds, *rest = sys.argv[1:]
    module = types.ModuleType("torchvision")
    module.transforms = types.ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": module, "torchvision.transforms": module.transforms}
    from options.train_options import TrainOptions  # type: ignore[import-not-found]

    from models import create_model  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(out).parent
    sys.argv[1:] = ["--dataroot=.", f"--model={kind}", "--gpu_ids=-1", f"--checkpoints_dir={folder}", *rest]
    options = TrainOptions().parse()
    model = create_model(options)
    model.setup(options)
    arrays = {name: _tensor(array) for name, array in np.load(given).items()}
    random = np.random.default_rng(0)
    rates = [[group["lr"] for group in one.param_groups] for one in model.optimizers]
    began, shown = time.process_time(), 0
    while (done := (time.process_time() - began) / float(seconds)) < 1:
        i = int(random.integers(len(arrays["a"])))
        j = i if kind == "pix2pix" else int(random.integers(len(arrays["b"])))
        pair = {"A": arrays["a"][i : i + 1], "B": arrays["b"][j : j + 1]}
        if random.random() < 0.5:
            pair = {name: image.flip(3) for name, image in pair.items()}
        model.set_input({**pair, "A_paths": "", "B_paths": ""})
        model.optimize_parameters()
        shown += 1
        for optimiser, own in zip(model.optimizers, rates, strict=True):
            for group, rate in zip(optimiser.param_groups, own, strict=True):
                group["lr"] = rate * min(1.0, 2 * (1 - done))
    found: dict[str, np.ndarray] = {"shown": np.array(shown)}
    with torch.no_grad():
        if kind == "pix2pix":
            found["b"] = _answers(model.netG, arrays["test_a"])
        else:
            found["b"] = _answers(model.netG_A, arrays["test_a"])
            found["a"] = _answers(model.netG_B, arrays["test_b"])
            found["back_a"] = _answers(model.netG_B, _tensor(found["b"]))
            found["back_b"] = _answers(model.netG_A, _tensor(found["a"]))
    np.savez(out, **found)
    return 0


def _tensor(images: np.ndarray) -> torch.Tensor:
    if images.ndim != 4:
        return torch.from_numpy(np.asarray(images))
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _answers(net: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """One by one and in training mode, as their test script does: with dropout and the picture's own statistics."""
    answers = torch.cat([net(image[None]) for image in images])
    return ((answers.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    sys.exit(main())
