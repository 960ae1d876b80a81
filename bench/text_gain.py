"""How much of the denoising loss a text saves, by noise level: does the model read at all?

    python bench/text_gain.py --split dev --families 12

Families of four cases share a chest and differ in their findings. The loss with a case's own text stands beside the
loss with a sibling's text and with the empty text, at the same noise. A model that ignores its text scores the same
on all three; everything said of its attention would then be decoration.
"""

import argparse
import sys

import numpy as np
import torch
from record import write

import voxplain
from voxplain.datasets.phantom.cases import draw, plan_case
from voxplain.datasets.phantom.findings import Plan
from voxplain.datasets.phantom.impressions import request

FAMILY = 4
LEVELS = (200, 400, 500, 600, 700, 800, 900, 950)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="thorax")
    parser.add_argument("--split", default="dev", choices=["dev", "test", "shift"])
    parser.add_argument("--families", type=int, default=12)
    options = parser.parse_args()
    model = voxplain.load(options.model)
    sums = np.zeros((len(LEVELS), 3))
    with torch.no_grad():
        for family in range(options.families):
            images, texts = [], []
            for number in range(FAMILY):
                rng = np.random.default_rng((4, family, number))
                case = draw(20_000 + family, options.split, plan_case(rng, allow_held_out=False))
                plans = [Plan(f.kind, f.side, f.lobe, f.severity, f.count) for f in case.findings]
                texts.append(request(plans, rng, plain=True).text)
                images.append(model.encode_image(case.image))
            clean = torch.cat(images)
            own = torch.cat([model.encode_prompt(model.tokenize(text)) for text in texts])
            null = model.encode_prompt(model.tokenize("")).expand(FAMILY, -1, -1)
            for row, level in enumerate(LEVELS):
                generator = torch.Generator().manual_seed(1000 * family + level)
                noise = torch.randn(clean.shape[1:], generator=generator).expand_as(clean)
                noisy, target = model.add_noise(clean, noise, level), model.velocity(clean, noise, level)
                for column, context in enumerate((own, own.roll(1, 0), null)):
                    sums[row, column] += (model.predict(noisy, level, context) - target).square().mean().item()
            print(f"\rfamily {family + 1}/{options.families} ", end="", file=sys.stderr)
    table = []
    for level, (own_loss, sibling_loss, null_loss) in zip(LEVELS, sums / options.families, strict=True):
        alpha = model.alpha_bar(level)
        table.append(
            {
                "noise level": level,
                "signal-to-noise": float(alpha / (1 - alpha)),
                "loss, own text": own_loss,
                "saved against a sibling's text (%)": 100 * (1 - own_loss / sibling_loss),
                "saved against no text (%)": 100 * (1 - own_loss / null_loss),
            }
        )
    command = "python " + " ".join(sys.argv)
    print(write("text_gain", command, {"weights": model.weights_hash, "cases": options.families * FAMILY}, table))


if __name__ == "__main__":
    main()
