"""Write the betons of a data set, or show what a noise protocol does to its labels.

The same as `rmd prepare`.

python launch/prepare.py --dataset cifar10 --source cifar-10-python.tar.gz --out data
python launch/prepare.py noise --dataset cifar10 --protocol symmetric --rate 0.4
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.prepare import main

if __name__ == "__main__":
    run(main)
