"""The global heat maps of the package daam, of a pipeline in a folder; called by bench/tracing.py.

    PEERS/bin/python bench/peers/daam_parity.py FOLDER OUT.npz --pixels 512 --steps 3

Runs in the environment of the peers, which holds daam as it comes from the package index, and reads nothing of
Voxplain. OUT.npz gets `maps` [tokens, rows, columns], `latents`, and `keys`: how many (layer, head) maps were taken in.
"""

import argparse

import daam
import numpy as np
import torch
from diffusers import StableDiffusionPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--pixels", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(options.folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    with daam.trace(pipe) as tracer, torch.no_grad():
        latents = pipe(
            options.prompt,
            num_inference_steps=options.steps,
            height=options.pixels,
            width=options.pixels,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
    maps = tracer.compute_global_heat_map().heat_maps
    np.savez(options.out, maps=maps.numpy(), latents=latents.numpy(), keys=len(list(tracer.all_heat_maps)))


if __name__ == "__main__":
    main()
