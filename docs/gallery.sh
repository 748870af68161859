#!/bin/sh
# Trains the runs of docs/pictures.md and draws its pictures into docs/pictures/gallery: 40 minutes on 2 cores.
#   sh docs/gallery.sh [FOLDER FOR RUNS]
# The Frey faces are downloaded, or found in the folder that VAEKIT_DATA names.
set -eu
runs=${1:-runs/gallery}
out=$(cd "$(dirname "$0")" && pwd)/pictures/gallery
mkdir -p "$runs" "$out"

run() { # NAME ARGUMENTS: train once
  name=$1; shift
  [ -d "$runs/$name" ] || vaekit train "$@" --out "$runs/$name"
}
draw() { # NAME PICTURES: draw, and name the files by the run
  name=$1; shift
  vaekit plot "$runs/$name" "$@" --out "$runs/drawn" --overwrite
  for file in "$runs"/drawn/*; do mv "$file" "$out/$name-$(basename "$file")"; done
}

run mnist-2d vae --latent-dim 2 --epochs 30 --record --pictures-every 10
run mnist-3d vae --latent-dim 3 --epochs 20 --record
run mnist-20d vae --latent-dim 20 --epochs 20 --record
run freyface-2d --preset aevb-freyface --latent-dim 2 --epochs 300 --record
run cvae cvae --latent-dim 10 --epochs 20 --record
run gmvae gmvae --epochs 20 --record
run vampprior-2d vampprior --latent-dim 2 --epochs 20 --record
run hvae hvae --latent-dim 2 --top-dim 2 --epochs 20 --record
for seed in 0 1 2; do
  run cmp-vae-$seed vae --latent-dim 2 --epochs 10 --seed $seed
  run cmp-hvae-$seed hvae --latent-dim 2 --top-dim 2 --epochs 10 --seed $seed
  run cmp-vamp-$seed vampprior --latent-dim 2 --epochs 10 --seed $seed
done

draw mnist-2d reconstructions samples latents manifold interpolations curves progress
draw mnist-3d latents manifold
draw mnist-20d latents manifold traversals curves
draw freyface-2d latents manifold samples # these show no photograph, which may not be passed on
draw cvae samples analogies
draw gmvae samples latents clusters confusion
draw vampprior-2d latents pseudo-inputs
draw hvae latents manifold
vaekit compare "$runs"/cmp-*-[012] --out "$out/compare.png"
# Not on the page:
cd "$out"
rm -f mnist-2d-reconstructions-train.png mnist-20d-curves-samples.png gmvae-samples.png mnist-3d-manifold-slices.gif
# Half as many bytes, with a palette:
python - <<'END'
from pathlib import Path
from PIL import Image
for path in Path().glob("*.png"):
    image = Image.open(path)
    if image.mode != "P":
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
END
