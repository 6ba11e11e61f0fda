"""The page of gam-merge as a Hugging Face Space; here: ``python examples/space/app.py``.

It is what ``gam-merge ui`` shows. Address and port come from the environment of a Space.
"""

import gam_ui

if __name__ == "__main__":
    gam_ui.serve(limits=gam_ui.Limits(disk=30_000_000_000))
