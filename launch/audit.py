"""Which labels are wrong: a list, the worst first, and a page to review them.

The same as `rmd audit`.

accelerate launch launch/audit.py FOLDER --model resnet50 --weights resnet50.pth
python launch/audit.py apply audits/NAME --decisions decisions.csv
"""

from rmd_dist.commands.audit import main
from rmd_dist.commands.entry import run

if __name__ == "__main__":
    run(main)
