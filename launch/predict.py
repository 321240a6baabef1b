"""Classes of image files by a trained student.

The same as `rmd predict`.

python launch/predict.py runs/distill/NAME photo.jpg FOLDER [--out predictions.csv]
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.predict import main

if __name__ == "__main__":
    run(main)
