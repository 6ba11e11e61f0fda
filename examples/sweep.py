"""Many merges of the same adapters at once, on the workers of a Dask cluster.

    pip install gam-merge "dask[distributed]"
    python examples/sweep.py examples/adapters/addition examples/adapters/sorting --out sweep

The modules of each merge are spread over the workers. To use a cluster elsewhere, give its address
to ``Client``; the workers must be able to read the adapters.
"""

import argparse
from itertools import product
from pathlib import Path

import gam_merge as gm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", nargs=2, type=Path)
    parser.add_argument("--out", type=Path, default=Path("sweep"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    from dask.distributed import Client

    with Client(
        n_workers=arguments.workers, threads_per_worker=1, dashboard_address=":0"
    ) as client:
        for method, weight in product(("gam", "mean"), (0.25, 0.5, 0.75)):
            out = arguments.out / f"{method}-{weight}"
            result = gm.merge(
                arguments.adapters,
                method=method,
                weights=[weight, 1 - weight],
                out=out,
                executor=client.get_executor(),
            )
            shares = ", ".join(f"{share:.0%}" for share in result.report.survival)
            norm = result.report.norm_ratio
            print(f"{out}: norm {norm:.2f} of the mean norm; survives: {shares}")


if __name__ == "__main__":
    main()
